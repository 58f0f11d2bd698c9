"""Train the network of models/lungs.py on simulated patients, spoiled in every way that real X-rays are.

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
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from torch.nn import functional as F

from models import config, lungs
from models.runtime.files import replacing
from models.simulate import phantom
from models.training import loop

FIRST_SEED = 10_000  # of the patients, far from those of the tests
PATIENTS_A_FILE = 50
SIZE = 256  # px, the patients are drawn at this size
CANVAS = lungs.NET_SIZE  # px, side of what the network sees

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

Box = tuple[float, float, float, float]  # left, right, top, bottom, in units of the image's sides


def chance(g: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return g.random() < probability


# --- patients ---------------------------------------------------------------------------------------------------------


def patients(folder: Path, count: int) -> np.ndarray:
    """(count, 3, SIZE, SIZE) uint8: CXR and soft tissue times 255, lungs.

    They are kept in the folder, and drawn only if they are not there yet.
    """
    blocks = []
    end = FIRST_SEED + count
    for first in range(FIRST_SEED, end, PATIENTS_A_FILE):
        path = folder / f"{first}.npy"
        if not path.is_file():
            block = np.stack([layers(seed) for seed in range(first, min(first + PATIENTS_A_FILE, end))])
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, block)
        blocks.append(np.load(path))
    return np.concatenate(blocks)


def layers(seed: int) -> np.ndarray:
    """One simulated patient, (3, SIZE, SIZE) uint8: CXR and soft tissue times 255, lungs."""
    patient = phantom.simulate(seed, SIZE)
    return np.stack([np.round(255 * patient.cxr), np.round(255 * patient.soft), patient.mask]).astype(np.uint8)


# --- one spoiled sample -----------------------------------------------------------------------------------------------
# Every function below takes its random numbers from g in the order of its lines: a changed order gives other samples.


def sample(index: int, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (2, CANVAS, CANVAS) and lungs (1, CANVAS, CANVAS) of sample `index`, float32; a pure function.

    pool: patients, as `patients` gives them.
    """
    g = np.random.default_rng([2, index])
    cxr, soft, mask = pool[g.integers(len(pool))].astype(np.float32)
    cxr = (soft + g.uniform(0.3, 1.3) * (cxr - soft)) / 255  # fainter or stronger bone
    cxr, mask = deform(g, cxr, mask)

    # disease and anatomy that simulated patients do not have
    changes = {heart: 0.25, opacities: 0.35, effusion: 0.2, haze: 0.2, breasts: 0.25, bowel: 0.3, arms: 0.25}
    for change, probability in changes.items():
        if chance(g, probability):
            cxr, mask = change(g, cxr, mask)

    # what detector, viewer and archive do
    cxr = display(g, np.clip(cxr, 0, 1.3))
    if chance(g, 0.5):
        cxr = things(g, cxr)
    if chance(g, 0.4):
        cxr, mask = collimate(g, cxr, mask)
    cxr = detector(g, cxr)

    # the network's size, the image in the upper left corner, as in models/lungs.py
    scale = CANVAS / max(cxr.shape)
    size = [max(1, round(side * scale)) for side in cxr.shape[::-1]]
    cxr = cv2.resize(cxr, size, interpolation=cv2.INTER_AREA)
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    target = np.zeros((1, CANVAS, CANVAS), np.float32)
    target[0, : size[1], : size[0]] = mask
    return lungs.features(cxr), target


def smooth(g: np.random.Generator, shape: tuple[int, int], grains: int) -> np.ndarray:
    """Smooth noise of unit variance with about `grains` grains along a side."""
    coarse = g.standard_normal((grains, grains)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def deform(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Another build, pose and crop: an affine map with a smooth warp; any aspect."""
    height = int(g.integers(160, 225))
    shape = (height, int(np.clip(height * np.exp(g.normal(0, 0.15)), 128, 280)))
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    x = (columns + 0.5) / shape[1] - 0.5
    y = (rows + 0.5) / shape[0] - 0.5

    # affine: u, v are the place in the source from which a pixel is taken
    angle = g.normal(0, 0.08)
    zoom = np.exp(g.normal(-0.12, 0.16))  # above 1 the patient is smaller
    cos = np.cos(angle) * zoom
    sin = np.sin(angle) * zoom
    stretch = np.exp(g.normal(0, 0.06, 2))
    keeps_aspect = chance(g, 0.7)
    stretch_x, stretch_y = stretch * ((min(1.0, shape[1] / shape[0]) if keeps_aspect else 1), 1)
    u = stretch_x * (cos * x - sin * y) + g.normal(0, 0.05)
    v = stretch_y * (sin * x + cos * y) + g.normal(0, 0.05)

    # warp
    strength = g.uniform(0, 0.028)
    u = u + strength * smooth(g, shape, int(g.integers(3, 7)))
    v = v + strength * smooth(g, shape, int(g.integers(3, 7)))
    u *= 1 + g.normal(0, 0.12) * v  # broad above and narrow below, or the other way round
    v = v + g.normal(0, 0.03) * np.clip(v, 0, 1) * 2  # high and low diaphragms
    if chance(g, 0.2):
        u = -u  # the heart on the right
    from_x = ((u + 0.5) * SIZE - 0.5).astype(np.float32)
    from_y = ((v + 0.5) * SIZE - 0.5).astype(np.float32)

    # what lies beyond the source's border: one grey, or its last pixels
    border = cv2.BORDER_REPLICATE
    grey = 0.0
    if chance(g, 0.4):
        border = cv2.BORDER_CONSTANT
        grey = float(g.choice([0, 0, 0.05, 1]))
    moved_cxr = cv2.remap(cxr, from_x, from_y, cv2.INTER_LINEAR, borderMode=border, borderValue=grey)
    moved_mask = cv2.remap(mask, from_x, from_y, cv2.INTER_LINEAR)
    return moved_cxr, moved_mask


def unit_grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel, in units of the image's sides."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return columns / shape[1], rows / shape[0]


def one_lung(g: np.random.Generator, mask: np.ndarray) -> tuple[np.ndarray, Box]:
    """Mask and box of one of the two largest regions; an empty mask and some box if there is none."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask > 0.5).astype(np.uint8))
    if count < 2:
        return mask * 0, (0.3, 0.4, 0.3, 0.7)
    largest_two = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[::-1][:2]  # label 0 is the background
    label = g.choice(largest_two)
    left, top, width, height = stats[label, :4]
    inside = mask * (labels == label)
    box = (left / mask.shape[1], (left + width) / mask.shape[1], top / mask.shape[0], (top + height) / mask.shape[0])
    return inside, box


def tissue(cxr: np.ndarray, mask: np.ndarray) -> float:
    """The grey level of soft tissue beside the lungs."""
    inside = mask > 0.5
    return float(np.quantile(cxr[inside], 0.9)) if inside.any() else 0.7


def blob(g: np.random.Generator, shape: tuple[int, int], centre, radii, edge: float = 0.3) -> np.ndarray:
    """1 inside a wobbly ellipse, 0 outside.

    centre, radii: (x, y) in units of the image's sides. edge: how soft the rim is at most.
    """
    x, y = unit_grid(shape)
    tilt = g.uniform(0, np.pi)
    dx = x - centre[0]
    dy = y - centre[1]
    along = (np.cos(tilt) * dx + np.sin(tilt) * dy) / radii[0]
    across = (np.cos(tilt) * dy - np.sin(tilt) * dx) / radii[1]
    radius = np.hypot(along, across)
    wobble = 0.15 * smooth(g, shape, 5)
    softness = 0.02 + edge * g.random()
    return 1 / (1 + np.exp(np.clip((radius + wobble - 1) / softness, -30, 30)))


def heart(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A larger heart or mediastinum: it takes a piece of a lung, mask and all."""
    lung, (x0, x1, y0, y1) = one_lung(g, mask)
    width = x1 - x0
    height = y1 - y0
    medial = x0 if x0 + x1 > 1 else x1
    if chance(g, 0.75):  # heart, at the lung's base
        radii = (g.uniform(0.2, 0.65) * width, g.uniform(0.15, 0.35) * height)
        centre = (medial, y1 - g.uniform(0.05, 0.3) * height)
    else:  # mediastinum, above
        radii = (g.uniform(0.1, 0.3) * width, g.uniform(0.1, 0.4) * height)
        centre = (medial, y0 + g.uniform(0, 0.4) * height)
    x, y = unit_grid(cxr.shape)
    ellipse = (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1).astype(np.float32)
    weight = cv2.GaussianBlur(ellipse * (lung > 0.5), (0, 0), g.uniform(0.5, 1.5)) * g.uniform(0.6, 1)
    covered = cxr * (1 - weight) + weight * tissue(cxr, mask) * g.uniform(0.9, 1.2)
    return covered, mask * (1 - ellipse * (lung > 0.5))


def opacities(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodules, masses, consolidations: the lungs' mask stays."""
    for _ in range(int(g.integers(1, 6))):
        lung, (x0, x1, y0, y1) = one_lung(g, mask)
        size = np.exp(g.uniform(np.log(0.02), np.log(0.16)))
        centre = (g.uniform(x0, x1), g.uniform(y0, y1))
        shade = blob(g, cxr.shape, centre, size * np.exp(g.normal(0, 0.25, 2)), 1.0)
        weight = shade * np.clip(lung, 0, 1) * g.uniform(0.2, 0.9)
        cxr = cxr * (1 - weight) + weight * tissue(cxr, mask) * g.uniform(0.8, 1.05)
    return cxr, mask


def effusion(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower end of one lung takes the brightness of tissue; the mask stays."""
    lung, (x0, x1, y0, y1) = one_lung(g, mask)
    x, y = unit_grid(cxr.shape)
    medial = x0 if x0 + x1 > 1 else x1
    lateral = np.abs((x - medial) / max(x1 - x0, 0.01))  # 0 at the spine, 1 at the ribs
    # the fluid's upper border, which rises to the side
    level = y1 - (y1 - y0) * g.uniform(0.05, 0.35) * (1 + g.uniform(-0.2, 0.8) * (lateral - 0.5))
    density = g.uniform(0.4, 0.95)
    weight = density / (1 + np.exp(np.clip((level - y) / g.uniform(0.004, 0.05), -30, 30))) * np.clip(lung, 0, 1)
    return cxr * (1 - weight) + weight * tissue(cxr, mask) * g.uniform(0.9, 1.1), mask


def haze(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One lung, or both, darker or brighter as a whole, or streaky."""
    lung = one_lung(g, mask)[0] if chance(g, 0.5) else mask
    pattern = g.uniform(-0.3, 0.6) + 0.3 * g.random() * smooth(g, cxr.shape, int(g.choice([4, 12, 40])))
    weight = np.clip(pattern, -0.4, 0.9) * np.clip(lung, 0, 1)
    brighter = weight * (tissue(cxr, mask) - cxr) * (weight > 0)
    darker = weight * 0.3 * cxr * (weight < 0)
    return cxr + brighter + darker, mask


def breasts(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two round shadows, sharp below."""
    x, y = unit_grid(cxr.shape)
    centre_y = g.uniform(0.5, 0.8)
    radius_x = g.uniform(0.12, 0.22)
    radius_y = g.uniform(0.12, 0.25)
    gain = g.uniform(0.04, 0.22)
    for centre_x in (g.uniform(0.2, 0.33), g.uniform(0.67, 0.8)):
        radius = np.hypot((x - centre_x) / radius_x, (y - centre_y - g.normal(0, 0.02)) / radius_y)
        fades_upwards = np.clip((y - centre_y + radius_y) / (1.2 * radius_y), 0, 1)
        cxr = cxr + gain * np.clip((1 - radius) / 0.12, 0, 1) * fades_upwards
    return cxr, mask


def bowel(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gas below the diaphragm, often right below it and with a level, never in the lungs."""
    outside = 1 - np.clip(cv2.dilate(mask, np.ones((3, 3))), 0, 1)
    for _ in range(int(g.integers(1, 4))):
        _, (x0, x1, _, y1) = one_lung(g, mask)
        radii = np.exp(g.normal(-2.7, 0.4, 2))
        if chance(g, 0.6):
            centre = (g.uniform(x0, x1), y1 + g.uniform(-0.08, 0.15))
        else:
            centre = (g.uniform(0.2, 0.8), g.uniform(0.75, 1))
        gas = blob(g, cxr.shape, centre, radii, 0.2)
        if chance(g, 0.4):
            gas = gas * (unit_grid(cxr.shape)[1] < centre[1] + g.uniform(-0.3, 0.8) * radii[1])
        lower = np.cumsum(mask > 0.5, axis=0) > 0  # never above the lungs' first row of the column
        cxr = cxr - g.uniform(0.1, 0.6) * gas * outside * lower * cxr
    return cxr, mask


def arms(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arms, shoulder blades, the folds of a bra or a gown: bright and dark bands at the sides."""
    x, y = unit_grid(cxr.shape)
    for from_side in (x, 1 - x):
        depth = g.uniform(-0.05, 0.12) + g.uniform(-0.3, 0.3) * (y - 0.5) - from_side
        if chance(g, 0.7):
            outside = 1 - np.clip(cv2.dilate(mask, np.ones((5, 5))), 0, 1)
            cxr = cxr + g.uniform(-0.4, 0.3) * np.clip(depth / 0.01, 0, 1) * outside
    return cxr, mask


def display(g: np.random.Generator, cxr: np.ndarray) -> np.ndarray:
    """Another detector and viewer: heel effect, local contrast, equalisation, any rising tone curve, any window."""
    shape = cxr.shape
    if chance(g, 0.5):  # heel effect, and uneven sensitivity
        x, y = unit_grid(shape)
        slope = 1 + g.normal(0, 0.2) * (x - 0.5) + g.normal(0, 0.2) * (y - 0.5)
        cxr = cxr * slope + g.uniform(0, 0.06) * smooth(g, shape, 4)
    if chance(g, 0.6):  # local contrast, more or less
        gain = g.uniform(-0.5, 1.2)
        cxr = cxr + gain * (cxr - cv2.GaussianBlur(cxr, (0, 0), np.exp(g.uniform(np.log(1.5), np.log(40)))))
    cxr = (cxr - cxr.min()) / max(np.ptp(cxr), 1e-3)
    if chance(g, 0.25):  # equalisation, local or not
        grey = np.uint8(255 * cxr)
        clip = cv2.createCLAHE(g.uniform(1, 5), (int(g.integers(2, 9)),) * 2)
        cxr = (clip.apply(grey) if chance(g, 0.7) else cv2.equalizeHist(grey)) / np.float32(255)

    # tone curve and window
    knots = np.cumsum(np.r_[0, g.dirichlet(np.full(5, 3.0))])
    cxr = PchipInterpolator(np.linspace(0, 1, 6), knots)(cxr) ** np.exp(g.normal(0, 0.35))
    low, high = 0.0, 1.0
    if chance(g, 0.3):
        low = g.uniform(0, 0.25)
        high = g.uniform(0.75, 1)
    return np.clip((cxr - low) / (high - low), 0, 1).astype(np.float32)


def things(g: np.random.Generator, cxr: np.ndarray) -> np.ndarray:
    """Letters, plates, wires, a pacemaker, electrodes: brighter or darker than anything."""
    picture = np.uint8(255 * cxr)
    height, width = cxr.shape

    def place() -> tuple[int, int]:
        return int(g.uniform(0, width)), int(g.uniform(0, height))

    def shade() -> int:
        return int(255 * g.choice([0, 1, 1, g.random()]))

    for _ in range(int(g.integers(1, 5))):
        thing = g.integers(5)
        if thing == 0:  # letters
            text = "".join(g.choice(list("LRPA0123456789SITZ"), int(g.integers(1, 8))))
            cv2.putText(
                picture,
                text,
                place(),
                cv2.FONT_HERSHEY_SIMPLEX,
                g.uniform(0.3, 1.3),
                shade(),
                int(g.integers(1, 4)),
                cv2.LINE_AA,
            )
        elif thing == 1:  # a plate
            x, y = place()
            cv2.rectangle(picture, (x, y), (x + int(g.uniform(4, 50)), y + int(g.uniform(4, 30))), shade(), -1)
        elif thing == 2:  # a wire
            points = np.cumsum([place(), *g.normal(0, 0.1 * width, (6, 2))], axis=0)
            cv2.polylines(picture, [points.astype(np.int32)], False, shade(), int(g.integers(1, 3)), cv2.LINE_AA)
        elif thing == 3:  # a pacemaker
            cv2.ellipse(
                picture, place(), (int(g.uniform(3, 18)), int(g.uniform(3, 14))), g.uniform(0, 180), 0, 360, shade(), -1
            )
        else:  # an electrode
            cv2.circle(picture, place(), int(g.uniform(2, 6)), shade(), int(g.choice([-1, 1])))
    return picture / np.float32(255)


def collimate(g: np.random.Generator, cxr: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Borders of one grey: laid over the image, tilted or not, or added around it."""
    grey = float(g.choice([0, 0, 0, 1, 1, g.random()]))
    if chance(g, 0.5):
        widths = g.uniform(0, 0.2, 4) * np.repeat(cxr.shape, 2) * (g.random(4) < 0.6)  # above, below, left, right
        above, below, left, right = [int(width) for width in widths]
        pads = ((above, below), (left, right))
        return np.pad(cxr, pads, constant_values=grey), np.pad(mask, pads)
    height, width = cxr.shape
    inset = g.uniform(0, 0.09, 4) * (g.random(4) < 0.6)
    left, top, right, bottom = inset[0], inset[1], 1 - inset[2], 1 - inset[3]
    corners = np.float32([(left, top), (right, top), (right, bottom), (left, bottom)])
    corners = (corners + g.normal(0, 0.01, (4, 2))) * (width, height)
    field = cv2.fillConvexPoly(np.zeros(cxr.shape, np.float32), np.round(corners).astype(np.int32), 1)
    field = cv2.GaussianBlur(field, (0, 0), g.uniform(0.3, 1.5))
    return cxr * field + grey * (1 - field), mask  # what lies under a thin frame is still lung


def detector(g: np.random.Generator, cxr: np.ndarray) -> np.ndarray:
    """Blur, noise, coarse grey levels, JPEG."""
    if chance(g, 0.4):
        cxr = cv2.GaussianBlur(cxr, (0, 0), g.uniform(0.3, 2))
    if chance(g, 0.5):
        noise = g.standard_normal(cxr.shape).astype(np.float32)
        level = g.uniform(0, 0.08)
        if not chance(g, 0.7):  # coarse grain, about as strong
            noise = cv2.GaussianBlur(noise, (0, 0), 1) * 2
        cxr = cxr + level * noise * (1.3 - cxr)  # dark regions got fewer photons
    if chance(g, 0.1):
        levels = int(g.integers(8, 40))
        cxr = np.round(cxr * levels) / levels
    if chance(g, 0.2):
        quality = int(g.integers(20, 90))
        _, encoded = cv2.imencode(".jpg", np.uint8(255 * np.clip(cxr, 0, 1)), [cv2.IMWRITE_JPEG_QUALITY, quality])
        cxr = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) / 255
    return np.clip(cxr, 0, 1).astype(np.float32)


# --- training ---------------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset):
    """Spoiled samples for the loop, new ones in each epoch.

    Batches are {"image": (B, 2, C, C), "target": (B, 1, C, C)} with C = CANVAS.
    """

    def __init__(self, pool: np.ndarray, count: int, workers: int):
        """pool: patients; count: samples in an epoch; workers: processes that make them."""
        self.pool = pool
        self.names = [str(number) for number in range(count)]
        self.workers = workers

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        cv2.setNumThreads(0)
        features, target = sample(number, self.pool)
        return {"image": features, "target": target}

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch; its samples follow those of the epoch before."""
        first = epoch * len(self)
        numbers = [[first + index for index in indices] for indices in index_lists]
        return iter(torch.utils.data.DataLoader(self, batch_sampler=numbers, num_workers=self.workers))


class ExportedLungNet(lungs.LungNet):
    """The network, written as models/lungs.py reads it: the tensors alone, in half precision."""

    def save(self, path: Path, **notes) -> None:
        """Write the weights. notes: what the loop says of them; not kept."""
        half = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        with replacing(path) as temporary:
            save_file(half, temporary)


def objective(networks: dict, batch: dict[str, Tensor], noise: loop.Noise) -> tuple[dict, dict]:
    """Cross entropy plus 1 - Dice of each image."""
    logits = networks["lungs"](batch["image"].contiguous(memory_format=torch.channels_last))  # (B, 1, C, C)
    target = batch["target"]
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum((1, 2, 3))  # (B,)
    total = (probability + target).sum((1, 2, 3))
    loss = entropy + (1 - (2 * overlap + 1) / (total + 1)).mean()
    return {"lungs": loss}, {"loss": loss}


def rate_at(step: int, steps: int) -> float:
    """Learning rate: a short rise, then half a cosine down."""
    rise = min(1, (step + 1) / WARMUP)
    fall = 0.5 + 0.5 * math.cos(math.pi * min(step, steps) / steps)
    return RATE * rise * fall + LAST_RATE


class Trainer(loop.Trainer):
    """The one loop, with a learning rate that changes in each step and gradients of bounded norm."""

    def rate(self, phase: str) -> float:
        steps = self.course.epochs * math.ceil(len(self.data.names) / self.course.batch_size)
        return rate_at(self.progress.step, steps)

    def gradients(self, batch: dict, size: int) -> tuple[dict[str, float], float]:
        values, norm = super().gradients(batch, size)
        if norm > MAX_NORM:
            for parameter in self.parameters["lungs"]:
                parameter.grad.mul_(MAX_NORM / norm)
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
    main()
