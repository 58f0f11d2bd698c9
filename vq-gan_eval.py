"""Reconstruct images with a trained ML-VQGAN and show its latents.

    python vq-gan_eval.py                                     the test list's X-rays and soft-tissue images
    python vq-gan_eval.py eval.input=scan.png                 one image, or a folder of them
    python vq-gan_eval.py vqgan.weights=VQGAN.pth             a released checkpoint
    python vq-gan_eval.py --profile demo                      small, seconds on a CPU

Writes <eval.output>/<name>.png (reconstruction), panels/ (image | reconstruction | difference), latents/ (the channels
of z_q, each from its least to its greatest value), summary.json with the PSNR of each.
"""

from models import config
from models.runtime import entry

# The settings that this script reads: --help lists them, and any other on the command line gets a note.
READS = (
    "runs",
    "device",
    "precision",
    "data.root",
    "data.name",
    "data.lists",
    "data.image_size",
    "vqgan.weights",
    # no samples, masks or DICOM: a reconstruction is deterministic and needs the image alone
    "eval.input",
    "eval.output",
    "eval.batch_size",
    "eval.range",
)


def main() -> int:
    # settings: no list of values, as there is nothing to ablate in a reconstruction
    settings = config.parse(__doc__, READS)

    # torch is imported only after the settings: --help and a mistyped key answer at once
    from models.evaluation import reconstruction

    return reconstruction.main(settings)


if __name__ == "__main__":
    entry.run(main)
