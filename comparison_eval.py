"""Suppress the bones in chest X-rays with one of the methods that the papers compare with.

    python comparison_eval.py comparison.method=resnet_bs                  the test list, with the weights that
                                                                           comparison_train.py left
    python comparison_eval.py comparison.method=vae eval.input=scan.png    one image, or a folder of them
    torchrun --nproc_per_node=8 comparison_eval.py comparison.method=bs_diff         eight GPUs share the images
    python comparison_eval.py --profile demo comparison.method=vae         small, seconds on a CPU

Writes <eval.output>/<name>.png (size and depth of the input), panels/ (CXR | result | truth | taken away) and
summary.json; unless eval.output says otherwise, into <runs>/comparison_eval/<method>/. With eval.dicom=true also
dicom/; with eval.nodules=nodules.npz insertion.txt and insertion.csv. The X-rays are seen at the size that the weights
were trained at, and results are enlarged to their own.
"""

from models import config
from models.runtime import entry

# these methods see no masks, draw one result on one path, show no steps, and are not refined
UNREAD = ("eval.masks", "eval.samples", "eval.paths", "eval.snapshots", "eval.refiner")
READS = (
    "runs",
    "device",
    "precision",
    "data.root",
    "data.name",
    "data.lists",
    "comparison.method",
    "comparison.weights",
    # the one method that samples
    "comparison.bs_diff.sampler",
    "comparison.bs_diff.steps",
    *(key for key in config.keys("eval", config.Eval) if key not in UNREAD),
)


def main() -> int:
    settings = config.parse(__doc__, READS)

    # torch is imported only after the settings: --help and a mistyped key answer at once
    from models.evaluation import comparison

    return comparison.main(settings)


if __name__ == "__main__":
    entry.run(main)
