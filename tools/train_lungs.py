"""Train the network of models/lungs.py on simulated patients, spoiled in every way that real X-rays are
(lung_samples/).

    python -m tools.train_lungs runs/lungs                       # patients, training and weights/lungs.safetensors
    python -m tools.train_lungs runs/lungs --patients 4 --steps 20 --out runs/lungs/tiny.safetensors

The same command goes on where it was stopped. Sample number i is a function of i alone. About half an hour on two
cores.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from models import lungs
from models.runtime import entry
from models.runtime.files import replacing
from models.simulate import phantom
from models.training import interfaces
from tools.arguments import positive
from tools.lung_samples.sample import SIZE, sample
from tools.network_training import Plan, Trainer

FIRST_SEED = 10_000  # of the patients, far from those of the tests
PATIENTS_A_FILE = 50

STEPS_AN_EPOCH = 100


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


def plan_of(steps: int) -> Plan:
    """The training of so many steps."""
    return Plan(
        steps=steps,
        longest_epoch=STEPS_AN_EPOCH,
        batch=16,
        rate=2e-3,
        last_rate=0.005,
        warmup=100,
        decay=1e-4,
        average=0.997,
    )


def train(pool: np.ndarray, plan: Plan, folder: Path, workers: int, network: ExportedLungNet) -> ExportedLungNet:
    """The averaged network; goes on from the states in the folder."""
    network = network.to(memory_format=torch.channels_last)
    samples = Samples(pool, plan.samples_an_epoch, workers)
    facts = {"patients": len(pool), "samples in an epoch": len(samples)}
    return Trainer(folder, "lungs", network, objective, samples, plan, workers=workers, facts=facts).to_the_end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="patients, states and log")
    parser.add_argument("--patients", type=positive, default=1500)
    parser.add_argument("--steps", type=positive, default=700, help=f"rounded up to whole epochs of {STEPS_AN_EPOCH}")
    parser.add_argument("--workers", type=int, default=1, help="processes that make samples")
    parser.add_argument("--out", type=Path, default=lungs.WEIGHTS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    pool = patients(options.folder, options.patients)
    torch.manual_seed(0)
    network = train(pool, plan_of(options.steps), options.folder, options.workers, ExportedLungNet())
    network.save(options.out)


if __name__ == "__main__":
    entry.run(main)
