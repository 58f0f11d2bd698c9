"""Train the ML-VQGAN, the autoencoder that the diffusion works in.

    python vq-gan_train.py                          the paper's setting on data/
    python vq-gan_train.py --profile demo           small, minutes on a CPU (after: dataSegmentation.py --profile demo)
    torchrun --nproc_per_node=8 vq-gan_train.py     eight GPUs

Reads <data.root>/CXR, BS and Mask and the split lists; writes <runs>/vqgan/.
The same command goes on where it was stopped.
"""

from models import config
from models.runtime import entry

# the keys that --help shows, and whose changes a resumed training reports
READS = (
    "device",
    "precision",
    "compile",
    "features",
    "runs",
    "data.root",
    "data.name",
    "data.lists",
    "data.image_size",
    # not vqgan.weights, which this script writes; lesions and timesteps belong to the noise estimators
    *(key for key in config.keys("vqgan", config.Vqgan) if key != "vqgan.weights"),
    *config.keys("augment", config.ImageAugmentation),
    *config.keys("train", config.AnyTraining),
)


def main() -> int:
    settings = config.parse(__doc__, READS)
    # sizes that do not fit are refused before data and networks are looked at
    config.check_autoencoder_size(settings)

    # torch is imported only after the settings: --help and a mistyped key answer at once
    from models.training import autoencoder

    return autoencoder.train(settings, READS)


if __name__ == "__main__":
    entry.run(main)
