"""Suppress the bones in chest X-rays with GL-LCM.

    python batch_lcm_eval.py                                  the test list, with the weights that lcm_train.py left
    python batch_lcm_eval.py eval.input=scan.png              one image, or a folder of them
    python batch_lcm_eval.py vqgan.weights=VQGAN.pth lcm.weights=UNet.pth     released checkpoints
    torchrun --nproc_per_node=8 batch_lcm_eval.py             eight GPUs share the images
    python batch_lcm_eval.py --profile demo lcm.steps=8       small, a minute on a CPU

Lung masks are taken from eval.masks or Mask/ beside CXR/, else found in the X-ray.
Writes <eval.output>/<name>.png (size and depth of the input), panels/ (CXR | result | truth | removed), summary.json;
with eval.samples=8 also deviation/ and overlays/, where the results drawn of an image differ; with eval.dicom=true dicom/;
with eval.nodules=nodules.npz insertion.txt and insertion.csv: real nodules put into the X-rays, and what is left of them.
A list of values makes an ablation: each is run into a folder of its own, and they are scored beside each other as metrics.py does.

    python batch_lcm_eval.py lcm.guidance=[vanilla,cfg,leg_shared,leg]
    python batch_lcm_eval.py lcm.fusion=[none,alpha,autoencoder,poisson]
    python batch_lcm_eval.py lcm.steps=[1,2,4,8,25,50]        and quality against seconds and steps, as plots
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
         "vqgan.weights", "lcm.weights", "lcm.steps", "lcm.guidance", "lcm.alpha", "lcm.clip_global", "lcm.clip_local",
         "lcm.clip_rate", "lcm.fusion", "lcm.blend", "eval", "metrics.size", "metrics.seed")


def main() -> int:
    return variants.run(config.parse_variants(__doc__, READS), suppress)


def suppress(settings: config.Settings, output: Path) -> list[evaluation.Case]:
    """Write the results of all X-rays into a folder; the X-rays."""
    weights, chosen = (settings.vqgan.weights, settings.lcm.weights), settings.eval
    cases = evaluation.find_cases(chosen.input, settings.data.root, chosen.masks)
    device = pick_device(settings.device)
    precision, compiled = pick_precision(settings.precision, device), compiling.pick(settings.compile, device)
    options = pipelines.gllcm_options(settings.lcm)
    run = pipelines.GLLCM.load(*weights, device, precision=precision, compiled=compiled, **pipelines.result_options(chosen), **options)
    run.check_size(settings.data.image_size)
    about = run.describe() | evaluation.describe_run("GL-LCM", device, precision, compiled, {**options, "eval": asdict(chosen)}, *weights)
    evaluation.evaluate(run, cases, output, size=settings.data.image_size, batch_size=chosen.batch_size, about=about,
                        samples=chosen.samples, dicom=chosen.dicom)
    if chosen.nodules and processes.rank() == 0:
        print(insertion.evaluate(run, cases, output, size=settings.data.image_size, nodules=chosen.nodules, count=chosen.inserted,
                                 seed=chosen.seed, method="GL-LCM"))
    return cases


if __name__ == "__main__":
    entry.run(main)
