"""What the evaluation around the network costs an image, in a folder where much is done already.

    python tools/benchmarks/record_cost.py [entries 0 1000 100000] [--images 200]

For each number of entries: a folder with so many X-rays, as many results, and the record of a run that was killed
after them; then `--images` further X-rays go through a network that does nothing. Prints the seconds that the X-rays
are looked for (a run that begins anew does so too), those until it is known which are left, those from the start to the
first image, the processor's seconds till then (which other programs on the machine stretch less), and the median
milliseconds of an image after that, which do not grow with the entries. The first image comes after the first X-rays
are read: all that are left, or 1024. They are hard links to a few files, 32 x 32. Half a minute on two cores.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models import images  # noqa: E402
from models.evaluation import record, run, shards  # noqa: E402
from models.evaluation.cases import Case, find_cases  # noqa: E402
from models.evaluation.reading import Reader  # noqa: E402
from models.evaluation.results import Form, Output  # noqa: E402

SIDE = 32  # pixels
LINKS = 10_000  # to one file; file systems allow some 65 000


class Nothing:
    """A method that gives the X-ray back and notes when it was called."""

    residual = False
    compiled = False

    def __init__(self):
        self.moments: list[float] = []
        self.computed = 0.0  # seconds of the processor when it was called first

    def __call__(self, cxr, names, masks, progress):
        if not self.moments:
            self.computed = time.process_time()
        self.moments.append(time.perf_counter())
        return cxr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", type=int, nargs="*", default=[0, 1000, 100_000])
    parser.add_argument("--images", type=int, default=200)
    asked = parser.parse_args()
    for count in asked.entries:
        with tempfile.TemporaryDirectory() as folder:
            cost = measure(Path(folder), count, asked.images)
        load = os.getloadavg()[0]
        print(
            f"{count} entries: found after {cost.found:.2f} s, goes on after {cost.known:.2f} s, first image after "
            f"{cost.first:.2f} s ({cost.computed:.2f} s computed), then {cost.each:.2f} ms an image (load {load:.1f})",
            flush=True,
        )


class Cost(NamedTuple):
    """Seconds from the start until the X-rays are found, until it is known which are left, and to the first image;
    computed: the last in seconds of the processor. each: median milliseconds of an image."""

    found: float
    known: float
    first: float
    computed: float
    each: float


def measure(folder: Path, count: int, further: int) -> Cost:
    """The cost with `count` images done and `further` ones left."""
    prepare(folder, count, further)
    method = Nothing()
    began = time.perf_counter()
    computed_before = time.process_time()
    with redirect_stderr(StringIO()):
        cases = find_cases(folder / "in", folder, None)
        found = time.perf_counter()
        opened = record.Record(Output.at(folder / "out", len(cases)), {"image_size": SIDE}, cases)
        left = shards.batches_left(opened, 1)
        known = time.perf_counter()
        reader = Reader(left, targets=False)
        reader.preload()
        run.evaluate(method, opened, batch_size=1, form=Form(panels=False), reader=reader)
    assert len(method.moments) == further
    first = method.moments[0]
    each = statistics.median(np.diff(method.moments) * 1000)
    return Cost(found - began, known - began, first - began, method.computed - computed_before, each)


def prepare(folder: Path, count: int, further: int) -> None:
    """The X-rays, and the results and the record of those that are done."""
    source = folder / "source.png"
    result = folder / "result.png"
    lines = [json.dumps({"about": {"image_size": SIDE}})]
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    for number in range(count + further):
        if number % LINKS == 0:
            source = folder / f"source{number}.png"
            images.write(source, np.random.default_rng(number).random((SIDE, SIDE)))
            # a result must not be an input by another name, which the evaluation would refuse
            result = folder / f"result{number}.png"
            result.write_bytes(source.read_bytes())
            content = Case("", source, None, None).content
            stamp = Case("", source, None, None).stamp
        os.link(source, folder / "in" / f"{number:06}.png")
        if number < count:
            os.link(result, folder / "out" / f"{number:06}.png")
            entry = record.Entry(content, 0.01, True, {}, stamp)
            lines.append(json.dumps({"writing": [f"{number:06}"]}))
            lines.append(json.dumps({"name": f"{number:06}", **entry._asdict()}))
    (folder / "out" / "unfinished_0.jsonl").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
