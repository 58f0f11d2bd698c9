"""The readers' files, the key and the truth -> what every reader said of every image, and which lesions were found."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data import lists
from ..evaluation.findings import Finding
from ..runtime.files import UserError
from .folder import CRITERIA
from .statistics import Counts

UNMARKED = -math.inf  # the rating of a lesion, or of an image without one, that nobody marked


@dataclass(frozen=True)
class Mark:
    """x, y: middle of a point or box, pixels of the X-ray counted from their centres; confidence: 1 to 5."""

    x: float
    y: float
    confidence: int


@dataclass(frozen=True)
class Reach:
    """How far from a lesion's centre a mark may lie: so many radii of the lesion, and at least so many pixels."""

    radii: float
    pixels: float


@dataclass(frozen=True)
class Answer:
    """What a reader said of one image. ratings: {criterion: 1 to 3}."""

    ratings: dict[str, int]
    marks: tuple[Mark, ...]
    seconds: float


@dataclass
class Reader:
    """One reader. answers: {kind: {image: Answer}}, of the images that were read to the end."""

    name: str
    experience: float | None
    answers: dict[str, dict[str, Answer]]
    unread: int = 0
    label: str = field(init=False)

    def __post_init__(self):
        years = "" if self.experience is None else f" ({self.experience:g} years)"
        self.label = f"reader {self.name}{years}"


@dataclass(frozen=True)
class Matched:
    """One image's marks against its lesions. by_lesion: counts of lesions; by_image: of the image as a whole; found:
    whether each lesion was; ratings: the highest confidence on each lesion; false: the highest of a mark on none.
    """

    by_lesion: Counts
    by_image: Counts
    found: tuple[bool, ...]
    ratings: tuple[float, ...]
    false: float


def read(folder: str | Path, key: dict) -> list[Reader]:
    """The readers of the JSON files in a folder, by their names.

    Raises UserError for a file that is no such answer or another study's, for two files of one reader, and where there
    is none.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        raise UserError(f"no readers' files (.json) in {folder}; set study.answers")
    readers: dict[str, Reader] = {}
    for path in paths:
        reader = _read_one(path, key)
        if reader.name in readers:
            raise UserError(f"{path} is a second file of reader {reader.name}; keep the one that counts")
        readers[reader.name] = reader
    return [readers[name] for name in key["orders"] if name in readers]


def _read_one(path: Path, key: dict) -> Reader:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        study = tree["study"]
        name = tree["reader"]
        given = dict(tree["answers"])
        years = tree.get("experience")
        experience = None if years is None else float(years)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no file of a reader's answers: {error!r}") from None
    if study != key["study"] or name not in key["orders"]:
        raise UserError(f"{path} holds answers to another study than the key's ({key['study']})")
    strange = sorted(set(given) - set(key["images"]))
    if strange:
        raise UserError(f"{path} has answers to images that the key does not know: {lists.shown_names(strange)}")

    reader = Reader(name, experience, {kind: {} for kind in key["kinds"]})
    for image_id, shown in key["images"].items():
        try:
            answer = _answer(given.get(image_id))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: the answer to {image_id} cannot be read: {error!r}") from None
        if answer is None:
            reader.unread += 1
        else:
            reader.answers[shown["kind"]][shown["image"]] = answer
    return reader


def _answer(tree: dict | None) -> Answer | None:
    """One answer, None where something is lacking: the page lets nobody go on then, but a file may be saved before."""
    if tree is None or any(not tree.get(key) for key, _, _ in CRITERIA):
        return None
    marks = tree["marks"]
    if not (marks or tree["none"]) or any(not mark["confidence"] for mark in marks):
        return None
    ratings = {}
    for key, _, options in CRITERIA:
        ratings[key] = tree[key]
        if ratings[key] not in [value for value, _ in options]:
            raise ValueError(f"{key} is {ratings[key]}")
    # The page counts pixels from the image's edge, lists of findings from the first pixel's centre.
    read_marks = []
    for mark in marks:
        read_marks.append(Mark(float(mark["x"]) - 0.5, float(mark["y"]) - 0.5, int(mark["confidence"])))
    return Answer(ratings, tuple(read_marks), float(tree["seconds"]))


def match(marks: Sequence[Mark], lesions: Sequence[Finding], reach: Reach) -> Matched:
    """Marks against the lesions of an image.

    A mark belongs to the nearest lesion within reach; otherwise it is a false positive. Several marks on one lesion
    count as one.
    """
    ratings = [UNMARKED] * len(lesions)
    false_ratings = []
    for mark in marks:
        near = []
        for place, lesion in enumerate(lesions):
            distance = math.hypot(mark.x - lesion.x, mark.y - lesion.y)
            if distance <= max(reach.radii * lesion.diameter / 2, reach.pixels):
                near.append((distance, place))
        if near:
            place = min(near)[1]
            ratings[place] = max(ratings[place], mark.confidence)
        else:
            false_ratings.append(mark.confidence)

    found = tuple(rating > UNMARKED for rating in ratings)
    by_lesion = Counts(sum(found), len(false_ratings), len(found) - sum(found))
    # the image as a whole: is there any lesion, and was any marked, wherever
    by_image = Counts(
        tp=int(bool(lesions) and bool(marks)),
        fp=int(not lesions and bool(marks)),
        fn=int(bool(lesions) and not marks),
    )
    return Matched(by_lesion, by_image, found, tuple(ratings), max(false_ratings, default=UNMARKED))
