"""Suppress the bones in chest X-rays with BS-LDM.

    python ldm_eval.py                                        the test list, with the weights that ldm_train.py left
    python ldm_eval.py eval.input=scan.png                    one image, or a folder of them
    python ldm_eval.py vqgan.weights=VQGAN.pth ldm.weights=UNet.pth     released checkpoints
    torchrun --nproc_per_node=8 ldm_eval.py                   eight GPUs share the images
    python ldm_eval.py --profile demo ldm.sampler=ddim ldm.steps=10     small, a minute on a CPU

Writes <eval.output>/<name>.png (size and depth of the input), panels/ (CXR | result | truth | removed), summary.json;
with eval.samples=8 also deviation/ and overlays/, where the results drawn of an image differ; with eval.dicom=true dicom/;
with eval.nodules=nodules.npz insertion.txt and insertion.csv: real nodules put into the X-rays, and what is left of them.
A list of values makes an ablation: each is run into a folder of its own, and they are scored beside each other as metrics.py does.

    python ldm_eval.py ldm.sampler=[ddpm,ddim,dpmpp] ldm.steps=[10,25,50]
    python ldm_eval.py ldm.clip=[1.4,1000]                    with and without thresholding
    python ldm_eval.py ldm.weights=[A.safetensors,B.safetensors]        say, trained with and without offset noise
"""
from dataclasses import asdict
from pathlib import Path

from models import config, pipelines
from models.evaluation import ablation as variants
from models.evaluation import insertion
from models.evaluation import run as evaluation
from models.runtime import compiling, entry, processes
from models.runtime.device import pick_device, pick_precision

READS = ("runs", "device", "precision", "compile", "features", "data.root", "data.name", "data.lists", "data.image_size",
         "vqgan.weights", "ldm.weights", "ldm.sampler", "ldm.steps", "ldm.clip", "ldm.clip_rate", "ldm.clip_lag", "eval.input",
         "eval.output", "eval.batch_size", "eval.seed", "eval.samples", "eval.residual", "eval.strength", "eval.dicom", "eval.nodules",
         "eval.inserted", "metrics.size",
         "metrics.seed")


def main() -> int:
    return variants.run(config.parse_variants(__doc__, READS), suppress)


def suppress(settings: config.Settings, output: Path) -> list[evaluation.Case]:
    """Write the results of all X-rays into a folder; the X-rays."""
    weights, chosen = (settings.vqgan.weights, settings.ldm.weights), settings.eval
    cases = evaluation.find_cases(chosen.input, settings.data.root, None)
    device = pick_device(settings.device)
    precision, compiled = pick_precision(settings.precision, device), compiling.pick(settings.compile, device)
    options = {name: getattr(settings.ldm, name) for name in ("steps", "sampler", "clip", "clip_rate", "clip_lag")}
    run = pipelines.BSLDM.load(*weights, device, precision=precision, compiled=compiled, **pipelines.result_options(chosen), **options)
    run.check_size(settings.data.image_size)
    about = run.describe() | evaluation.describe_run("BS-LDM", device, precision, compiled, {**options, "eval": asdict(chosen)}, *weights)
    evaluation.evaluate(run, cases, output, size=settings.data.image_size, batch_size=chosen.batch_size, about=about,
                        samples=chosen.samples, dicom=chosen.dicom)
    if chosen.nodules and processes.rank() == 0:
        print(insertion.evaluate(run, cases, output, size=settings.data.image_size, nodules=chosen.nodules, count=chosen.inserted,
                                 seed=chosen.seed, method="BS-LDM"))
    return cases


if __name__ == "__main__":
    entry.run(main)
