"""Train the network of models/refinement.py on twins: simulated patients with lesions and without.

    python dataSegmentation.py --profile small simulate.count=400 simulate.lesions=true data.root=runs/twins/data \
        data.lists=runs/twins/lists data.patient='^([0-9]+)'
    python -m tools.train_refiner runs/twins/data runs/refiner     # estimates, training, weights/refiner.safetensors

First both methods' estimates of bone are made for every patient and twin, by the weights of profile `small` (seconds
each, kept in the folder); then the network learns to correct them, half an hour on two cores. The same command goes on
where it was stopped. Sample number i is a function of i alone.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models import config, images, pipelines
from models.data import augment, lists
from models.refinement import SIZE, BoneRefiner, unlike_lines
from models.runtime.files import UserError, replacing
from models.training import loop

OUT = config.ROOT / "weights" / "refiner.safetensors"
VERSIONS = (0.7, 0.0)  # least flattening of bone, of each version of the patients; the most is 1
TEST_EVERY = 20  # every so many patients one is kept for validation
LAYERS = ("cxr", "soft", "bone", "unlike")  # of an estimate, in this order; unlike: see refinement.unlike_lines

BATCH = 2  # patients, each with its twin
RATE = 1e-3  # AdamW, the highest learning rate
LAST_RATE = 0.01  # of it, added all along
WARMUP = 50  # steps in which the rate rises
WEIGHT_DECAY = 1e-3
MAX_NORM = 1.0  # gradients above are scaled down to it
EMA_DECAY = 0.99
STEPS_AN_EPOCH = 50
SAVE_EVERY = 60  # seconds
NEVER = 10**9  # epochs between sample pictures, of which there are none

# The objective.
LESION_WEIGHT = 12.0  # of the error in what lesions add, over that in the image
LUNG_WEIGHT = 1.0  # of pixels in the lungs, added to OUTSIDE_WEIGHT
OUTSIDE_WEIGHT = 0.3
SOFT_ABS = 3e-3  # grey values: smaller errors count by their square
DETAIL_SIDE = 9  # pixels, of the mean that is taken away to compare detail

# Each sample: a patient moved and shaded at random, alike for all its layers.
ANGLE = 0.12  # radians
SCALE = (0.85, 1.2)
SHIFT = 0.1  # of half the side
ASPECT = (0.93, 1.07)
BRIGHTNESS = (0.85, 1.1)


# --- estimates --------------------------------------------------------------------------------------------------------


def estimates(data: Path, folder: Path) -> list[Path]:
    """A file per patient and version in the folder, made where it is missing; see `estimate`."""
    pairs = lists.find_pairs(data)
    names = lists.with_twins(pairs)
    if not names:
        raise UserError(f"{data} holds no twins; make them with simulate.lesions=true")
    settings = config.parse("", (), ["--profile", "small", "eval.refiner=null", "eval.strength=1.0"])
    # drawn alternately, so that the refiner knows the errors of both
    methods = [method.from_settings(settings) for method in (pipelines.BSLDM, pipelines.GLLCM)]
    files = []
    for version, least in enumerate(VERSIONS):
        augmentation = replace(settings.augment, bone_flat=(least, 1.0))
        for number, name in enumerate(names):
            path = folder / f"{version}_{name}.npz"
            files.append(path)
            if path.is_file():
                continue
            method = methods[(number + version) % len(methods)]
            layers = [
                estimate(pairs[twin], f"{version}/{name}", augmentation, method) for twin in (name, name + lists.TWIN)
            ]
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, layers=np.stack([layers[0][0], layers[1][0]]), mask=layers[0][1])
            print(path, flush=True)
    return files


def estimate(pair, key: str, augmentation, method: pipelines.Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """(LAYERS of one X-ray, float16 (4, SIZE, SIZE); its lungs, bool (SIZE, SIZE)).

    pair: the files of CXR, soft tissue and mask. key: by which both twins are changed alike.
    """
    side = method.image_size
    cxr, soft = (images.resize(images.read(path).pixels, (side, side)).astype(np.float32) for path in pair[:2])
    mask = images.resize(images.read_mask(pair[2]).astype(np.float32), (side, side))

    # changed as training images are; the mask only moves
    moves = replace(augmentation, contrast=0.0, gamma=0.0, sharpen=0.0, noise=0.0)
    changed = augment.augment(augment.change_bone(cxr, soft, augmentation, key), augmentation, key)
    target = augment.augment(soft, augmentation, key)
    lungs = augment.augment(mask, moves, key) >= 0.5

    signed = images.to_signed(torch.from_numpy(np.ascontiguousarray(changed)))[None, None]  # (1, 1, S, S)
    result = images.to_unit(method(signed, [key], [lungs]))[0, 0].numpy()
    layers = [
        cv2.resize(layer, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for layer in (changed, target, changed - result)
    ]
    small_lungs = cv2.resize(lungs.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA) >= 0.5
    layers.append(unlike_lines(torch.from_numpy(changed - result)[None, None])[0, 0].numpy())
    return np.stack(layers).astype(np.float16), small_lungs


# --- training ---------------------------------------------------------------------------------------------------------


class Samples:
    """Patients with their twins, moved at random, new in each epoch: {"layers": (B, 2, 4, S, S), "mask": (B, 1, S, S)}.

    count: samples in an epoch. moved: false for validation, where sample i is patient i as it is.
    """

    def __init__(self, files: list[Path], count: int, moved: bool = True):
        self.patients = []
        for path in files:
            with np.load(path, allow_pickle=False) as arrays:
                self.patients.append((torch.from_numpy(arrays["layers"]), torch.from_numpy(arrays["mask"])))
        self.names = [str(number) for number in range(count)]
        self.moved = moved

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch; its samples follow those of the epoch before."""
        for indices in index_lists:
            samples = [self.sample(epoch * len(self.names) + index) for index in indices]
            layers, masks = zip(*samples)
            yield {"layers": torch.stack(layers), "mask": torch.stack(masks)}

    def sample(self, number: int) -> tuple[Tensor, Tensor]:
        """Layers (2, 4, S, S) and lungs (1, S, S) of sample `number`; a pure function."""
        if not self.moved:
            layers, mask = self.patients[number]
            return layers.float(), mask[None].float()
        g = np.random.default_rng([3, number])
        layers, mask = self.patients[g.integers(len(self.patients))]
        layers = layers.float()
        mask = mask[None].float()
        if g.random() < 0.5:
            layers = layers.flip(-1)
            mask = mask.flip(-1)

        # one interpolation of everything; beyond the edge it is black
        angle = g.uniform(-ANGLE, ANGLE)
        scale = 1 / g.uniform(*SCALE)
        aspect = g.uniform(*ASPECT)
        shift = g.uniform(-SHIFT, SHIFT, 2)
        cosine = scale * math.cos(angle)
        sine = scale * math.sin(angle)
        rows = [[cosine * aspect, -sine, shift[0]], [sine, cosine / aspect, shift[1]]]
        grid = F.affine_grid(torch.tensor(rows, dtype=torch.float32)[None], [1, 1, SIZE, SIZE], align_corners=False)
        stack = torch.cat([layers.flatten(0, 1), mask])[None]  # (1, 9, S, S)
        moved = F.grid_sample(stack, grid, align_corners=False)[0]
        return moved[:-1].unflatten(0, (2, len(LAYERS))) * g.uniform(*BRIGHTNESS), moved[-1:]


def objective(networks: dict, batch: dict[str, Tensor], noise: loop.Noise) -> tuple[dict, dict]:
    """The error of the refined soft tissue, of its detail, and of what the lesions add to it."""
    layers = batch["layers"]  # (B, 2, 4, S, S): patient with lesions, without
    cxr, soft, bone, unlike = layers.flatten(0, 1).split(1, dim=1)  # (2 B, 1, S, S) each
    gate, share, addition = networks["refiner"](cxr, bone, unlike)
    error = cxr - (gate * bone - share * unlike + addition) - soft
    weight = OUTSIDE_WEIGHT + LUNG_WEIGHT * batch["mask"].repeat_interleave(2, dim=0)
    detail = error - F.avg_pool2d(error, DETAIL_SIDE, 1, DETAIL_SIDE // 2, count_include_pad=False)
    image = (weight * (soft_abs(error) + soft_abs(detail))).mean()

    # Both twins have the same bone, so the results must differ by the lesions and by nothing else.
    with_lesions, without = error.unflatten(0, (-1, 2)).unbind(1)
    lesions = soft_abs(with_lesions - without).mean()
    loss = image + LESION_WEIGHT * lesions

    # for the log: the share of what lesions add that the result contains, as the insertion test measures it
    added = soft.unflatten(0, (-1, 2))
    added = added[:, 0] - added[:, 1]
    kept = 1 + ((with_lesions - without) * added).sum() / added.square().sum()
    return {"refiner": loss}, {"loss": loss, "image": image, "lesions": lesions, "kept": kept}


def soft_abs(x: Tensor) -> Tensor:
    """|x|, rounded off below SOFT_ABS (Charbonnier 1994)."""
    return torch.sqrt(x.square() + SOFT_ABS**2) - SOFT_ABS


class Trainer(loop.Trainer):
    """The one loop, with a learning rate that changes in each step and gradients of bounded norm."""

    def rate(self, phase: str) -> float:
        """A short rise, then half a cosine down."""
        step = self.progress.step
        steps = self.course.epochs * math.ceil(len(self.data.names) / self.course.batch_size)
        rise = min(1, (step + 1) / WARMUP)
        fall = 0.5 + 0.5 * math.cos(math.pi * min(step, steps) / steps)
        return RATE * rise * (fall + LAST_RATE)

    def gradients(self, batch: dict, size: int) -> tuple[dict[str, float], float]:
        values, norm = super().gradients(batch, size)
        if norm > MAX_NORM:
            for parameter in self.parameters["refiner"]:
                parameter.grad.mul_(MAX_NORM / norm)
        return values, norm


def train(files: list[Path], steps: int, folder: Path, start: Path | None) -> BoneRefiner:
    """The averaged network after `steps`, rounded up to whole epochs; goes on from the states in the folder."""
    torch.manual_seed(0)
    network = loop.init_from(BoneRefiner(), start)
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
        workers=0,
        accumulate=1,
        checkpointing=False,
        validate_every=1,
        sample_every=NEVER,
        save_every=SAVE_EVERY,
    )
    # a patient is wholly on one side, in all its versions
    tests = [path for path in files if _is_test(path)]
    trained = [path for path in files if not _is_test(path)]
    trainer = Trainer(
        folder,
        {"refiner": network},
        {"refiner": torch.optim.AdamW(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)},
        objective,
        Samples(trained, steps_an_epoch * BATCH),
        Samples(tests, len(tests), moved=False) if tests else None,
        course=course,
        train=train_settings,
        learning_rates={"refiner": RATE},
        facts={"patients": len(trained), "start": str(start)},
    )
    status = trainer.run()
    if status:  # stopped, or no finite loss: the loop has said why
        raise SystemExit(status)
    return trainer.exported()


def _is_test(path: Path) -> bool:
    number = path.stem.split("_")[1]
    return number.isdigit() and int(number) % TEST_EVERY == TEST_EVERY // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="twins, as dataSegmentation.py leaves them with simulate.lesions=true")
    parser.add_argument("folder", type=Path, help="estimates, states and log")
    parser.add_argument("--steps", type=int, default=2000, help=f"rounded up to whole epochs of {STEPS_AN_EPOCH}")
    parser.add_argument("--start", type=Path, help="weights to start from; random ones without it")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    files = estimates(options.data, options.folder / "estimates")
    network = train(files, options.steps, options.folder, options.start)
    network.half().save(options.out)


if __name__ == "__main__":
    main()
