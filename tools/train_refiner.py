"""Train the networks of models/refinement.py on twins: simulated patients with lesions and without.

    python dataSegmentation.py --profile small simulate.count=400 simulate.lesions=true data.root=runs/twins/data \
        data.lists=runs/twins/lists data.patient='^([0-9]+)'
    python -m tools.train_refiner runs/twins/data runs/refiner     # estimates, training, weights/refiner.safetensors

First both methods' estimates of bone are made for every patient by the weights of profile `small` (seconds and 6 MB
each, kept in the folder): without lesions, with those of the twin, and with compact nodules drawn here. Then the
corrector learns to put the bone right, and the finder what of the lesions is still missing: an hour for the estimates
of 400 patients and an hour for 3000 steps, on two cores. A GPU is used where there is one, and then wants a larger
--batch. The same command goes on where it was stopped. Sample number i is a function of i alone.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models import config
from models.refinement import CORRECTED, FINDER_SIZE, SIZE, BoneRefiner
from models.runtime import checkpoint, entry
from models.runtime.device import pick_device
from models.runtime.files import UserError
from models.training import interfaces
from tools.arguments import positive
from tools.network_training import Plan, Trainer
from tools.refiner_estimates import KINDS, LAYERS, estimates

OUT = config.ROOT / "weights" / "refiner.safetensors"
TEST_EVERY = 20  # every so many patients one is kept for validation

BATCH = 2  # patients, each with its twin
STEPS_AN_EPOCH = 50

# The corrector's objective, at SIZE x SIZE.
# Of the error in what the lesions of a kind add, over that in the image. Nodules cover a tenth of the pixels.
LESION_WEIGHTS = {"lesions": 15.0, "nodules": 300.0}
NODULES = 0.75  # share of the samples with compact nodules
LUNG_WEIGHT = 1.0  # of pixels in the lungs, added to OUTSIDE_WEIGHT
OUTSIDE_WEIGHT = 0.3
SOFT_ABS = 3e-3  # grey values: smaller errors count by their square
DETAIL_SIDE = 9  # pixels, of the mean that is taken away to compare detail

# The finder's objective, at FINDER_SIZE x FINDER_SIZE, in the lungs.
FINDER_WEIGHT = 0.005  # against the corrector's, so that both are about as large
SLOPE_WEIGHT = 115.0  # of (1 - share kept)^2 of a lesion, over the error of what is found, in squares of GREY
GREY = 0.01  # grey values, the unit of that error
BAND = (3, 17)  # pixels, of the means between which an error is as wide as a nodule
ALL_WIDTHS = 0.3  # weight of an error of any width, over one as wide as a nodule
CHANGED = 0.002  # grey values: a pixel to which a lesion adds more belongs to it
LEAST_PIXELS = 16  # of a lesion whose share kept is charged
NEAR = 8  # pixels around a lesion in which its share kept is measured
MOST_MISSED = 1.5  # the largest |1 - share kept| that is charged

# Each sample: a patient moved and shaded at random, alike for all its layers.
ANGLE = 0.12  # radians
SCALE = (0.85, 1.2)
SHIFT = 0.1  # of half the side
ASPECT = (0.93, 1.07)
BRIGHTNESS = (0.85, 1.1)


# --- samples ----------------------------------------------------------------------------------------------------------


class Samples:
    """Patients with lesions and without, moved at random, new in each epoch: {"layers": (B, 2, 4, S, S), "mask": (B, 1,
    S, S), "numbers": (B, S, S), see `number_lesions`, "weight": (B,), of what the lesions add}. S: FINDER_SIZE.

    count: samples in an epoch. moved: false for validation, where sample i is patient i as it is, with nodules.
    """

    def __init__(self, files: list[Path], count: int, moved: bool = True):
        self.patients = []
        for path in files:
            with np.load(path, allow_pickle=False) as arrays:
                layers = torch.from_numpy(arrays["layers"])  # (3, 4, S, S), float16; the kinds as in KINDS
                mask = torch.from_numpy(arrays["mask"])  # (S, S), bool
                if mask.shape[-1] != FINDER_SIZE:
                    raise UserError(
                        f"{path} is {mask.shape[-1]} pixels wide, not {FINDER_SIZE}; delete it and start again"
                    )
                self.patients.append((layers, mask))
        self.names = [str(number) for number in range(count)]
        self.moved = moved

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch; its samples follow those of the epoch before."""
        for indices in index_lists:
            first = epoch * len(self.names)
            samples = [self.sample(first + index) for index in indices]
            layers, masks, weights = zip(*samples)
            numbers = []
            for with_lesions, without in layers:
                added = with_lesions[LAYERS.index("soft")] - without[LAYERS.index("soft")]
                numbers.append(torch.from_numpy(number_lesions(added.numpy())))
            yield {
                "layers": torch.stack(layers),
                "mask": torch.stack(masks),
                "numbers": torch.stack(numbers),
                "weight": torch.tensor(weights),
            }

    def sample(self, number: int) -> tuple[Tensor, Tensor, float]:
        """Layers (2, 4, S, S), with lesions and without, lungs (1, S, S) and the lesions' weight of sample `number`; a
        pure function."""
        if not self.moved:
            layers, mask = self._patient(number, "nodules")
            return layers, mask, LESION_WEIGHTS["nodules"]
        random = np.random.default_rng([3, number])
        patient = random.integers(len(self.patients))
        kind = "nodules" if random.random() < NODULES else "lesions"
        layers, mask = self._patient(patient, kind)
        if random.random() < 0.5:
            layers = layers.flip(-1)
            mask = mask.flip(-1)

        # The affine map from a place in the sample to the place in the patient that it is taken from, both in [-1, 1]
        angle = random.uniform(-ANGLE, ANGLE)
        scale = 1 / random.uniform(*SCALE)
        aspect = random.uniform(*ASPECT)
        shift_x, shift_y = random.uniform(-SHIFT, SHIFT, 2)
        cosine = scale * math.cos(angle)
        sine = scale * math.sin(angle)
        rows = [
            [cosine * aspect, -sine, shift_x],
            [sine, cosine / aspect, shift_y],
        ]
        affine = torch.tensor(rows, dtype=torch.float32)[None]  # (1, 2, 3)
        grid = F.affine_grid(affine, [1, 1, *mask.shape[-2:]], align_corners=False)

        # one interpolation of everything; beyond the edge it is black
        stack = torch.cat([layers.flatten(0, 1), mask])[None]  # (1, 9, S, S)
        moved = F.grid_sample(stack, grid, align_corners=False)[0]
        moved_layers = moved[:-1].unflatten(0, layers.shape[:2])  # (2, 4, S, S)
        moved_mask = moved[-1:]
        brightness = random.uniform(*BRIGHTNESS)
        return moved_layers * brightness, moved_mask, LESION_WEIGHTS[kind]

    def _patient(self, patient: int, kind: str) -> tuple[Tensor, Tensor]:
        """Layers (2, 4, S, S), with lesions of a kind and without, and lungs (1, S, S), of a patient as it is."""
        layers, mask = self.patients[patient]
        with_and_without = [KINDS.index(kind), KINDS.index("without")]
        return layers[with_and_without].float(), mask[None].float()


def number_lesions(added: np.ndarray) -> np.ndarray:
    """Int64 (S, S): the number, from 1, of the lesion that a pixel belongs to or lies near; 0: of none. added: float32
    (S, S), what the lesions add to the soft tissue."""
    changed = cv2.GaussianBlur(added, (0, 0), 1.0) > CHANGED
    _, numbers, statistics, _ = cv2.connectedComponentsWithStats(changed.astype(np.uint8), connectivity=8)
    small = np.flatnonzero(statistics[:, cv2.CC_STAT_AREA] < LEAST_PIXELS)
    lesion = changed & ~np.isin(numbers, small)
    if not lesion.any():
        return np.zeros(added.shape, np.int64)

    # each pixel's distance to the nearest pixel of a lesion, and a label of that pixel
    distance, nearest = cv2.distanceTransformWithLabels(
        (~lesion).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    number_of_label = np.zeros(nearest.max() + 1, np.int64)
    number_of_label[nearest[lesion]] = numbers[lesion]
    return np.where(distance <= NEAR, number_of_label[nearest], 0)


# --- objective --------------------------------------------------------------------------------------------------------


def objective(networks: dict, batch: dict[str, Tensor], noise: interfaces.Noise) -> tuple[dict, dict]:
    """The sum of what both networks are charged, each for itself."""
    cxr, _, bone, unlike = batch["layers"].flatten(0, 1).split(1, dim=1)  # (2 B, 1, S, S) each
    no_bone = networks["refiner"].no_bone(cxr, bone, unlike)
    corrector, logged = correction_loss(no_bone, batch)
    found = networks["refiner"].find(cxr, bone, unlike, no_bone.detach())
    finder, more = finding_loss(found, no_bone.detach(), batch)
    loss = corrector + FINDER_WEIGHT * finder
    return {"refiner": loss}, {"loss": loss, **logged, **more}


def correction_loss(no_bone: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
    """The error of the corrected soft tissue, of its detail, and of what the lesions add to it. no_bone: the
    corrector's answer, (2 B, 1, S, S)."""
    cxr, soft, bone, _ = batch["layers"].flatten(0, 1).split(1, dim=1)  # (2 B, 1, S, S) each
    coarser = FINDER_SIZE // SIZE
    corrected = cxr - bone + no_bone
    error = F.avg_pool2d(corrected - soft, coarser)  # (2 B, 1, s, s)

    # The error and its detail, what a local mean leaves of it, heavier in the lungs
    detail = error - _local_mean(error, DETAIL_SIDE)
    lungs = F.avg_pool2d(batch["mask"], coarser).repeat_interleave(2, dim=0)  # (2 B, 1, s, s)
    weight = OUTSIDE_WEIGHT + LUNG_WEIGHT * lungs
    image = (weight * (soft_abs(error) + soft_abs(detail))).mean()

    # Both twins have the same bone, so the results must differ by the lesions and by nothing else.
    with_lesions, without = _twins(error)  # (B, 1, s, s) each
    difference = with_lesions - without
    error_per_pair = soft_abs(difference).mean((1, 2, 3))  # (B,)
    lesion_error = (batch["weight"] * error_per_pair).mean()

    # for the log: the share of what lesions add that the result contains
    soft_with_lesions, soft_without = _twins(F.avg_pool2d(soft, coarser))
    added = soft_with_lesions - soft_without
    kept = 1 + (difference * added).sum() / added.square().sum()
    return image + lesion_error, {"image": image, "lesions": lesion_error, "kept": kept}


def finding_loss(found: Tensor, no_bone: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
    """The error of what is found of lesions that the corrector leaves missing, where there are some and where there are
    none, and what each lesion lacks in the end. found, no_bone: both networks' answers, (2 B, 1, S, S) each."""
    cxr, soft, bone, _ = batch["layers"].flatten(0, 1).split(1, dim=1)  # (2 B, 1, S, S) each
    lungs = batch["mask"]
    found_with, found_without = _twins(found)  # (B, 1, S, S) each
    found_with = lungs * found_with
    found_without = lungs * found_without

    # What lesions add to the estimated bone, and not to the true one, was taken for bone. The corrector gives back a
    # part of it; the finder is to find the rest.
    bone_with, bone_without = _twins(bone)
    true_with, true_without = _twins(cxr - soft)
    absorbed = (bone_with - bone_without) - (true_with - true_without)
    no_bone_with, no_bone_without = _twins(CORRECTED * no_bone)
    missing = absorbed - (no_bone_with - no_bone_without)

    def cost(error: Tensor) -> Tensor:
        narrow, wide = BAND
        fine = _local_mean(error, narrow)
        band = fine - _local_mean(fine, wide)
        squares = band.square() + ALL_WIDTHS * error.square()
        return (lungs * squares).sum() / lungs.sum().clamp(min=1) / GREY**2

    missed = cost(found_with - missing)
    false = cost(found_without)

    soft_with, soft_without = _twins(soft)
    added = soft_with - soft_without
    kept = added - missing + found_with - found_without
    every = [shares_kept(*lesions) for lesions in zip(added, kept, batch["numbers"])]
    shares = torch.cat(every)
    if len(shares) == 0:  # no lesion is large enough
        shares = added.new_ones(1)
    slope = (1 - shares).clamp(-MOST_MISSED, MOST_MISSED).square().mean()
    loss = missed + false + SLOPE_WEIGHT * slope
    logged = {"missed": missed, "false": false, "slope": slope, "median": shares.detach().median()}
    return loss, logged


def shares_kept(added: Tensor, kept: Tensor, numbers: Tensor) -> Tensor:
    """(lesions,): the slope of what is kept on what was added, (S, S) each, around each lesion, as insertion.slope
    measures it. numbers: as `number_lesions` gives them."""
    place = numbers.flatten()
    x = added.flatten()
    y = kept.flatten()

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(int(numbers.max()) + 1).index_add(0, place, values)

    count = sums(torch.ones_like(x)).clamp(min=1)
    mean_x = sums(x) / count
    mean_y = sums(y) / count
    covariance = sums(x * y) / count - mean_x * mean_y
    variance = sums(x * x) / count - mean_x.square()
    is_lesion = variance > 1e-6  # squares of grey values; numbers that no pixel has, have none
    is_lesion[0] = False
    return covariance[is_lesion] / variance[is_lesion]


def _twins(x: Tensor) -> tuple[Tensor, ...]:
    """(2 B, 1, S, S) -> those with lesions and those without, (B, 1, S, S) each."""
    return x.unflatten(0, (-1, 2)).unbind(1)


def _local_mean(x: Tensor, side: int) -> Tensor:
    """The mean of the square of `side` pixels around each pixel of (B, 1, S, S)."""
    # one direction after the other: the same, and for 17 pixels several times as fast
    columns = F.avg_pool2d(x, (side, 1), 1, (side // 2, 0), count_include_pad=False)
    return F.avg_pool2d(columns, (1, side), 1, (0, side // 2), count_include_pad=False)


def soft_abs(x: Tensor) -> Tensor:
    """|x|, rounded off below SOFT_ABS (Charbonnier 1994)."""
    return torch.sqrt(x.square() + SOFT_ABS**2) - SOFT_ABS


# --- training ---------------------------------------------------------------------------------------------------------


def plan_of(steps: int, batch: int = BATCH) -> Plan:
    """The training of so many steps. batch: patients in a step, each with its twin."""
    return Plan(
        steps=steps,
        longest_epoch=STEPS_AN_EPOCH,
        batch=batch,
        rate=1e-3,
        last_rate=0.01,
        warmup=50,
        decay=1e-3,
        average=0.99,
    )


def train(files: list[Path], plan: Plan, folder: Path, start: Path | None, device: str = "auto") -> BoneRefiner:
    """The averaged network; goes on from the states in the folder. start: weights to start from; None: random ones."""
    torch.manual_seed(0)
    network = checkpoint.init_from(BoneRefiner(), start)
    network = network.to(pick_device(device), memory_format=torch.channels_last)  # a fifth faster on a CPU
    # a patient is wholly on one side, in all its versions
    tests = [path for path in files if _is_test(path)]
    trained = [path for path in files if not _is_test(path)]
    samples = Samples(trained, plan.samples_an_epoch)
    validation = Samples(tests, len(tests), moved=False) if tests else None
    facts = {"patients": len(trained), "batch": plan.batch, "start": str(start)}
    return Trainer(folder, "refiner", network, objective, samples, plan, validation, facts=facts).to_the_end()


def _is_test(path: Path) -> bool:
    number = path.stem.split("_")[1]
    return number.isdigit() and int(number) % TEST_EVERY == TEST_EVERY // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="twins, as dataSegmentation.py leaves them with simulate.lesions=true")
    parser.add_argument("folder", type=Path, help="estimates, states and log")
    parser.add_argument("--steps", type=positive, default=2000, help=f"rounded up to whole epochs of {STEPS_AN_EPOCH}")
    parser.add_argument("--batch", type=positive, default=BATCH, help="patients in a step, each with its twin")
    parser.add_argument("--device", default="auto", help="as `device` in config.yaml, for the training")
    parser.add_argument("--start", type=Path, help="weights to start from; random ones without it")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    files = estimates(options.data, options.folder / "estimates")
    plan = plan_of(options.steps, options.batch)
    network = train(files, plan, options.folder, options.start, options.device)
    network.half().save(options.out)


if __name__ == "__main__":
    entry.run(main)
