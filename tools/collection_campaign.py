"""A tree of tiny X-rays, some of them broken, through the evaluation, with a network that does nothing; killed on the
way.

    python tools/collection_campaign.py [--images 20000] [--kills 2] [--broken 0.01] [--folder FOLDER]

Makes the tree in FOLDER (a temporary folder if none is named, which is removed at the end), starts the evaluation of
it with eval.skip_faulty, ends it by kill -9 at seeded moments, and starts it again until it is through. Then it
compares what lies there with what should: every whole X-ray has its result, every broken one its line in the summary,
nothing is left over. Prints the counts; exit status 1 if they differ. Some minutes for 20000 images on two cores.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SIDE = 32  # pixels
STUDIES = 50  # images of one patient's folder
POLL = 0.02  # seconds between two looks at the record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--broken", type=float, default=0.01, help="share of the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="kept; a temporary one otherwise")
    parser.add_argument("--evaluate", action="store_true", help="what the started process does")
    asked = parser.parse_args()
    if asked.evaluate:
        return evaluate(Path(asked.folder))
    if asked.folder:
        return campaign(Path(asked.folder), asked.images, asked.kills, asked.broken, random.Random(asked.seed))
    with tempfile.TemporaryDirectory() as folder:
        return campaign(Path(folder), asked.images, asked.kills, asked.broken, random.Random(asked.seed))


def campaign(folder: Path, count: int, kills: int, broken: float, rng: random.Random) -> int:
    """Make the tree, run through it, compare. The exit status."""
    faulty = make_tree(folder / "in", count, broken, rng)
    print(f"{count} images in {len(list((folder / 'in').iterdir()))} folders, {len(faulty)} of them broken", flush=True)

    # killed each time when a further share of the images is done
    began = time.perf_counter()
    done_before = 0
    for number in range(kills):
        goal = count * (number + 1) // (kills + 1)
        process = start(folder)
        while entries(folder) < goal and process.poll() is None:
            time.sleep(POLL)
        process.kill()
        process.wait()
        done = entries(folder)
        print(f"killed after {done - done_before} images more, {done} in the record", flush=True)
        done_before = done
    process = start(folder)
    status = process.wait()
    seconds = time.perf_counter() - began
    summary = json.loads((folder / "out" / "summary.json").read_text())
    going_on = [line for line in (folder / "log").read_text().replace("\r", "\n").splitlines() if "going on" in line]
    print("\n".join(going_on))

    # what should be there
    expected = {name_of(path, folder / "in") for path in (folder / "in").rglob("*.png")} - faulty
    results = {name_of(path, folder / "out") for path in (folder / "out").rglob("*.png")}
    left_over = [path for path in (folder / "out").rglob("*") if path.is_file() and path.suffix != ".png"]
    right = {
        "status": status == 1,
        "results": results == expected,
        "summary": set(summary["seconds_per_image"]) == expected,
        "failed": set(summary["failed"]) == faulty,
        "nothing left over": [path.name for path in left_over] == ["summary.json"],
    }
    print(
        f"{len(results)} results, {len(summary['failed'])} named as failed, {kills} kills, status {status}, "
        f"{seconds:.0f} s in all"
    )
    wrong = [name for name, holds in right.items() if not holds]
    print(f"wrong: {', '.join(wrong)}" if wrong else "as it should be")
    return 1 if wrong else 0


def make_tree(folder: Path, count: int, broken: float, rng: random.Random) -> set[str]:
    """Write the tree; the names of the broken files: empty, cut off, of text, or of one grey value."""
    import numpy as np

    from models import images

    # a few whole images under all names, as drawing each would take longer than what is to be measured
    random_levels = np.random.default_rng(0)
    contents = []
    for number in range(16):
        images.write(folder / "x.png", random_levels.random((SIDE, SIDE)), 8 if number % 2 else 16)
        contents.append((folder / "x.png").read_bytes())
    images.write(folder / "x.png", np.full((SIDE, SIDE), 0.5))
    constant = (folder / "x.png").read_bytes()
    (folder / "x.png").unlink()

    faulty = set()
    numbers = set(rng.sample(range(count), round(count * broken)))
    for number in range(count):
        path = folder / f"patient{number // STUDIES}" / f"scan{number}.png"
        if number % STUDIES == 0:
            path.parent.mkdir(parents=True)
        content = contents[number % len(contents)]
        if number in numbers:
            content = rng.choice((b"", content[:60], b"no image", constant))
            faulty.add(name_of(path, folder))
        path.write_bytes(content)
    return faulty


def name_of(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve()), "--evaluate", "--folder", str(folder)]
    with open(folder / "log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def entries(folder: Path) -> int:
    """How many images the record says are done."""
    record = folder / "out" / "unfinished_0.jsonl"
    return record.read_bytes().count(b'"name"') if record.exists() else 0


def evaluate(folder: Path) -> int:
    """The evaluation, with everything but a network."""
    from models.evaluation import run, shards
    from models.evaluation.cases import find_cases
    from models.evaluation.reading import Reader
    from models.evaluation.record import Record
    from models.evaluation.results import Form, Output

    cases = find_cases(folder / "in", folder, None)
    record = Record(Output.at(folder / "out", len(cases)), {"image_size": SIDE}, cases)
    reader = Reader(shards.batches_left(record, 1), skip_faulty=True, targets=False)
    reader.preload()
    summary = run.evaluate(Nothing(), record, batch_size=1, form=Form(panels=False), reader=reader)
    return run.say_failed(summary.get("failed", {}))


class Nothing:
    """A method that gives the X-ray back."""

    residual = False
    compiled = False

    def __call__(self, cxr, names, masks, progress):
        return cxr


if __name__ == "__main__":
    raise SystemExit(main())
