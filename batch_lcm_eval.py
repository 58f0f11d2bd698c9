"""Suppress the bones in chest X-rays with GL-LCM.

    python batch_lcm_eval.py                                  the test list, with the weights that lcm_train.py left
    python batch_lcm_eval.py eval.input=scan.png              one image, or a folder of them
    python batch_lcm_eval.py vqgan.weights=VQGAN.pth lcm.weights=UNet.pth     released checkpoints
    torchrun --nproc_per_node=8 batch_lcm_eval.py             eight GPUs share the images
    python batch_lcm_eval.py --profile demo lcm.steps=8       small, a minute on a CPU

Lung masks are taken from eval.masks or Mask/ beside CXR/, else found in the X-ray.
Writes <eval.output>/<name>.png (size and depth of the input), panels/ (CXR | result | truth | removed), summary.json.
"""
from dataclasses import asdict

from models import config, pipelines, processes, training

READS = ("runs", "device", "precision", "data.root", "data.name", "data.lists", "data.image_size", "vqgan.weights", "lcm.weights",
         "lcm.steps", "lcm.guidance", "lcm.alpha", "lcm.clip_global", "lcm.clip_local", "lcm.clip_rate", "lcm.fusion", "lcm.blend", "eval")


def main() -> int:
    settings = config.parse(__doc__, READS)
    weights = settings.vqgan.weights, settings.lcm.weights
    with processes.joined():
        cases = pipelines.find_cases(settings.eval.input, settings.data.root, settings.eval.masks)
        device = training.pick_device(settings.device)
        precision = training.pick_precision(settings.precision, device)
        options = pipelines.gllcm_options(settings.lcm)
        run = pipelines.GLLCM.load(*weights, device, seed=settings.eval.seed, precision=precision, **options)
        run.check_size(settings.data.image_size)
        about = run.describe() | pipelines.describe_run("GL-LCM", device, precision, {**options, "eval": asdict(settings.eval)}, *weights)
        return pipelines.evaluate(run, cases, settings.eval.output, size=settings.data.image_size,
                                  batch_size=settings.eval.batch_size, about=about)


if __name__ == "__main__":
    config.run(main)
