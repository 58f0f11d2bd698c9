"""Simulated chest X-rays with soft-tissue image and lung mask from a CT, as a dual-energy system would take them.

    ct.simulate(separate.parts(hounsfield, spacing), seed=0, size=512)

A chest CT lies with raised arms and ends at the neck: the chest is the CT's, shoulders, arms and neck are a phantom's.
Line integrals of tissue and bone are put together, bent smoothly, and seen by two spectra; the soft-tissue image is the
subtraction of the two log images. Exposure, scatter, noise and tone curve are drawn, and are the same for both images
of a pair.
Images and maps are (S, S).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..runtime.seeding import detail_generator
from . import cartilage, devices, field, girdle, lesions, phantom, xray
from .anatomy import draw_anatomy
from .extras import NOTHING, Extras
from .field import blur, closed, convex_hull, disc, opened, smooth_step, texture
from .phantom import Phantom
from .separate import Parts
from .shoulder_ct import Shoulders
from .surroundings import Surroundings, surroundings

THUMB = 128  # pixels at which windows are cut
VERSION = 1  # raise it with any change that changes a pair, in `separate`, `xray` and `field` too
TISSUE_MU = np.float32(0.19)  # log exposure of a cm of tissue in the radiograph, for what of devices it alone shows
HEART = (0.55, 0.68, 0.13, 0.16)  # centre and extent of what beats, in units of the image's side
DRAWN_BONE = 0.65  # mineral of the phantom's ribs and vertebrae against the CT's
SEEN = 0.88  # share of the lower half that rays through the back and the front both meet
FINE = 0.4  # cm of tissue that a vessel of the lungs is thicker than what surrounds it
GRAIN = 0.3  # growth of noise with the log exposure
ELASTIC_WAVES = 4
TONES = (0.22, 0.36, 0.60, 0.81, 0.91, 0.95)  # typical grey levels of the quantiles xray.TONE_AT


@dataclass(frozen=True)
class Draw:
    """What varies from pair to pair of the same CT; lengths in units of the image's side."""

    turn: tuple[float, float, float]  # radians, as xray.Pose
    deep: float  # stretch along the rays
    tall: float  # the lungs' height over that of the phantom
    air: float  # of the lungs against the CT's
    bone: float  # mineral against the CT's
    girdle: float  # mineral of collar bones, shoulder blades and arms against the phantom's
    cage: bool  # ribs of the phantom instead of the CT's
    bend: float  # of the elastic warp
    vessels: float  # gain of the lungs' detail, which the CT's slices and its shallow breath lack
    branches: float  # of the phantom's vessels, laid into the lungs
    kilovolts: float  # 0 to 1: how hard the radiograph is
    shift: float  # of the body between the two exposures
    beat: float  # of heart and diaphragm between them
    scatter: float  # against primary radiation
    noise: float  # of the log exposure in air
    subtraction: float  # share of the subtraction's noise that its filters leave
    local: float  # gain of local contrast
    unsharp: float  # gain of fine detail
    sharp: float  # blur of the detector
    dark: float  # grey level of no patient at all
    tones: tuple[float, ...]  # grey levels of the quantiles xray.TONE_AT


def draw(seed: int) -> Draw:
    """What pair `seed` is drawn with; the order of the draws is part of the pair."""
    random = detail_generator(seed, "ct")

    def log_uniform(low: float, high: float) -> float:
        log = random.uniform(np.log(low), np.log(high))
        return float(np.exp(log))

    def in_half_of_pairs(low: float, high: float) -> float:
        value = random.uniform(low, high)
        return float(random.choice([0, value]))

    # Grey levels: lighter or darker as a whole, and each a little on its own; they rise from quantile to quantile.
    brightness = random.normal(0, 0.03)
    steps = random.normal(0, 0.012, len(TONES))
    tones = np.array(TONES) + brightness + np.cumsum(steps)
    rising_tones = np.maximum.accumulate(tones)

    return Draw(
        turn=(random.uniform(-0.16, 0.16), random.normal(0, 0.035), random.normal(0, 0.02)),
        deep=random.uniform(0.85, 1.15),
        tall=random.uniform(0.94, 1.05),
        air=random.uniform(1.0, 1.06),
        bone=log_uniform(1.7, 3.3),
        girdle=random.uniform(0.6, 1.1),
        cage=bool(random.random() < 0.4),
        bend=random.uniform(0.002, 0.005),
        vessels=random.uniform(0.0, 1.0),
        branches=random.uniform(0.1, 0.6),
        kilovolts=random.uniform(0.3, 1),
        shift=in_half_of_pairs(0, 0.0002),
        beat=in_half_of_pairs(0.0003, 0.0015),
        scatter=random.uniform(0.1, 0.6),
        noise=log_uniform(0.002, 0.008),
        subtraction=random.uniform(0, 0.25),
        local=random.uniform(0.2, 1.2),
        unsharp=random.uniform(0.1, 1.0),
        sharp=random.uniform(0.0003, 0.0009),
        dark=random.uniform(0.01, 0.06),
        tones=tuple(np.clip(rising_tones, 0.05, 0.99)),
    )


def simulate(part: Parts, seed: int, size: int, with_lesions: bool = False, extras: Extras = NOTHING) -> Phantom:
    """Pair `seed` of a CT at size x size pixels; a pure function. ValueError for a size below phantom.MIN_SIZE.

    with_lesions: the same pair with drawn lesions (lesions.py), in both images.
    """
    return _expose_each(part, seed, size, [with_lesions], extras)[0]


def simulate_twins(part: Parts, seed: int, size: int, extras: Extras = NOTHING) -> tuple[Phantom, Phantom]:
    """What `simulate` gives of pair `seed` with and without lesions, in half the time."""
    with_lesions, without = _expose_each(part, seed, size, [True, False], extras)
    return with_lesions, without


def _expose_each(part: Parts, seed: int, size: int, with_lesions: list[bool], extras: Extras) -> list[Phantom]:
    """Pair `seed`, its rays computed once, with or without lesions for each item of the list."""
    if size < phantom.MIN_SIZE:
        raise ValueError(f"size {size} is below {phantom.MIN_SIZE} pixels: ask for a larger one")
    drawn = draw(seed)
    water, bone, lung = integrals(part, drawn, seed, size, not extras.devices, extras.shoulders)
    mask = lung_field(lung, water)
    if extras.cartilage and drawn.cage:
        calcified = np.float32(phantom.SIDE) * cartilage.thickness(draw_anatomy(seed), size)  # cm
        bone = bone + np.float32(drawn.bone * DRAWN_BONE) * calcified
    cxr_alone = None
    if extras.devices:
        shown = devices.draw(draw_anatomy(seed), size)
        water = water + np.float32(phantom.SIDE) * shown.both  # cm, as the next
        cxr_alone = np.float32(phantom.SIDE) * shown.cxr_alone
    pairs = []
    for has_lesions in with_lesions:
        tissue = water
        if has_lesions:
            added, _ = lesions.draw(mask, bone, seed, phantom.SIDE)  # cm of water
            tissue = water + added
        cxr_log, soft_log = expose(tissue, bone, drawn, seed)
        if cxr_alone is not None:
            cxr_log = cxr_log + TISSUE_MU * cxr_alone
        cxr, soft = show(cxr_log, soft_log, drawn, seed)
        pairs.append(Phantom(cxr, soft, mask))
    return pairs


# --- The patient ------------------------------------------------------------------------------------------------------


def integrals(
    part: Parts,
    drawn: Draw,
    seed: int,
    size: int,
    with_port: bool = True,
    shoulders: Shoulders | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """cm of tissue as water, of compact bone in its place, and of lung, (size, size) each.

    with_port: with the port and the letter that some patients have (soft_tissue.devices). shoulders: those of another
    CT, instead of drawn ones.
    """
    around = surroundings(seed, size, with_port)
    if shoulders is not None:
        around = girdle.with_shoulders(around, shoulders, draw_anatomy(seed))
    pose = fit(part, drawn, around.chest, size)

    # The CT's own integrals; those of body and lungs are smooth, and half the size does.
    fine = xray.project(part.fine, pose, size)  # (size, size, 2)
    coarse = xray.project(part.coarse, pose, size // 2)  # (size / 2, size / 2, 2)
    large_body = cv2.resize(coarse[..., 0], (size, size))
    large_lung = cv2.resize(coarse[..., 1], (size, size))
    water = _mirror_below(fine[..., 0], part, pose)
    bone = _mirror_below(fine[..., 1], part, pose)
    body = _mirror_below(large_body, part, pose)
    lung = _mirror_below(large_lung, part, pose)

    # Joined with the phantom's
    chest, inside = windows(lung, part, pose)
    water = _tissue(water, body, lung, chest, inside, around, drawn)
    bone = _mineral(bone, chest, around, drawn, seed)
    lung = lung * chest

    # Bent together
    across, down = field.elastic_maps(seed, ELASTIC_WAVES, drawn.bend, size)

    def bent(layer: np.ndarray) -> np.ndarray:
        single = layer.astype(np.float32)
        return cv2.remap(single, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    return bent(water), bent(bone), bent(lung)


def _tissue(
    water: np.ndarray,
    body: np.ndarray,
    lung: np.ndarray,
    chest: np.ndarray,
    inside: np.ndarray,
    around: Surroundings,
    drawn: Draw,
) -> np.ndarray:
    """cm of tissue as water: the CT's, with more vessels in the lungs, in the chest's window; the phantom's outside."""
    # More vessels in the lungs. Their detail alone: what differs more from its surroundings is the outline of heart or
    # diaphragm.
    airy = blur((lung / 10).clip(0, 1), 0.01)  # share, 1 from 10 cm of lung on
    detail = (water - blur(water, 0.01)).clip(-FINE, FINE)
    vessels = drawn.vessels * detail + drawn.branches * around.vessels
    water = water + airy * vessels

    # More or less air in the CT's body; outside of the window the phantom's body
    air = body - water
    own_body = body - drawn.air * air
    trunk = chest * own_body + (1 - chest) * around.body

    # The phantom's arms, joined by the 4-norm (trunk^4 + arms^4)^(1/4), which leaves no crease
    arms = (1 - inside) * around.arms
    fourth_powers = trunk.clip(0) ** 4 + arms**4
    joined = np.sqrt(np.sqrt(fourth_powers))
    return joined + around.devices


def _mineral(bone: np.ndarray, chest: np.ndarray, around: Surroundings, drawn: Draw, seed: int) -> np.ndarray:
    """cm of compact bone: the CT's or the phantom's chest, and the phantom's shoulders."""
    # The CT's bone, with a texture that its slices blur
    size = len(bone)
    trabeculae = 0.10 * texture(seed, "trabeculae", size, 512)
    density = 0.06 * texture(seed, "density", size, 128)
    grain = (1 + trabeculae + density).clip(0.3)
    own = chest * bone * grain

    # The phantom's spine continues the CT's, or its whole rib cage stands for it.
    if drawn.cage:
        phantoms = around.spine + around.cage
        own_share = 0
    else:
        phantoms = around.spine * (1 - chest)
        own_share = 1

    # All of them with the mineral that is drawn for this pair
    girdle = drawn.girdle * around.girdle
    usual = DRAWN_BONE * phantoms + own_share * own + girdle
    return drawn.bone * usual


def fit(part: Parts, drawn: Draw, chest: tuple[float, float, float, float], size: int) -> xray.Pose:
    """The pose in which the CT's lungs fill the box `chest` (right, left, top, bottom in pixels)."""
    right, left, top, bottom = part.lungs  # mm
    chest_right, chest_left, chest_top, chest_bottom = chest
    side_mm = 10 * phantom.SIDE
    mm = side_mm / size  # of a pixel

    # Scales across and along the body; the second is kept between 0.9 and 1.4 times the first.
    wide = (chest_left - chest_right) * mm / (left - right)
    tall = drawn.tall * (chest_bottom - chest_top) * mm / (bottom - top)
    tall = np.clip(tall, 0.9 * wide, 1.4 * wide)

    # The middles of both boxes coincide across; along the body their tops do. mm from the image's middle
    chest_middle = (chest_right + chest_left - size) / 2 * mm
    lungs_middle = wide * (right + left) / 2
    centre_x = chest_middle - lungs_middle
    upper_border = (chest_top - size / 2) * mm
    centre_y = upper_border - tall * top
    return xray.Pose(
        turn=drawn.turn,
        stretch=(wide, tall, drawn.deep),
        centre=(centre_x, centre_y),
        field=side_mm,
    )


def _half_height(part: Parts, pose: xray.Pose) -> float:
    """mm from the CT's middle to its upper and lower ends, as they are seen."""
    rows = part.fine.values.shape[1]
    return pose.stretch[1] * part.fine.spacing[1] * rows / 2


def windows(lung: np.ndarray, part: Parts, pose: xray.Pose) -> tuple[np.ndarray, np.ndarray]:
    """Shares (S, S) in [0, 1]: where the CT is to be seen, and the part of that around the lungs.

    Around the lungs and below the armpits it is the CT, between its ends; above and beside, where its arms are raised,
    it is not.
    """
    size = len(lung)

    # How far each pixel of a thumbnail lies from the lungs' convex hull, in units of the side.
    small = cv2.resize(lung, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    hull = convex_hull(small > 1)  # cm of lung
    outside = (~hull).astype(np.uint8)
    far = cv2.distanceTransform(outside, cv2.DIST_L2, 5) / THUMB

    # Around the lungs and below the CT's upper end; and all that is below the armpits. Smooth at their ends.
    centres = (np.arange(THUMB) + 0.5) / THUMB
    y = centres[:, None]  # (THUMB, 1)
    upper_end = 0.5 + (pose.centre[1] - _half_height(part, pose)) / pose.field
    near_lungs = smooth_step(far, 0.085, 0.03)
    below_upper_end = smooth_step(y, upper_end + 0.01, upper_end + 0.06)
    inside = near_lungs * below_upper_end

    lung_rows = np.flatnonzero(hull.any(1))
    top = lung_rows[0] / THUMB
    height = lung_rows[-1] / THUMB - top
    below = smooth_step(y, top + 0.35 * height, top + 0.75 * height)
    chest = np.maximum(inside, below)

    def enlarged(layer: np.ndarray) -> np.ndarray:
        large = cv2.resize(layer.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        return cv2.GaussianBlur(large, (0, 0), size / 100).clip(0, 1)

    return enlarged(chest), enlarged(inside)


def _mirror_below(layer: np.ndarray, part: Parts, pose: xray.Pose) -> np.ndarray:
    """The layer (S, S), mirrored where rays meet the CT's lower end."""
    # The CT's lower end in mm below its middle, higher where it is turned and rays cross it from front to back
    depth_mm = part.fine.spacing[0]
    slices = len(part.fine.values)
    about_left_right = pose.turn[0]
    _, _, stretch_deep = pose.stretch
    lean = abs(np.sin(about_left_right)) * stretch_deep * depth_mm * slices / 2
    lower_end = pose.centre[1] + SEEN * _half_height(part, pose) - lean

    # Rows below it show what lies as far above it.
    size = len(layer)
    edge = int(size * (0.5 + lower_end / pose.field))
    rows = np.arange(size)
    source = np.where(rows > edge, 2 * edge - rows, rows)
    return layer[source.clip(0)]


def lung_field(lung: np.ndarray, water: np.ndarray) -> np.ndarray:
    """bool (S, S): the lungs as one outlines them in a radiograph, without what heart and diaphragm hide.

    The air in front of and behind heart and diaphragm is thin; so is that at the chest wall, which is added from there
    outwards.
    """
    # The cores: much lung, and more of it than of tissue
    size = len(lung)
    most = np.quantile(lung[lung > 1], 0.95)  # cm
    thick = (lung > 0.35 * most) & (lung > 0.8 * water)
    thick = opened(thick, disc(size / 60))
    _, labels, statistics, centres = cv2.connectedComponentsWithStats(thick.astype(np.uint8))
    areas = statistics[1:, cv2.CC_STAT_AREA]  # without the background
    large = np.flatnonzero(areas > 0.01 * size * size)

    # Each core with the thinner air between it and the chest wall, and with its apex
    mask = np.zeros((size, size), bool)
    for label in 1 + large:
        core = labels == label
        centre_x, _ = centres[label]
        outwards = 1 if centre_x > size / 2 else -1
        begun = _swept(core, outwards)  # at or beyond the core's inner side
        not_ended = ~_swept(core, -outwards)  # beyond its outer side
        at_wall = (lung > 0.3 * most) & begun & not_ended
        above = core.any(0) & ~np.logical_or.accumulate(core, 0)
        apex = (lung > 0.12 * most) & above
        mask |= core | at_wall | apex

    # Smooth outlines
    without_gaps = closed(mask, disc(size / 50))
    return opened(without_gaps, disc(size / 80))


def _swept(mask: np.ndarray, direction: int) -> np.ndarray:
    """bool (S, S): the mask and all that lies to its right (direction 1) or left (-1) in its rows."""
    along = mask[:, ::direction]
    swept = np.logical_or.accumulate(along, 1)
    return swept[:, ::direction]


# --- The images -------------------------------------------------------------------------------------------------------


def expose(water: np.ndarray, bone: np.ndarray, drawn: Draw, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The log images (S, S) of the high energy and of the subtraction, free of noise."""
    # The radiograph's spectrum, from that of 80 kV to that of 120 kV
    size = len(water)
    hard = (1 - drawn.kilovolts) * xray.MIDDLE + drawn.kilovolts * xray.HIGH
    of_high = xray.attenuation(water, bone, hard)
    of_low = xray.attenuation(water, bone, xray.LOW)

    # The patient moves between the two exposures.
    if drawn.shift or drawn.beat:
        across, down = _motion_maps(drawn, seed, size)
        of_low = cv2.remap(of_low, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return of_high, xray.subtract(of_high, of_low, xray.LOW, hard)


def _motion_maps(drawn: Draw, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps of cv2.remap from one exposure to the other: the body moves a little, heart and diaphragm more."""
    # Heart and diaphragm: a Gaussian hill around their middle, in units of the side
    index = np.arange(size, dtype=np.float32)
    centre_x, centre_y, half_width, half_height = HEART
    x = index[None] / size  # (1, size)
    y = index[:, None] / size  # (size, 1)
    x_squared = ((x - centre_x) / half_width) ** 2
    y_squared = ((y - centre_y) / half_height) ** 2
    heart = np.exp(-x_squared - y_squared)  # (size, size)

    # The order of the draws is part of the pair.
    random = detail_generator(seed, "motion")
    body_x = drawn.shift * random.normal()
    heart_x = drawn.beat * random.normal()
    body_y = drawn.shift * random.normal()
    heart_y = drawn.beat * random.normal()
    across = size * (body_x + heart_x * heart)  # pixels
    down = size * (body_y + heart_y * heart)

    # cv2.remap wants the place that each pixel is taken from.
    from_x = index[None, :] + across
    from_y = index[:, None] + down
    return from_x.astype(np.float32), from_y.astype(np.float32)


def show(cxr: np.ndarray, soft: np.ndarray, drawn: Draw, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images (S, S) in [0, 1] of two log images: the same scatter, detector and display for both."""
    # Scatter: primary radiation exp(-log), spread wide
    size = len(cxr)
    primary = np.exp(-cxr)
    veil = drawn.scatter * blur(primary, 0.08).clip(0)

    # Quantum noise grows with what absorbs; the subtraction weights the noise of both exposures up, and filters take
    # most of it.
    random = detail_generator(seed, f"noise {size}")
    shared, own = random.standard_normal((2, size, size), np.float32)
    grain = drawn.noise * np.exp(GRAIN * np.minimum(cxr, 5))
    subtraction_noise = shared + drawn.subtraction * (2 * shared + 3 * own)

    def detect(log: np.ndarray, noise: np.ndarray) -> np.ndarray:
        exposure = (np.exp(-log) + veil) / (1 + drawn.scatter)
        blurred = blur(-np.log(exposure), drawn.sharp)
        return blurred + grain * noise

    cxr = detect(cxr, shared)
    soft = detect(soft, subtraction_noise)

    # Local contrast against the soft-tissue image for both: bone leaves no halo, and tissue keeps its grey.
    wide = blur(soft, 0.08)

    def enhance(log: np.ndarray) -> np.ndarray:
        fine_detail = 2 * log - blur(log, 0.003) - blur(log, 0.012)
        local_contrast = log - wide
        return log + drawn.unsharp * fine_detail + drawn.local * local_contrast

    # One tone curve for both, from the CXR's quantiles
    cxr = enhance(cxr)
    soft = enhance(soft)
    tone = xray.tone_curve(cxr, drawn.dark, drawn.tones)
    return tone(cxr), tone(soft)
