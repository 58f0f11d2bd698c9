"""Suppress the bones in chest X-rays with BS-LDM.

    python ldm_eval.py                                        the test list, with the weights that ldm_train.py left
    python ldm_eval.py eval.input=scan.png                    one image, or a folder of them
    python ldm_eval.py vqgan.weights=VQGAN.pth ldm.weights=UNet.pth     released checkpoints
    torchrun --nproc_per_node=8 ldm_eval.py                   eight GPUs share the images
    python ldm_eval.py --profile demo ldm.sampler=ddim ldm.steps=10     small, a minute on a CPU

Writes <eval.output>/<name>.png (size and depth of the input), panels/ (CXR | result | truth | removed), summary.json.
"""
from dataclasses import asdict

from models import config, pipelines, processes, training

READS = ("runs", "device", "precision", "data.root", "data.name", "data.lists", "data.image_size", "vqgan.weights", "ldm.weights",
         "ldm.sampler", "ldm.steps", "ldm.clip", "ldm.clip_rate", "ldm.clip_lag", "eval.input", "eval.output", "eval.batch_size",
         "eval.seed")


def main() -> int:
    settings = config.parse(__doc__, READS)
    weights = settings.vqgan.weights, settings.ldm.weights
    with processes.joined():
        cases = pipelines.find_cases(settings.eval.input, settings.data.root, None)
        device = training.pick_device(settings.device)
        precision = training.pick_precision(settings.precision, device)
        options = {name: getattr(settings.ldm, name) for name in ("steps", "sampler", "clip", "clip_rate", "clip_lag")}
        run = pipelines.BSLDM.load(*weights, device, seed=settings.eval.seed, precision=precision, **options)
        run.check_size(settings.data.image_size)
        about = run.describe() | pipelines.describe_run("BS-LDM", device, precision, {**options, "eval": asdict(settings.eval)}, *weights)
        return pipelines.evaluate(run, cases, settings.eval.output, size=settings.data.image_size,
                                  batch_size=settings.eval.batch_size, about=about)


if __name__ == "__main__":
    config.run(main)
