"""The shoulders of a CT put onto another patient: mirrored, turned and bent by seed, joined with the drawn ones at the
sides where the CT ends.

    around = girdle.with_shoulders(surroundings(seed, size), part, draw_anatomy(seed))

Everything happens in the image plane, in cm along the rays. The apices of the CT's lungs are laid onto those of the
patient; then either side is bent until its collar bone and the skin above it meet the drawn ones, as a shoulder is
raised or lowered. Maps are (S, S).
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..runtime.seeding import detail_generator
from . import geometry, skeleton, xray
from .anatomy import SIDE, Anatomy
from .field import smooth_step
from .shoulder_ct import Shoulders
from .surroundings import Surroundings

VERSION = 1  # of what `with_shoulders` makes of a CT, and shoulder_ct too; patients of two versions are never mixed
SHARE = 0.6  # of the patients who get a CT's shoulders where there is one
INLET_SHARE = 0.72  # half width of the lungs INLET below their apices, of half their largest width
FADE = 35.0  # mm over which the CT goes over into what is drawn at its sides and its lower end
CHIN = 12.0  # mm above the apices, up to which neck and shoulders are the CT's: a chin that is not raised comes there
EDGE = 3.0  # mm of its sides that are not shown
MEDIAL_END = (22.0, 29.0)  # mm from the middle, between which the collar bones' inner ends come in
THICKER = (0.6, 1.4)  # a drawn body against the CT's, from and to
THINNEST = 0.75  # of the drawn body, where the CT's is thinner
OUTLINE = (2.0, 9.0)  # cm of drawn tissue, between which the CT's comes in
FOLLOWS = (0.5, 0.9)  # of the way from its inner to its outer end, between which a collar bone takes the drawn course
SLIM = (0.55, 0.85)  # breadth of the collar bones of those who get them against those of the CT
GAIN = (0.5, 3.0)  # of the CT's mineral
UNEVEN = 7.0  # mm, deviation of the collar bones' inner ends from where the drawn ones are
SKIN = 2.0  # cm of tissue, at which the skin above the shoulder is looked up
LOWERED = 0.2  # of the side, by which a CT is projected lower than it is shown: bending takes rows from above the image


@dataclass(frozen=True)
class Placing:
    """How a patient wears a CT's shoulders: mirrored or not, and the pose."""

    mirrored: bool
    pose: xray.Pose


def wears(seed: int, count: int) -> int | None:
    """Which of `count` CTs of shoulders patient `seed` gets; None: the drawn shoulders."""
    random = detail_generator(seed, "girdle")
    if not count or random.random() >= SHARE:
        return None
    return int(random.integers(count))


def with_shoulders(around: Surroundings, part: Shoulders, anatomy: Anatomy) -> Surroundings:
    """A drawn patient's surroundings with the neck, collar bones and shoulder blades of a CT; a pure function of the
    patient, the CT and the size."""
    size = len(around.body)
    placing = place(part, around.chest, anatomy.seed, size)
    volume = part.volume
    if placing.mirrored:
        volume = replace(volume, values=volume.values[:, :, ::-1])
    seen = xray.project(volume, placing.pose, size)  # (size, size, 4), cm, lower than it will be by LOWERED
    water, collar_bones, blades, spine = np.moveaxis(_bent(seen, part, placing, around, anatomy), -1, 0)
    across, shown = _windows(part, placing, size)

    # The drawn girdle without its collar bones, which the CT has whole but for their outer ends
    drawn_bones = np.float32(SIDE) * skeleton.bone_thickness(anatomy, size, [skeleton.collar_bones(anatomy)])
    drawn_others = around.girdle - drawn_bones

    # As much mineral as in the drawn collar bones, on whose scale `Draw.girdle` and `Anatomy.bone` are
    own = (collar_bones * across).sum()
    gain = (drawn_bones * across).sum() / max(own, 1e-3)
    gain = np.float32(np.clip(gain, *GAIN))
    bones_share = across * _inner_ends(placing, part, size)
    girdle = gain * (bones_share * collar_bones + shown * blades)
    girdle += (1 - across) * drawn_bones + (1 - shown) * drawn_others

    # Spine and jaw are the CT's above the apices alone; below them the chest has its own.
    apex = around.chest[2] / size
    y = (np.arange(size) + 0.5)[:, None] / size
    neck = shown * smooth_step(y, apex + 0.02, apex - 0.05).astype(np.float32)

    return replace(
        around,
        body=_joined_body(water, around.body, shown),
        arms=(1 - shown) * around.arms,
        girdle=girdle,
        spine=(1 - neck) * around.spine + neck * spine,
    )


def _joined_body(water: np.ndarray, drawn: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """cm of tissue (S, S): the CT's where it is shown, else the drawn."""
    # As thick as the drawn body where the two meet
    seam = (shown > 0.2) & (shown < 0.8) & (water > SKIN) & (drawn > SKIN)
    if seam.any():
        ratio = np.median(drawn[seam] / water[seam])
        water = water * np.float32(np.clip(ratio, *THICKER))

    # The outline of neck and shoulders stays the drawn one, and no fold of a lying patient's skin shows.
    water = np.maximum(water, THINNEST * drawn)
    inside = shown * smooth_step(drawn, *OUTLINE).astype(np.float32)
    return (1 - inside) * drawn + inside * water


def place(part: Shoulders, chest: tuple[float, float, float, float], seed: int, size: int) -> Placing:
    """The pose in which the apices of the CT's lungs lie where those of the box `chest` do (right, left, top, bottom in
    pixels)."""
    random = detail_generator(seed, "girdle pose")
    mirrored = bool(random.random() < 0.5)
    # Upright, the front of the thoracic inlet lies lower than in a CT, whose patient lies with raised shoulders.
    turn = (random.uniform(0.08, 0.32), random.normal(0, 0.03), random.normal(0, 0.02))
    taller = random.uniform(0.94, 1.06)
    wider = random.uniform(0.96, 1.06)
    deeper = random.uniform(0.85, 1.1)

    right, left, top, _ = chest
    side_mm = 10 * SIDE
    mm = side_mm / size  # of a pixel
    wide = wider * INLET_SHARE * (left - right) / 2 * mm / part.inlet
    tall = wide * taller
    own_middle = -part.middle if mirrored else part.middle
    centre_x = (right + left - size) / 2 * mm - wide * own_middle
    centre_y = (top - size / 2) * mm - tall * part.apex + LOWERED * side_mm
    pose = xray.Pose(turn=turn, stretch=(wide, tall, wide * deeper), centre=(centre_x, centre_y), field=side_mm)
    return Placing(mirrored, pose)


def _inner_ends(placing: Placing, part: Shoulders, size: int) -> np.ndarray:
    """Shares (1, S): 0 in the middle, where breast bone and cartilage would be cut, 1 where the collar bones are."""
    x = _across(placing, part, size)
    start, end = np.multiply(MEDIAL_END, placing.pose.stretch[0])
    return smooth_step(np.abs(x), start, end).astype(np.float32)[None, :]


def _across(placing: Placing, part: Shoulders, size: int) -> np.ndarray:
    """(S,): mm of each column from the CT's middle as it is seen."""
    pose = placing.pose
    columns = ((np.arange(size) + 0.5) / size - 0.5) * pose.field
    own_middle = -part.middle if placing.mirrored else part.middle
    return columns - pose.centre[0] - pose.stretch[0] * own_middle


def _windows(part: Shoulders, placing: Placing, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the CT, float32: (1, S), 1 inside, 0 at its sides; (S, S), 0 at its lower end and at the chin as
    well."""
    pose = placing.pose
    mm = ((np.arange(size) + 0.5) / size - 0.5) * pose.field
    depth, height, width, _ = part.volume.values.shape
    dz, dy, dx = part.volume.spacing
    wide, tall, deep = pose.stretch

    # Where it is turned, rays leave it before its end.
    half_depth = deep * dz * depth / 2
    half_width = wide * dx * width / 2 - abs(np.sin(pose.turn[1])) * half_depth / 2 - EDGE
    half_height = tall * dy * height / 2 - abs(np.sin(pose.turn[0])) * half_depth / 2 - EDGE
    from_middle = np.abs(mm - pose.centre[0])  # (S,)
    across = smooth_step(from_middle, half_width, half_width - FADE)
    below_middle = mm + LOWERED * pose.field - pose.centre[1]
    from_apex = below_middle - tall * part.apex
    below_chin = smooth_step(from_apex, -CHIN - FADE / 2, -CHIN)
    down = smooth_step(below_middle, half_height, half_height - FADE) * below_chin
    across = across.astype(np.float32)[None, :]
    return across, across * down.astype(np.float32)[:, None]


# --- Bending ----------------------------------------------------------------------------------------------------------


def _bent(seen: np.ndarray, part: Shoulders, placing: Placing, around: Surroundings, anatomy: Anatomy) -> np.ndarray:
    """The layers (S, S, 4), moved up and down on either side as a shoulder is raised or lowered: the skin to the drawn
    skin, the collar bones to the drawn ones, all else with their outer ends, the less the nearer to the middle."""
    size = len(seen)
    rows = np.arange(size, dtype=np.float32)
    columns = np.broadcast_to(rows[None, :], (size, size))
    lowered = np.float32(LOWERED * size)
    for_bones = np.full((size, size), lowered) + rows[:, None]
    for_others = for_bones.copy()

    random = detail_generator(anatomy.seed, "girdle ends")
    slim = random.uniform(*SLIM)
    middle = (around.chest[0] + around.chest[1]) / 2
    drawn_body = np.maximum(around.body, around.arms)
    drawn_paths = geometry.project(anatomy, skeleton.collar_bones(anatomy).path, size)  # (2, k, 2), pixels
    for (inner, outer), path in zip(ends_seen(part, placing, size), drawn_paths):
        # How far above or below (negative) what is shown lies in the CT
        order = np.argsort(path[:, 0])
        targets = np.interp([inner[0], outer[0]], path[order, 0], path[order, 1])
        targets[0] += random.normal(0, UNEVEN) / (10 * SIDE) * size
        move_inner = inner[1] - lowered - targets[0]
        move_outer = outer[1] - lowered - targets[1]
        column = int(np.clip(outer[0], 2, size - 3))
        skin = _skin(drawn_body, column)
        move_skin = _skin(seen[..., 0], column) - lowered - skin

        # The collar bone is turned and shifted as a whole; towards its outer end it takes the drawn one's course.
        way = (rows - inner[0]) / (outer[0] - inner[0])  # 0 at the inner end, 1 at the outer one
        own_side = (rows - middle) * (outer[0] - middle) > 0
        turned = (1 - way) * move_inner + way * move_outer
        course = _course(seen[..., 1], own_side) - lowered
        followed = course - np.interp(rows, path[order, 0], path[order, 1])
        follows = smooth_step(way, *FOLLOWS)
        turned = (1 - follows) * turned + follows * followed

        # Slimmer about its own course: 1 / slim rows of the CT in one of the result
        below_course = rows[:, None] - (course - turned)[None, :]  # (S, S)
        moved = turned[None, :] + (1 / slim - 1) * below_course
        for_bones += np.where(own_side[None, :], moved, 0).astype(np.float32)

        # The rest: between skin and collar bone from the one move to the other
        below_skin = (rows - skin) / max(targets[1] - skin, 0.01 * size)
        along = move_skin + np.clip(below_skin, 0, 1) * (move_outer - move_skin)  # (S,)
        share = np.where(own_side, np.clip(way, 0, 1.3), 0)
        for_others += (along[:, None] * share[None, :]).astype(np.float32)

    bent = cv2.remap(seen, columns, for_others, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    bent[..., 1] = cv2.remap(seen[..., 1], columns, for_bones, cv2.INTER_LINEAR)
    return bent


def _course(collar_bones: np.ndarray, own_side: np.ndarray) -> np.ndarray:
    """The row (S,) in which the collar bone of one side runs in each column; where there is none, as next to it."""
    rows = np.arange(len(collar_bones))
    mineral = collar_bones.sum(0)  # (S,)
    known = np.flatnonzero((mineral > 0.05 * mineral.max()) & own_side)
    if not len(known):
        return np.zeros(len(rows))
    centres = (rows[:, None] * collar_bones[:, known]).sum(0) / mineral[known]
    return np.interp(rows, known, centres)


def _skin(body: np.ndarray, column: int) -> float:
    """The first row from above in which the body around a column is more than SKIN thick."""
    profile = body[:, column - 2 : column + 3].mean(1)
    return float(np.argmax(profile > SKIN))


def ends_seen(part: Shoulders, placing: Placing, size: int) -> np.ndarray:
    """Pixels (2, 2, 2) of the inner and the outer end of the CT's collar bones, as it is projected, the bone on the
    image's left first."""
    pose = placing.pose
    points = part.collar_bones.copy()
    if placing.mirrored:
        points = points[::-1] * [-1, 1, 1]
    placed = points @ (xray.rotation(pose.turn) @ np.diag(pose.stretch)).T  # (2, 2, 3), mm
    half_depth = pose.stretch[2] * part.volume.spacing[0] * len(part.volume.values) / 2
    source_distance = xray.FOCUS - half_depth - xray.GAP
    nearer = 1 - placed[..., 2:] / source_distance
    plane = (placed[..., :2] + pose.centre) / nearer
    return (plane / pose.field + 0.5) * size - 0.5
