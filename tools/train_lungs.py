"""Train the network of models/lungs.py on simulated patients, spoiled in every way that real X-rays are
(lung_samples/).

    python -m tools.train_lungs runs/lungs                       # patients, training and weights/lungs.safetensors
    python -m tools.train_lungs runs/lungs --patients 4 --steps 20 --out runs/lungs/tiny.safetensors

The same command goes on where it was stopped. Sample number i is a function of i alone. About half an hour on two
cores.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from models import config, lungs
from models.runtime import entry
from models.runtime.files import replacing
from models.simulate import phantom
from models.training import interfaces, loop
from tools.lung_samples.sample import SIZE, sample

FIRST_SEED = 10_000  # of the patients, far from those of the tests
PATIENTS_A_FILE = 50

BATCH = 16
RATE = 2e-3  # AdamW, the highest learning rate
LAST_RATE = 1e-5  # added all along, so that the last steps still move
WARMUP = 100  # steps in which the rate rises
WEIGHT_DECAY = 1e-4
MAX_NORM = 1.0  # gradients above are scaled down to it
EMA_DECAY = 0.997  # per step, of the averaged weights, which are what is kept
STEPS_AN_EPOCH = 100  # the samples never end; an epoch is when the log and the weights are written
SAVE_EVERY = 60  # seconds
NEVER = 10**9  # epochs between sample pictures, of which there are none


# --- Patients ---------------------------------------------------------------------------------------------------------


def patients(folder: Path, count: int) -> np.ndarray:
    """(count, 3, SIZE, SIZE) uint8: CXR and soft tissue times 255, lungs.

    They are kept in the folder, and drawn only if they are not there yet.
    """
    blocks = []
    end = FIRST_SEED + count
    for first in range(FIRST_SEED, end, PATIENTS_A_FILE):
        # A block of patients a file, so that a run that is cut off loses few of them
        path = folder / f"{first}.npy"
        if not path.is_file():
            seeds = range(first, min(first + PATIENTS_A_FILE, end))
            block = np.stack([layers(seed) for seed in seeds])
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, block)
        blocks.append(np.load(path))
    return np.concatenate(blocks)


def layers(seed: int) -> np.ndarray:
    """One simulated patient, (3, SIZE, SIZE) uint8: CXR and soft tissue times 255, lungs."""
    patient = phantom.simulate(seed, SIZE)
    cxr = np.round(255 * patient.cxr)
    soft = np.round(255 * patient.soft)
    return np.stack([cxr, soft, patient.mask]).astype(np.uint8)


# --- Training ---------------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset):
    """Spoiled samples for the loop, new ones in each epoch.

    Batches are {"image": (B, 2, C, C), "target": (B, 1, C, C)} with C = lung_samples.sample.CANVAS.
    """

    def __init__(self, pool: np.ndarray, count: int, workers: int):
        """pool: patients; count: samples in an epoch; workers: processes that make them."""
        self.pool = pool
        self.names = [str(number) for number in range(count)]
        self.workers = workers

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        cv2.setNumThreads(0)  # the processes that make samples share the cores already
        features, target = sample(number, self.pool)
        return {"image": features, "target": target}

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch; its samples follow those of the epoch before."""
        first = epoch * len(self)
        numbers = []  # a list of sample numbers for each batch
        for indices in index_lists:
            numbers.append([first + index for index in indices])
        loader = torch.utils.data.DataLoader(self, batch_sampler=numbers, num_workers=self.workers)
        return iter(loader)


class ExportedLungNet(lungs.LungNet):
    """The network, written as models/lungs.py reads it: the tensors alone, in half precision."""

    def save(self, path: Path, **notes) -> None:
        """Write the weights. notes: what the loop says of them; not kept."""
        half = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        with replacing(path) as temporary:
            save_file(half, temporary)


def objective(networks: dict, batch: dict[str, Tensor], noise: interfaces.Noise) -> tuple[dict, dict]:
    """Cross entropy plus 1 - Dice of each image."""
    image = batch["image"].contiguous(memory_format=torch.channels_last)  # (B, 2, C, C)
    target = batch["target"]  # (B, 1, C, C)
    logits = networks["lungs"](image)  # (B, 1, C, C)
    entropy = F.binary_cross_entropy_with_logits(logits, target)

    # Dice = 2 |A and B| / (|A| + |B|) of probabilities; the 1 pixel added to both is for masks without lungs.
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum((1, 2, 3))  # (B,)
    total = (probability + target).sum((1, 2, 3))  # (B,)
    dice = (2 * overlap + 1) / (total + 1)
    loss = entropy + (1 - dice).mean()
    return {"lungs": loss}, {"loss": loss}


def rate_at(step: int, steps: int) -> float:
    """Learning rate: a short rise, then half a cosine down."""
    rise = min(1, (step + 1) / WARMUP)
    angle = math.pi * min(step, steps) / steps  # 0 to pi
    fall = 0.5 + 0.5 * math.cos(angle)  # 1 to 0
    return RATE * rise * fall + LAST_RATE


class Trainer(loop.Trainer):
    """The one loop, with a learning rate that changes in each step and gradients of bounded norm."""

    def rate(self, phase: str) -> float:
        steps_an_epoch = math.ceil(len(self.data.names) / self.course.batch_size)
        steps = self.course.epochs * steps_an_epoch
        return rate_at(self.progress.step, steps)

    def gradients(self, batch: dict, size: int) -> tuple[dict[str, float], float]:
        values, norm = super().gradients(batch, size)
        if norm > MAX_NORM:
            scale = MAX_NORM / norm
            for parameter in self.parameters["lungs"]:
                parameter.grad.mul_(scale)
        return values, norm


def train(pool: np.ndarray, steps: int, folder: Path, workers: int, network: ExportedLungNet) -> ExportedLungNet:
    """The averaged network after `steps`, rounded up to whole epochs; goes on from the states in the folder."""
    network = network.to(memory_format=torch.channels_last)
    steps_an_epoch = min(steps, STEPS_AN_EPOCH)
    course = config.Course(
        epochs=math.ceil(steps / steps_an_epoch),
        batch_size=BATCH,
        learning_rate=RATE,
        milestones=(),
        gamma=1.0,
        average=EMA_DECAY,
        start=None,
    )
    train_settings = config.AnyTraining(
        seed=0,
        workers=workers,
        accumulate=1,
        checkpointing=False,
        validate_every=1,
        sample_every=NEVER,
        save_every=SAVE_EVERY,
    )
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    samples = Samples(pool, steps_an_epoch * BATCH, workers)
    facts = {"patients": len(pool), "samples in an epoch": len(samples)}
    trainer = Trainer(
        folder,
        {"lungs": network},
        {"lungs": optimizer},
        objective,
        samples,
        None,
        course=course,
        train=train_settings,
        learning_rates={"lungs": RATE},
        facts=facts,
    )
    status = trainer.run()
    if status:  # stopped, or no finite loss: the loop has said why
        raise SystemExit(status)
    return trainer.exported()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="patients, states and log")
    parser.add_argument("--patients", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=700, help=f"rounded up to whole epochs of {STEPS_AN_EPOCH}")
    parser.add_argument("--workers", type=int, default=1, help="processes that make samples")
    parser.add_argument("--out", type=Path, default=lungs.WEIGHTS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    pool = patients(options.folder, options.patients)
    torch.manual_seed(0)
    network = train(pool, options.steps, options.folder, options.workers, ExportedLungNet())
    network.save(options.out)


if __name__ == "__main__":
    entry.run(main)
