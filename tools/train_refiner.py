"""Train the network of models/refinement.py on twins: simulated patients with lesions and without.

    python dataSegmentation.py --profile small simulate.count=400 simulate.lesions=true data.root=runs/twins/data \
        data.lists=runs/twins/lists data.patient='^([0-9]+)'
    python -m tools.train_refiner runs/twins/data runs/refiner     # estimates, training, weights/refiner.safetensors

First both methods' estimates of bone are made for every patient by the weights of profile `small` (seconds each, kept
in the folder): without lesions, with those of the twin, and with compact nodules drawn here. Then the network learns to
correct them, half an hour on two cores; a GPU is used where there is one, and then wants a larger --batch. The same
command goes on where it was stopped. Sample number i is a function of i alone.
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
from models.evaluation import insertion
from models.refinement import SIZE, BoneRefiner, unlike_lines
from models.runtime import checkpoint
from models.runtime.device import pick_device
from models.runtime.files import UserError, replacing
from models.runtime.seeding import place_generator
from models.simulate import lesions
from models.training import interfaces, loop

OUT = config.ROOT / "weights" / "refiner.safetensors"
VERSIONS = (0.7, 0.0)  # least flattening of bone, of each version of the patients; the most is 1
TEST_EVERY = 20  # every so many patients one is kept for validation
KINDS = ("without", "lesions", "nodules")  # of a file's images: no lesion, the twin's, compact nodules
LAYERS = ("cxr", "soft", "bone", "unlike")  # of an estimate, in this order; unlike: see refinement.unlike_lines

BATCH = 2  # patients, each with its twin; what the shipped weights were trained with
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
# Of the error in what the lesions of a kind add, over that in the image. Nodules cover a tenth of the pixels.
LESION_WEIGHTS = {"lesions": 15.0, "nodules": 300.0}
NODULES = 0.75  # share of the samples with compact nodules
LUNG_WEIGHT = 1.0  # of pixels in the lungs, added to OUTSIDE_WEIGHT
OUTSIDE_WEIGHT = 0.3
SOFT_ABS = 3e-3  # grey values: smaller errors count by their square
DETAIL_SIDE = 9  # pixels, of the mean that is taken away to compare detail

# Compact nodules, as small, faint and plain as most of those that are found in lungs. Drawn, none is a patient's.
COUNT = (5, 9)  # in an X-ray, from and to
DIAMETER = (0.9, 0.4)  # cm: median, and sigma of its logarithm
DIAMETERS = (0.5, 3.2)  # cm, from and to
WATER = (0.62, 0.45)  # cm of water at the thickest place of a nodule of 1 cm: median, and sigma of its logarithm
GROWTH = 0.8  # power of the diameter with which that grows
NODULE_SHAPES = {"round": 0.34, "lobulated": 0.3, "spiculated": 0.2, "part-solid": 0.1, "calcified": 0.06}
ON_RIBS = 0.6
CLEAR = 1.5  # cm between two nodules' outlines, at least 70 % of their radii apart
SIDES = (34.0, 44.0)  # cm that an image shows, from and to
INSIDE = 0.3  # cm, centres lie at least so deep in the lungs
TRIES = 30  # places that are tried for a nodule
SOFTENED = 0.5  # share of nodules with a blurred outline
OUTLINE = 0.12  # of the diameter, the largest sigma of that blur

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
            # drawn patients and CTs are in turn, so that both are seen by both methods only if two follow each other
            method = methods[(number // 2 + version) % len(methods)]
            # all three by one method, and with one draw of noise: they differ by the lesions alone
            key = f"{version}/{name}"
            side = method.image_size
            without_lesions = pairs[name + lists.TWIN]
            cxr, soft, lungs = read_changed(without_lesions, key, augmentation, side)
            sick_cxr, sick_soft, _ = read_changed(pairs[name], key, augmentation, side)
            nodule_cxr, nodule_soft = add_nodules(cxr, soft, lungs, key)
            layers = [
                estimate(cxr, soft, lungs, key, method),
                estimate(sick_cxr, sick_soft, lungs, key, method),
                estimate(nodule_cxr, nodule_soft, lungs, key, method),
            ]  # in the order of KINDS
            mask = _at_size(lungs.astype(np.float32)) >= 0.5
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, layers=np.stack(layers), mask=mask)
            print(path, flush=True)
    return files


def read_changed(pair, key: str, augmentation, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(CXR, soft tissue: float32 (side, side); lungs: bool (side, side)), changed as training images are.

    pair: the files of CXR, soft tissue and mask. key: by which both twins are changed alike.
    """
    cxr_path, soft_path, mask_path = pair
    cxr = images.resize(images.read(cxr_path).pixels, (side, side))
    soft = images.resize(images.read(soft_path).pixels, (side, side))
    mask = images.resize(images.read_mask(mask_path), (side, side))

    with_other_bone = augment.change_bone(cxr, soft, augmentation, key)
    changed_cxr = augment.augment(with_other_bone, augmentation, key)
    changed_soft = augment.augment(soft, augmentation, key)
    moves_only = replace(augmentation, contrast=0.0, gamma=0.0, sharpen=0.0, noise=0.0)
    lungs = augment.augment(mask, moves_only, key) >= 0.5
    return np.ascontiguousarray(changed_cxr), changed_soft, lungs


def add_nodules(cxr: np.ndarray, soft: np.ndarray, lungs: np.ndarray, key: str) -> tuple[np.ndarray, np.ndarray]:
    """CXR and soft tissue, float32 (S, S) each, with the same compact nodules in the lungs; a pure function."""
    random = place_generator(f"nodules/{key}")
    side = random.uniform(*SIDES)
    pixel = side / len(cxr)  # cm
    on_ribs, between = insertion.ribs(cxr - soft, 10 * side)  # bool (S, S) each; the side in mm
    depth = cv2.distanceTransform(lungs.astype(np.uint8), cv2.DIST_L2, 5) * pixel  # cm
    deep = depth > INSIDE
    shapes = list(NODULE_SHAPES)
    shares = list(NODULE_SHAPES.values())

    water = np.zeros_like(cxr)
    placed: list[tuple[int, int, float]] = []  # x, y, diameter
    fewest, most = COUNT
    for _ in range(random.integers(fewest, most, endpoint=True)):
        region = on_ribs if random.random() < ON_RIBS else between
        places = np.argwhere(deep & region)
        diameter = float(np.clip(_log_normal(random, *DIAMETER), *DIAMETERS))
        shape = str(random.choice(shapes, p=shares))
        if len(places) == 0:
            continue
        for _ in range(TRIES):
            y, x = (int(value) for value in random.choice(places))
            if _is_clear(x, y, diameter, placed, pixel):
                nodule = _nodule(shape, diameter, pixel, random)
                lesions.add(water, nodule, x, y)
                placed.append((x, y, diameter))
                break

    # the same change of grey values in both, as the insertion test wants it kept
    with_nodules = insertion.insert(cxr, water)
    soft_with_nodules = np.clip(soft + with_nodules - cxr, 0, 1)
    return with_nodules, soft_with_nodules


def _is_clear(x: int, y: int, diameter: float, placed: list[tuple[int, int, float]], pixel: float) -> bool:
    """Whether a nodule of this diameter (cm) at this place (pixels) is far enough from those that are placed."""
    for other_x, other_y, other_diameter in placed:
        distance = math.hypot(x - other_x, y - other_y) * pixel  # cm, between the middles
        if distance - 0.7 * (diameter + other_diameter) <= CLEAR:
            return False
    return True


def _nodule(shape: str, diameter: float, pixel: float, random: np.random.Generator) -> np.ndarray:
    """One nodule, (h, h) float32: cm of water that it adds. diameter, pixel: cm."""
    thickness = lesions.thickness(shape, diameter, pixel, random)
    most = _log_normal(random, *WATER) * diameter**GROWTH
    scale = most / thickness.max()
    thickness = (thickness * scale).astype(np.float32)
    if random.random() < SOFTENED:
        outline_sigma = random.uniform(0, OUTLINE) * diameter  # cm
        sigma = max(0.3, outline_sigma / pixel)  # pixels
        thickness = cv2.GaussianBlur(thickness, (0, 0), sigma)
    return thickness


def _log_normal(random: np.random.Generator, median: float, sigma: float) -> float:
    logarithm = random.normal(math.log(median), sigma)
    return float(np.exp(logarithm))


def estimate(cxr: np.ndarray, soft: np.ndarray, lungs: np.ndarray, key: str, method: pipelines.Pipeline) -> np.ndarray:
    """LAYERS of one X-ray, float16 (4, SIZE, SIZE). cxr, soft: float32 (S, S); lungs: bool (S, S); key: of its
    noise."""
    contiguous = np.ascontiguousarray(cxr, dtype=np.float32)
    signed = images.to_signed(torch.from_numpy(contiguous))[None, None]  # (1, 1, S, S)
    result = images.to_unit(method(signed, [key], [lungs]))  # (1, 1, S, S)
    bone = cxr - result[0, 0].numpy()
    unlike = unlike_lines(torch.from_numpy(bone)[None, None])  # (1, 1, SIZE, SIZE)
    layers = [_at_size(cxr), _at_size(soft), _at_size(bone), unlike[0, 0].numpy()]
    return np.stack(layers).astype(np.float16)


def _at_size(image: np.ndarray) -> np.ndarray:
    """Float32 (S, S) -> (SIZE, SIZE)."""
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


# --- training ---------------------------------------------------------------------------------------------------------


class Samples:
    """Patients with lesions and without, moved at random, new in each epoch: {"layers": (B, 2, 4, S, S), "mask": (B, 1,
    S, S), "weight": (B,), of what the lesions add}.

    count: samples in an epoch. moved: false for validation, where sample i is patient i as it is, with nodules.
    """

    def __init__(self, files: list[Path], count: int, moved: bool = True):
        self.patients = []
        for path in files:
            with np.load(path, allow_pickle=False) as arrays:
                layers = torch.from_numpy(arrays["layers"])  # (3, 4, S, S), float16; the kinds as in KINDS
                mask = torch.from_numpy(arrays["mask"])  # (S, S), bool
                self.patients.append((layers, mask))
        self.names = [str(number) for number in range(count)]
        self.moved = moved

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch; its samples follow those of the epoch before."""
        for indices in index_lists:
            first = epoch * len(self.names)
            samples = [self.sample(first + index) for index in indices]
            layers, masks, weights = zip(*samples)
            yield {
                "layers": torch.stack(layers),
                "mask": torch.stack(masks),
                "weight": torch.tensor(weights),
            }

    def sample(self, number: int) -> tuple[Tensor, Tensor, float]:
        """Layers (2, 4, S, S), with lesions and without, lungs (1, S, S) and the lesions' weight of sample `number`; a
        pure function."""
        if not self.moved:
            layers, mask = self._twins(number, "nodules")
            return layers, mask, LESION_WEIGHTS["nodules"]
        random = np.random.default_rng([3, number])
        patient = random.integers(len(self.patients))
        kind = "nodules" if random.random() < NODULES else "lesions"
        layers, mask = self._twins(patient, kind)
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
        grid = F.affine_grid(affine, [1, 1, SIZE, SIZE], align_corners=False)

        # one interpolation of everything; beyond the edge it is black
        stack = torch.cat([layers.flatten(0, 1), mask])[None]  # (1, 9, S, S)
        moved = F.grid_sample(stack, grid, align_corners=False)[0]
        moved_layers = moved[:-1].unflatten(0, layers.shape[:2])  # (2, 4, S, S)
        moved_mask = moved[-1:]
        brightness = random.uniform(*BRIGHTNESS)
        return moved_layers * brightness, moved_mask, LESION_WEIGHTS[kind]

    def _twins(self, patient: int, kind: str) -> tuple[Tensor, Tensor]:
        """Layers (2, 4, S, S), with lesions of a kind and without, and lungs (1, S, S), of a patient as it is."""
        layers, mask = self.patients[patient]
        with_and_without = [KINDS.index(kind), KINDS.index("without")]
        return layers[with_and_without].float(), mask[None].float()


def objective(networks: dict, batch: dict[str, Tensor], noise: interfaces.Noise) -> tuple[dict, dict]:
    """The error of the refined soft tissue, of its detail, and of what the lesions add to it."""
    twins = batch["layers"].flatten(0, 1)  # (2 B, 4, S, S): patient with lesions, without
    cxr, soft, bone, unlike = twins.split(1, dim=1)  # (2 B, 1, S, S) each
    gate, share, addition = networks["refiner"](cxr, bone, unlike)
    refined_bone = gate * bone - share * unlike + addition
    error = cxr - refined_bone - soft

    # The error and its detail, what a local mean leaves of it, heavier in the lungs
    local_mean = F.avg_pool2d(error, DETAIL_SIDE, 1, DETAIL_SIDE // 2, count_include_pad=False)
    detail = error - local_mean
    lungs = batch["mask"].repeat_interleave(2, dim=0)  # (2 B, 1, S, S)
    weight = OUTSIDE_WEIGHT + LUNG_WEIGHT * lungs
    image = (weight * (soft_abs(error) + soft_abs(detail))).mean()

    # Both twins have the same bone, so the results must differ by the lesions and by nothing else.
    with_lesions, without = error.unflatten(0, (-1, 2)).unbind(1)  # (B, 1, S, S) each
    difference = with_lesions - without
    error_per_pair = soft_abs(difference).mean((1, 2, 3))  # (B,)
    lesion_error = (batch["weight"] * error_per_pair).mean()
    loss = image + lesion_error

    # for the log: the share of what lesions add that the result contains, as the insertion test measures it
    soft_with_lesions, soft_without = soft.unflatten(0, (-1, 2)).unbind(1)
    added = soft_with_lesions - soft_without
    kept = 1 + (difference * added).sum() / added.square().sum()
    return {"refiner": loss}, {"loss": loss, "image": image, "lesions": lesion_error, "kept": kept}


def soft_abs(x: Tensor) -> Tensor:
    """|x|, rounded off below SOFT_ABS (Charbonnier 1994)."""
    return torch.sqrt(x.square() + SOFT_ABS**2) - SOFT_ABS


class Trainer(loop.Trainer):
    """The one loop, with a learning rate that changes in each step and gradients of bounded norm."""

    def rate(self, phase: str) -> float:
        """A short rise, then half a cosine down."""
        step = self.progress.step
        steps_an_epoch = math.ceil(len(self.data.names) / self.course.batch_size)
        steps = self.course.epochs * steps_an_epoch
        rise = min(1, (step + 1) / WARMUP)
        angle = math.pi * min(step, steps) / steps
        fall = 0.5 + 0.5 * math.cos(angle)
        return RATE * rise * (fall + LAST_RATE)

    def gradients(self, batch: dict, size: int) -> tuple[dict[str, float], float]:
        values, norm = super().gradients(batch, size)
        if norm > MAX_NORM:
            for parameter in self.parameters["refiner"]:
                parameter.grad.mul_(MAX_NORM / norm)
        return values, norm


def train(
    files: list[Path], steps: int, folder: Path, start: Path | None, batch: int = BATCH, device: str = "auto"
) -> BoneRefiner:
    """The averaged network after `steps`, rounded up to whole epochs; goes on from the states in the folder. batch:
    patients in a step, each with its twin."""
    torch.manual_seed(0)
    network = checkpoint.init_from(BoneRefiner(), start).to(pick_device(device))
    steps_an_epoch = min(steps, STEPS_AN_EPOCH)
    course = config.Course(
        epochs=math.ceil(steps / steps_an_epoch),
        batch_size=batch,
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
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    trainer = Trainer(
        folder,
        {"refiner": network},
        {"refiner": optimiser},
        objective,
        Samples(trained, steps_an_epoch * batch),
        Samples(tests, len(tests), moved=False) if tests else None,
        course=course,
        train=train_settings,
        learning_rates={"refiner": RATE},
        facts={"patients": len(trained), "batch": batch, "start": str(start)},
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
    parser.add_argument("--batch", type=int, default=BATCH, help="patients in a step, each with its twin")
    parser.add_argument("--device", default="auto", help="as `device` in config.yaml, for the training")
    parser.add_argument("--start", type=Path, help="weights to start from; random ones without it")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    files = estimates(options.data, options.folder / "estimates")
    network = train(files, options.steps, options.folder, options.start, options.batch, options.device)
    network.half().save(options.out)


if __name__ == "__main__":
    main()
