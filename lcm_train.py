"""Train the noise estimator of GL-LCM on the latents of a trained ML-VQGAN, whole and masked pairs alike.

    python lcm_train.py                          the paper's setting on data/
    python lcm_train.py --profile demo           small, minutes on a CPU (after: vq-gan_train.py --profile demo)
    torchrun --nproc_per_node=8 lcm_train.py     eight GPUs

Reads vqgan.weights, <data.root>/CXR, BS, Mask (else the lungs are found) and the split lists; writes <runs>/lcm/.
The same command goes on where it was stopped.
"""
from models import config, pipelines
from models.runtime import entry
from models.training import noise_estimator as estimator

READS = ("runs", "device", "precision", "compile", "data.root", "data.name", "data.lists", "data.image_size", "vqgan.weights", "unet",
         "lcm.qkv_by_head", "lcm.guidance", "lcm.alpha", "lcm.clip_global", "lcm.clip_local", "lcm.clip_rate", "lcm.fusion", "lcm.blend",
         "lcm.offset_noise", "lcm.epochs", "lcm.batch_size", "lcm.learning_rate", "lcm.epsilon", "lcm.milestones", "lcm.gamma",
         "lcm.average", "lcm.start", "augment", "train")
PICTURE_STEPS = 8  # consistency steps of the sample pictures


def main() -> int:
    settings = config.parse(__doc__, READS)
    config.check_image_size(settings)
    config.keep(settings, f"{settings.runs}/lcm")

    def pipeline(vqgan, unet):
        return pipelines.GLLCM(vqgan, unet, **{**pipelines.gllcm_options(settings.lcm), "steps": PICTURE_STEPS})

    return estimator.train(settings, settings.lcm, "lcm", "scaled_linear", masked=True, pipeline=pipeline)


if __name__ == "__main__":
    entry.run(main)
