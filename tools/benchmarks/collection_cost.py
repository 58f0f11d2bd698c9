"""What preparing, scoring and training take of a large data set: memory, time an image, time to the first progress.

    python tools/benchmarks/collection_cost.py [pairs 2000 20000] [--only prepare score train]

For each number of pairs: a folder with so many drawn pairs, 64 x 64, all of them different. Then

    prepare   python dataSegmentation.py of it
    score     python metrics.py with the X-rays as predictions, without the page
    train     in a process of its own: find the pairs, read the first batch, then up to 4000 images

Prints for each the seconds to the first progress (the first image of a bar, the first batch; the start of Python and
PyTorch among them), the milliseconds of the processors for each pair, and the most memory that a process took. Memory
should not grow, or by little, and time an image not at all. Some minutes for 20000 pairs on two cores.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SIDE = 64  # pixels
BATCH = 8  # images
MOST_READ = 4000  # images that `train` reads
PROGRESS = re.compile(rb"\b[1-9]\d*/\d+ \[")  # a bar that has counted one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="*", default=[2000, 20_000])
    parser.add_argument(
        "--only", nargs="*", choices=["prepare", "score", "train"], default=["prepare", "score", "train"]
    )
    parser.add_argument("--read", help="what the started process does: reads the pairs of this folder")
    asked = parser.parse_args()
    if asked.read:
        read(Path(asked.read))
        return
    for count in asked.pairs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_pairs(folder, count)
            data = [f"data.root={folder}", f"data.lists={folder}", "data.name=x"]
            # Truth and X-ray lie where metrics.py looks for them.
            scored = ["metrics.size=64", "metrics.page=false", f"metrics.output={folder}/scores"]
            commands = {
                "prepare": ["dataSegmentation.py", *data, "data.skip_faulty=true"],
                "score": ["metrics.py", f"data.root={folder}", f"metrics.prediction={folder}/CXR", *scored],
                "train": [__file__, "--read", str(folder)],
            }
            for work in asked.only:
                measure(work, count, [sys.executable, *commands[work]])


def make_pairs(folder: Path, count: int) -> None:
    """CXR/ and BS/ with pairs of noise that is smooth enough to be aligned, and their training list."""
    import cv2
    import numpy as np

    levels = np.random.default_rng(0)
    for name in ("CXR", "BS"):
        (folder / name).mkdir()
    for number in range(count):
        rough = levels.random((SIDE // 4, SIDE // 4), dtype=np.float32)
        soft = cv2.resize(rough, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        cxr = soft + 0.03 * levels.random((SIDE, SIDE), dtype=np.float32)
        for place, pixels in (("CXR", cxr), ("BS", soft)):
            grey = np.clip(200 * pixels, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / place / f"{number}.png"), grey)
    names = "".join(f"{number}\n" for number in range(count))
    (folder / "x_trainset.txt").write_text(names)
    (folder / "x_valset.txt").write_text("")
    (folder / "x_testset.txt").write_text("")


def measure(work: str, count: int, command: list[str]) -> None:
    """Run a command and print what it took."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0)
    assert process.stderr is not None
    first = None
    said = b""
    while text := process.stderr.read(4096):
        said = (said + text)[-8192:]
        if first is None and PROGRESS.search(said):
            first = time.perf_counter() - began
    _, status, used = os.wait4(process.pid, 0)
    # dataSegmentation.py's and metrics.py's helpers are threads or processes of their own, which `used` counts too
    computed = used.ru_utime + used.ru_stime
    # metrics.py shows its bar on a terminal only
    shown = "no bar" if first is None else f"{first:.1f} s"
    print(
        f"{work:8s} {count:7d} pairs: first progress {shown}, {1000 * computed / count:.2f} ms computed a pair, "
        f"{used.ru_maxrss / 1024:.0f} MiB, status {os.waitstatus_to_exitcode(status)}",
        flush=True,
    )
    if os.waitstatus_to_exitcode(status):
        print(said.decode(errors="replace")[-500:])


def read(folder: Path) -> None:
    """What a training of the autoencoder does before and between its steps."""
    from tqdm import tqdm

    from models.data import datasets, lists

    pairs, _ = lists.training_pairs(folder, folder, "x")
    source = datasets.ImageSource(pairs, SIDE, masked=False, workers=0)
    source.keeps = False  # as of images that do not fit into memory
    count = min(len(source), MOST_READ)
    batches = [list(range(start, start + BATCH)) for start in range(0, count - BATCH + 1, BATCH)]
    for _ in tqdm(source.batches(batches), total=len(batches), desc="reading"):
        pass


if __name__ == "__main__":
    main()
