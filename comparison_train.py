"""Train one of the methods that the papers compare with: CXR in, soft tissue out.

    python comparison_train.py comparison.method=resnet_bs                 the method's own setting on data/
    python comparison_train.py --profile demo comparison.method=vae        small, a minute or two on a CPU
    torchrun --nproc_per_node=8 comparison_train.py comparison.method=mca_net        eight GPUs

Reads <data.root>/CXR and BS and the split lists; writes <runs>/comparison/<method>/. Its settings are the section
comparison.<method>. The same command goes on where it was stopped.
"""

from models import config
from models.runtime import entry

READS = (
    "device",
    "precision",
    "features",
    "runs",
    "data.root",
    "data.name",
    "data.lists",
    # not comparison.weights, which this script writes
    "comparison.method",
    *(f"comparison.{name}" for name in config.COMPARISON_METHODS),
    *config.keys("augment", config.ImageAugmentation),
    "train.seed",
    "train.workers",
    "train.accumulate",
    "train.validate_every",
    "train.sample_every",
    "train.save_every",
)


def main() -> int:
    settings = config.parse(__doc__, READS)

    # torch is imported only after the settings: --help and a mistyped key answer at once
    from models.training import comparison

    return comparison.train(settings, READS)


if __name__ == "__main__":
    entry.run(main)
