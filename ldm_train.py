"""Train the noise estimator of BS-LDM on the latents of a trained ML-VQGAN.

    python ldm_train.py                          the paper's setting on data/
    python ldm_train.py --profile demo           small, minutes on a CPU (after: vq-gan_train.py --profile demo)
    python ldm_train.py ldm.teacher=runs/ldm/weights.safetensors     a student of few steps into <runs>/ldm_student/
    torchrun --nproc_per_node=8 ldm_train.py     eight GPUs

Reads vqgan.weights, <data.root>/CXR, BS and the split lists; writes <runs>/ldm/. Of a shipped autoencoder and one that
was trained into <runs>/vqgan, the latter is taken; the first line says which.
The same command goes on where it was stopped.
"""

from models import config
from models.runtime import entry

STUDENT = ("ldm.teacher", "distill")  # what a distillation alone reads
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
    "ldm.qkv_by_head",
    "ldm.offset_noise",
    "ldm.epsilon",
    *config.keys("ldm", config.Course),
    # for the sample pictures, and for the weights, which say what they work with
    *config.keys("ldm", config.BsldmSampling),
    "eval.residual",
    "eval.strength",
    "augment",
    # latents are read from memory: no processes load images
    *(key for key in config.keys("train", config.Train) if key != "train.workers"),
)
PICTURE_STEPS = 50  # DDPM steps of the sample pictures


def main() -> int:
    settings = config.parse(__doc__, READS)

    # torch is imported only after the settings: --help and a mistyped key answer at once
    from models import pipelines
    from models.training import distillation, noise_estimator

    if settings.ldm.teacher is not None:
        return distillation.train(settings, settings.ldm, pipelines.BSLDM, masked=False, reads=READS)

    # few steps: the pictures show the course of a training, not its scores
    sampling = {"steps": PICTURE_STEPS, "clip": settings.ldm.clip, "clip_rate": settings.ldm.clip_rate}
    sampling["condition"] = settings.ldm.condition
    reads = tuple(key for key in READS if key not in STUDENT)
    return noise_estimator.train(settings, settings.ldm, pipelines.BSLDM, masked=False, sampling=sampling, reads=reads)


if __name__ == "__main__":
    entry.run(main)
