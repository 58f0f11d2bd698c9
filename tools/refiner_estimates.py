"""What train_refiner.py learns from: both methods' estimates of bone for simulated patients, without lesions, with
those of the twin, and with compact nodules drawn here."""

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from models import config, images, pipelines
from models.data import augment, lists
from models.evaluation import insertion
from models.refinement import FINDER_SIZE, enlarge, unlike_lines
from models.runtime.files import UserError, replacing
from models.runtime.seeding import place_generator
from models.simulate import lesions

VERSIONS = (0.7, 0.0)  # least flattening of bone, of each version of the patients; the most is 1
KINDS = ("without", "lesions", "nodules")  # of a file's images: no lesion, the twin's, compact nodules
LAYERS = ("cxr", "soft", "bone", "unlike")  # of an estimate, in this order; unlike: see refinement.unlike_lines

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
            mask = _at_size(lungs.astype(np.float32)) >= 0.5  # (FINDER_SIZE, FINDER_SIZE)
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
    """LAYERS of one X-ray, float16 (4, FINDER_SIZE, FINDER_SIZE). cxr, soft: float32 (S, S); lungs: bool (S, S); key:
    of its noise."""
    result = insertion.of_pipeline(method, lungs)(cxr, key)
    bone = cxr - result
    unlike = unlike_lines(torch.from_numpy(bone)[None, None])  # (1, 1, LINE_SIZE, LINE_SIZE)
    fine = enlarge(unlike, (FINDER_SIZE, FINDER_SIZE))  # as the finder sees it
    layers = [_at_size(cxr), _at_size(soft), _at_size(bone), fine[0, 0].numpy()]
    return np.stack(layers).astype(np.float16)


def _at_size(image: np.ndarray) -> np.ndarray:
    """Float32 (S, S) -> (FINDER_SIZE, FINDER_SIZE)."""
    return cv2.resize(image, (FINDER_SIZE, FINDER_SIZE), interpolation=cv2.INTER_AREA)
