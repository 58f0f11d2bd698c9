"""Suppress the bones in chest X-rays with BS-LDM.

    python ldm_eval.py                                        the test list, with the weights that ldm_train.py left
    python ldm_eval.py eval.input=scan.png                    one image, or a folder of them
    python ldm_eval.py vqgan.weights=VQGAN.pth ldm.weights=UNet.pth     released checkpoints
    torchrun --nproc_per_node=8 ldm_eval.py                   eight GPUs share the images
    python ldm_eval.py --profile demo ldm.sampler=ddim ldm.steps=10     small, a minute on a CPU

Writes <eval.output>/<name>.png (size and depth of the input), panels/ (CXR | result | truth | taken away) and
summary.json; with eval.snapshots=5 also snapshots/, pictures of five sampling steps and an animation; with
eval.samples=8 also deviation/ and overlays/, where the results drawn of an image differ; with eval.dicom=true dicom/;
with eval.nodules=nodules.npz insertion.txt and insertion.csv: real nodules put into the X-rays, and what is left of
them. For one image eval.output=soft.png names the result itself; the rest goes to soft_files/. No input, and no file
that the summary.json beside it does not know, is ever written over; results of different settings never share a folder.

A list of values makes an ablation: each is run into a folder of its own, and they are scored beside each other as
metrics.py does.

    python ldm_eval.py ldm.sampler=[ddpm,ddim,dpmpp] ldm.steps=[10,25,50]
    python ldm_eval.py ldm.clip=[1.4,1000]                    with and without thresholding
    python ldm_eval.py ldm.weights=[A.safetensors,B.safetensors]        say, trained with and without offset noise
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
    # the networks
    "vqgan.weights",
    "ldm.weights",
    *config.keys("ldm", config.BsldmSampling),
    # what is evaluated and where it is written
    *(key for key in config.keys("eval", config.Eval) if key != "eval.masks"),  # BS-LDM sees no masks
    # only for an ablation, which is scored
    "metrics.size",
    "metrics.seed",
)


def main() -> int:
    # settings: one run, or several that differ in a setting
    # settings that a student's weights ask for lie between the profile's and the command line's
    variants = config.parse_variants(__doc__, READS, asked_for=partial(weights.student_settings, section="ldm"))

    # torch is imported only after the settings: --help and a mistyped key answer at once
    with garbage.importing():
        from models import pipelines
        from models.evaluation import run

    return run.main(variants, pipelines.BSLDM)


if __name__ == "__main__":
    entry.run(main)
