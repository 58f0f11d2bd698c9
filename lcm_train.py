"""Train the noise estimator of GL-LCM on the latents of a trained ML-VQGAN, whole and masked pairs alike.

    python lcm_train.py                          the paper's setting on data/
    python lcm_train.py --profile demo           small, minutes on a CPU (after: vq-gan_train.py --profile demo)
    python lcm_train.py lcm.teacher=runs/lcm/weights.safetensors     a student of few steps into <runs>/lcm_student/
    torchrun --nproc_per_node=8 lcm_train.py     eight GPUs

Reads vqgan.weights, <data.root>/CXR, BS, Mask (else the lungs are found) and the split lists; writes <runs>/lcm/. Of a
shipped autoencoder and one that was trained into <runs>/vqgan, the latter is taken; the first line says which.
The same command goes on where it was stopped.
"""

from models import config
from models.runtime import entry

PICTURE_STEPS = 8  # consistency steps of the sample pictures
STUDENT = ("lcm.teacher", "distill")  # what a distillation alone reads
# the keys that --help shows, and whose changes a resumed training reports
READS = (
    "device",
    "precision",
    "compile",
    "runs",
    "data.root",
    "data.name",
    "data.lists",
    "data.image_size",
    "vqgan.weights",
    "unet",
    *STUDENT,
    "lcm.qkv_by_head",
    "lcm.offset_noise",
    "lcm.epsilon",
    *config.keys("lcm", config.Course),
    # for the sample pictures, and for the weights, which say what they work with
    *config.keys("lcm", config.GllcmSampling),
    *config.keys("lcm", config.GllcmFusion),
    "eval.residual",
    "eval.strength",
    "augment",
    # latents are read from memory: no processes load images
    *(key for key in config.keys("train", config.Train) if key != "train.workers"),
)


def main() -> int:
    settings = config.parse(__doc__, READS)

    # torch is imported only after the settings: --help and a mistyped key answer at once
    from models import pipelines
    from models.training import distillation, noise_estimator

    if settings.lcm.teacher is not None:
        return distillation.train(settings, settings.lcm, pipelines.GLLCM, masked=True, reads=READS)

    # few steps: the pictures show the course of a training, not its scores
    sampling = {**pipelines.GLLCM.sampling_keywords(settings), "steps": PICTURE_STEPS}
    reads = tuple(key for key in READS if key not in STUDENT)
    return noise_estimator.train(settings, settings.lcm, pipelines.GLLCM, masked=True, sampling=sampling, reads=reads)


if __name__ == "__main__":
    entry.run(main)
