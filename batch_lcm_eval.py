"""Suppress the bones in chest X-rays with GL-LCM.

    python batch_lcm_eval.py                                  the test list, with the weights that lcm_train.py left
    python batch_lcm_eval.py eval.input=scan.png              one image, or a folder of them
    python batch_lcm_eval.py vqgan.weights=VQGAN.pth lcm.weights=UNet.pth     released checkpoints
    torchrun --nproc_per_node=8 batch_lcm_eval.py             eight GPUs share the images
    python batch_lcm_eval.py --profile demo lcm.steps=8       small, a minute on a CPU

Lung masks are taken from eval.masks or Mask/ beside CXR/, else found in the X-ray.
Writes <eval.output>/<name>.png (size and depth of the input), panels/ (CXR | result | truth | taken away) and
summary.json; with eval.paths=true also global/ and local/, the two results that are fused; with eval.snapshots=5 also
snapshots/, pictures of five sampling steps and an animation; with eval.samples=8 also deviation/ and overlays/, where
the results drawn of an image differ; with eval.dicom=true dicom/; with eval.nodules=nodules.npz insertion.txt and
insertion.csv: real nodules put into the X-rays, and what is left of them. For one image eval.output=soft.png names the
result itself; the rest goes to soft_files/. No input, and no file that the summary.json beside it does not know, is
ever written over; results of different settings never share a folder.

A list of values makes an ablation: each is run into a folder of its own, and they are scored beside each other as
metrics.py does.

    python batch_lcm_eval.py lcm.guidance=[vanilla,cfg,leg_shared,leg]
    python batch_lcm_eval.py lcm.fusion=[none,alpha,autoencoder,poisson]
    python batch_lcm_eval.py lcm.steps=[1,2,4,8,25,50]        and quality against seconds and steps, as plots
"""

from functools import partial

from models import config, weights
from models.runtime import entry, garbage

# The settings that this script reads: --help lists them, and any other on the command line gets a note.
READS = (
    "runs",
    "device",
    "precision",
    "compile",
    "features",
    "data.root",
    "data.name",
    "data.lists",
    "data.image_size",
    # the networks, the sampling, and how the global and the local result are fused
    "vqgan.weights",
    "lcm.weights",
    *config.keys("lcm", config.GllcmSampling),
    *config.keys("lcm", config.GllcmFusion),
    "eval",
    # only for an ablation, which is scored
    "metrics.size",
    "metrics.seed",
)


def main() -> int:
    # settings: one run, or several that differ in a setting
    # settings that a student's weights ask for lie between the profile's and the command line's
    variants = config.parse_variants(__doc__, READS, asked_for=partial(weights.student_settings, section="lcm"))

    # torch is imported only after the settings: --help and a mistyped key answer at once
    with garbage.importing():
        from models import pipelines
        from models.evaluation import run

    return run.main(variants, pipelines.GLLCM)


if __name__ == "__main__":
    entry.run(main)
