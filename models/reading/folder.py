"""The folder that the readers of a study get: images under random names, a page to read them on, nothing that tells
which is which.

<study.output>/reading/   index.html and images/: this is what is handed out
<study.output>/key.json   which image is whose, and of which kind; it stays with whoever scores
"""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from .. import config, images
from ..data import lists, patients
from ..evaluation import scoring
from ..runtime import ownership, seeding
from ..runtime.files import UserError
from ..viewing import page

READING = "reading"
KEY = "key.json"
CXR = "CXR"  # the kind of the untouched X-rays; the others are the methods' names
WHITE = 255  # a browser shows 8 bits
ID_BYTES = 4  # of an image's random name
# All files get this date, so that none tells when its image was made: 2000-01-01, in seconds since 1970.
DATE = 946684800
# BS-LDM's criteria of image quality, with the values of the answers [B, clinical evaluation]
CRITERIA = (
    ("vessels", "Lung vessel visibility", ((3, "clearly displayed"), (2, "displayed"), (1, "not displayed"))),
    (
        "airways",
        "Airway visibility",
        ((3, "lobar and intermediate bronchi"), (2, "main bronchi and carina"), (1, "trachea")),
    ),
    (
        "bone",
        "Degree of bone suppression",
        ((3, "nearly perfect"), (2, "fewer than 5 bones unsuppressed"), (1, "5 or more bones unsuppressed")),
    ),
)
CONFIDENCES = ((1, "barely"), (2, "a little"), (3, "moderately"), (4, "rather"), (5, "certain"))  # for AFROC


def make(settings: config.Settings) -> str:
    """Write the readers' folder and the key; what to say of them.

    Raises UserError for images without a result, for a study with fewer than two patients, and where another study
    lies already.
    """
    study = settings.study
    output = Path(study.output)
    sources = _find_sources(study)
    names = list(sources[CXR])
    patient_of = _patients(sources, settings.data.patient)
    if len(set(patient_of.values())) < 2:
        raise UserError(
            f"a study needs two patients or more, since no two images in a row may be of one; {study.cxr} gives one"
        )

    # names and orders: functions of the seed, so that the same command gives the same folder
    kinds = list(sources)
    random = seeding.detail_generator(study.seed, "reading study")
    ids = _draw_ids([(name, kind) for name in names for kind in kinds], random)
    orders = {}
    for number in range(1, study.readers + 1):
        own = seeding.detail_generator(study.seed, f"reader {number}")
        order = draw_order(names, kinds, patient_of, own)
        orders[str(number)] = [ids[pair] for pair in order]
    key = {
        # known by what it holds: answers of another study cannot be scored with this key
        "study": f"{random.integers(2**48):012x}",
        "kinds": kinds,
        "images": {ids[name, kind]: {"image": name, "kind": kind} for name, kind in sorted(ids, key=ids.__getitem__)},
        "patients": patient_of,
        "orders": orders,
    }
    _refuse_another(output, key, [path for paths in sources.values() for path in paths.values()])

    # the key first: it is the record by which the folder is known as ours
    images.write_file(output / KEY, (json.dumps(key, indent=1, ensure_ascii=False) + "\n").encode())
    folder = output / READING
    if folder.exists():
        shutil.rmtree(folder)
    sizes = _write_images(sources, ids, folder / "images")
    _write_page(key, sizes, folder)
    _same_dates(folder)
    return (
        f"{len(ids)} images of {len(names)} X-rays for {study.readers} readers: give them {folder}, "
        f"keep {output / KEY} from them"
    )


def _find_sources(study: config.Study) -> dict[str, dict[str, Path]]:
    """{kind: {name: file}} of the images to read, the same names in every kind."""
    sources = {CXR: images.find(study.cxr)}
    methods = scoring.name_methods(study.results)
    if CXR in methods:
        raise UserError(f"a method may not be called {CXR}; rename the folder {methods[CXR]}")
    for method, folder in methods.items():
        sources[method] = images.find(folder)

    # asked for by a list, an image must be everywhere; without one, what all folders hold is read
    if study.images:
        names = lists.read_list(study.images)
        for kind, paths in sources.items():
            missing = [name for name in names if name not in paths]
            if missing:
                raise UserError(f"study.images names what {kind} does not have: {lists.shown_names(missing)}")
    else:
        names = [name for name in sources[CXR] if all(name in paths for paths in sources.values())]
    if not names:
        raise UserError(f"no image of {study.cxr} has a result of the same name in {', '.join(methods.values())}")
    return {kind: {name: paths[name] for name in names} for kind, paths in sources.items()}


def _patients(sources: dict[str, dict[str, Path]], rule: str | None) -> dict[str, str]:
    """{name: patient}; an image of which nobody says whose it is counts as a patient of its own."""
    pairs: dict[str, lists.Pair] = {name: (path, path, None) for name, path in sources[CXR].items()}
    known = patients.find(pairs, rule)
    return {name: known.get(name, name) for name in pairs}


def _draw_ids(pairs: list[tuple[str, str]], random: np.random.Generator) -> dict[tuple[str, str], str]:
    """A random name for each (image, kind), all different."""
    drawn: dict[str, None] = {}
    while len(drawn) < len(pairs):
        drawn[random.bytes(ID_BYTES).hex()] = None
    return dict(zip(pairs, drawn))


def draw_order(
    names: list[str], kinds: list[str], patient_of: dict[str, str], random: np.random.Generator
) -> list[tuple[str, str]]:
    """An order of all (image, kind) in which no two neighbours are of one patient.

    It has a round for each kind, and every image is in each round once, each time as another kind: so half of a study
    of two kinds lies between the two views of an image in the mean, and a pause between rounds separates them. In each
    round the kinds are as equally many as can be. Raises UserError where one patient has more than half of the images.
    """
    # The first kind of each image; the others follow in a circle, so that a round has all kinds about equally often.
    shuffled = [str(name) for name in random.permutation(names)]
    first = {name: place % len(kinds) for place, name in enumerate(shuffled)}

    order: list[tuple[str, str]] = []
    for number in range(len(kinds)):
        last = patient_of[order[-1][0]] if order else None
        for name in _apart(names, patient_of, last, random):
            order.append((name, kinds[(first[name] + number) % len(kinds)]))
    return order


def _apart(names: list[str], patient_of: dict[str, str], last: str | None, random: np.random.Generator) -> list[str]:
    """The names in a random order without two of one patient in a row, nor one of the patient `last` at the start."""
    left: dict[str, list[str]] = {}  # {patient: their images}, each in random order
    for name in random.permutation(names):
        left.setdefault(patient_of[str(name)], []).append(str(name))

    order = []
    while left:
        count = sum(len(own) for own in left.values())
        # a patient with more than half of what is left must come now, or would be left over at the end
        urgent = [patient for patient, own in left.items() if 2 * len(own) > count and patient != last]
        possible = urgent or [patient for patient in left if patient != last]
        if not possible:
            raise UserError("one patient has so many of the images that two of them would be read in a row")
        weights = np.array([len(left[patient]) for patient in possible])
        last = possible[random.choice(len(possible), p=weights / weights.sum())]
        order.append(left[last].pop())
        if not left[last]:
            del left[last]
    return order


def _refuse_another(output: Path, key: dict, inputs: list[Path]) -> None:
    """Raise UserError where another study, or somebody's files, lie in the output folder, or it cannot be written."""
    existing = read_key(output) if (output / KEY).exists() else None
    if existing is not None and existing != key:
        raise UserError(
            f"{output / KEY} is the key of another study, whose answers could not be scored without it; "
            "give this one another folder with study.output="
        )
    results = [output / KEY, output / READING]
    ownership.refuse_foreign(results, inputs, results if existing is not None else [], "study.output")
    ownership.require_writable(output)


def _write_images(
    sources: dict[str, dict[str, Path]], ids: dict[tuple[str, str], str], folder: Path
) -> dict[str, list[int]]:
    """The images under their random names, in these names' order; {random name: [width, height]}.

    All kinds are written alike: read, brought to the X-ray's size, 8 bits, without compression and without any text.
    A compressed file would tell by its length how much bone is in it.
    """
    sizes = {}
    for (name, kind), image_id in sorted(ids.items(), key=lambda item: item[1]):
        shape = images.read(sources[CXR][name]).pixels.shape
        pixels = images.resize(images.read(sources[kind][name]).pixels, shape)
        levels = np.rint(pixels * WHITE).astype(np.uint8)
        written, content = cv2.imencode(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 0])
        if not written:
            raise ValueError(f"OpenCV cannot encode an image of shape {shape}")
        images.write_file(folder / f"{image_id}.png", content.tobytes())
        sizes[image_id] = [shape[1], shape[0]]
    return sizes


def _write_page(key: dict, sizes: dict[str, list[int]], folder: Path) -> None:
    """index.html: it knows the orders, and neither kinds nor names nor patients."""
    criteria = [{"key": name, "title": title, "options": options} for name, title, options in CRITERIA]
    data = {
        "title": "Reading study: chest X-rays",
        "study": key["study"],
        "criteria": criteria,
        "confidences": CONFIDENCES,
        "orders": key["orders"],
        "images": sizes,
    }
    images.write_file(folder / "index.html", page.fill("study", data))


def _same_dates(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (DATE, DATE))


def read_key(output: Path) -> dict:
    """The key of a study; UserError where there is none, or something else of that name."""
    path = output / KEY
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        if not {"study", "kinds", "images", "patients", "orders"} <= set(key):
            raise ValueError("it lacks what a key holds")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"no key of a study in {path} ({error}); python reading_study.py make writes it") from None
    return key
