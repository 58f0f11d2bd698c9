"""Give the project bad inputs by the thousand: each must end in a result or in one line, and none may change its input.

    python tools/fuzz.py [--count 1000] [--seconds 0] [--seed 0] [--only image,dicom] [--keep FOLDER]
    python tools/fuzz.py --count 40 --only image,array,list                          (a tiny run, some seconds on a CPU)

Damaged image and DICOM files, odd arrays, names, folders, split lists, settings, weights and training states go to the
functions that the scripts call with them, and a share of all to the scripts themselves, trainings among them, which are
also told to write where the inputs lie. An input (fuzz_inputs.py) is a function of (seed, number), so a failure is seen
again with --seed SEED --first NUMBER --count 1. With --seconds the numbers go on for so long, whatever --count says.
Prints how often each kind ended how, and each failure: an exception other than UserError, a message of several lines, a
changed input, more than LIMIT_SECONDS or LIMIT_BYTES. --keep: folder to which the inputs that failed are copied. Exit
status 1 if any failed.
"""

import argparse
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
import yaml
from fuzz_inputs import (  # puts the project on the path
    ODD_NUMBERS,
    ODD_TEXTS,
    ROOT,
    damaged,
    dicom_file,
    odd_name,
    picture_file,
    tiny_network,
    with_odd_header,
)

from models import config, images, plausibility, settings_file
from models.data import inputs, lists
from models.evaluation.cases import find_cases
from models.runtime import training_state, weights_file
from models.runtime.files import UserError
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

LIMIT_SECONDS = 30  # of one input; of a script it is SCRIPT_SECONDS
SCRIPT_SECONDS = 300  # a busy machine takes a minute to import torch alone
LIMIT_BYTES = 3 * 2**30  # by which one input may raise the most memory that the process ever took
SCRIPTS = (
    "batch_lcm_eval.py",
    "batch_lcm_eval.py",
    "ldm_eval.py",
    "ldm_eval.py",
    "vq-gan_eval.py",
    "metrics.py",
    "dataSegmentation.py",
    "ldm_train.py",
)


class TooSlow(BaseException):
    """An input took longer than LIMIT_SECONDS. No Exception, which the readers would turn into a message."""


# --- What is done with them: each of these gives "result", or raises --------------------------------------------------


def read_and_write(path: Path, out: Path, rng: random.Random) -> str:
    """Everything that an evaluation does with an image, but for the networks."""
    limits = images.parse_limits(rng.choice(("auto", "auto", "auto", "container", "4095", "-100..3000")))
    picture = images.read(path, limits)
    assert picture.pixels.ndim == 2 and picture.pixels.dtype == np.float32, "a picture is float32 (H, W)"
    assert picture.pixels.min() >= 0 and picture.pixels.max() <= 1, "pixels lie in [0, 1]"
    assert "\n" not in picture.note, "a note is one line"
    square = images.to_network(picture.pixels, 32)
    result = images.from_network(square, picture.pixels.shape)
    images.write_like(out / "x.png", result, picture)
    again = images.read(out / "x.png")
    assert again.pixels.shape == picture.pixels.shape, "a result has its input's shape"
    if images.is_dicom(path):
        images.write_dicom(out / "x.dcm", result, path, "fuzz", ("fuzz",), limits)
        images.read(out / "x.dcm")
    plausibility.check(picture)
    return "result"


def try_image(folder: Path, out: Path, rng: random.Random) -> str:
    path = picture_file(folder, rng)
    path.write_bytes(damaged(path.read_bytes(), rng))
    if rng.random() < 0.1:  # under another kind's name
        path = path.rename(path.with_suffix(rng.choice((".dcm", ".img", ".npy", ".png"))))
    return read_and_write(path, out, rng)


def try_dicom(folder: Path, out: Path, rng: random.Random) -> str:
    path = dicom_file(folder, rng)
    if rng.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), rng))
    elif rng.random() < 0.2:
        path.write_bytes(path.read_bytes() + bytes(rng.choice((1, 2, 511, 512))))
    return read_and_write(path, out, rng)


def try_array(folder: Path, out: Path, rng: random.Random) -> str:
    """NumPy files of odd types, shapes and values."""
    number = rng.choice(("u1", "u2", ">u2", "i2", "i4", "u8", "f2", "f4", "f8", ">f8", "c8", "?", "O", "U3", "M8[s]"))
    shape = rng.choice(
        ((8, 9), (0, 5), (5,), (), (1, 8, 9), (8, 9, 1), (8, 9, 3), (8, 9, 4), (2, 8, 9), (1, 1), (3, 3, 3, 3))
    )
    values = np.random.default_rng(rng.getrandbits(32)).random(shape) * rng.choice((1, 255, 70000, -1, 1e300))
    if rng.random() < 0.2:
        values = np.where(values > 0.5, rng.choice((np.nan, np.inf, -np.inf)), values)
    path = folder / "x.npy"
    np.save(path, values.astype(number), allow_pickle=number == "O")
    if rng.random() < 0.3:
        path.write_bytes(damaged(path.read_bytes(), rng))
    return read_and_write(path, out, rng)


def try_name(folder: Path, out: Path, rng: random.Random) -> str:
    path = picture_file(folder, rng)
    path = path.rename(folder / (odd_name(rng)[:80] + path.suffix))
    name = images.stem(path)
    found = inputs.find_inputs(folder, folder)
    assert list(found) == [name] or name.startswith("."), "a folder's image has the name that its list would give it"
    images.write(out / f"{name}.png", images.read(path).pixels)
    list_file = out / "x_testset.txt"
    lists.write_list(list_file, [name])
    assert lists.read_list(list_file) == [name], "a list that is written reads back"
    return "result"


def try_list(folder: Path, out: Path, rng: random.Random) -> str:
    lines = [rng.choice(("0.png", "0", "\ufeff0.png", "0.png\r\n\n"))]
    if rng.random() < 0.7:
        lines.append(rng.choice(("1", "../0.png", "/etc/passwd", "a\0b", ".", "0", odd_name(rng))))
    content = "\n".join(lines).encode("utf-8", "surrogateescape")
    path = folder / "x_testset.txt"
    path.write_bytes(damaged(content, rng) if rng.random() < 0.3 else content)
    (folder / "CXR").mkdir()
    picture_file(folder / "CXR", rng, "0")
    lists.read_list(path, folder / "CXR")
    inputs.find_inputs(path, folder)
    return "result"


def try_folder(folder: Path, out: Path, rng: random.Random) -> str:
    """Trees of whole, damaged, missing, doubled, linked and foreign files."""
    for part in rng.sample(("CXR", "BS", "Mask", "other"), rng.randrange(5)):
        place = folder / part
        place.mkdir()
        for number in range(rng.randrange(4)):
            path = picture_file(place, rng, str(number))
            if rng.random() < 0.2:
                path.write_bytes(damaged(path.read_bytes(), rng))
        strange = place / rng.choice(("a.png", "DICOMDIR", "b.heic", ".hidden.png", "0.npy"))
        make = rng.choice(
            (
                strange.touch,
                strange.mkdir,
                lambda path=strange: path.symlink_to("/dev/zero"),
                lambda path=strange: path.symlink_to(path.name),
                lambda path=strange: os.mkfifo(path),
                lambda: None,
            )
        )
        if not strange.exists():
            make()
    asked = rng.choice((folder, folder / "CXR", folder / "CXR" / "0.png"))
    if rng.random() < 0.5:
        lists.find_pairs(folder)
    else:
        find_cases(asked, folder, rng.choice((None, None, folder / "Mask")))
    return "result"


def odd_change(rng: random.Random) -> str:
    """A key=value for the command line, sometimes of a key that is not there."""
    known = list(settings_file.load(ROOT / "config.yaml"))
    key = rng.choice(known)
    if rng.random() < 0.1:
        key = rng.choice((key[:-1], key + ".x", "", "eval", odd_name(rng)))
    value = rng.choice(ODD_TEXTS) if rng.random() < 0.7 else str(rng.choice((-1, 1)) * rng.choice(ODD_NUMBERS))
    return f"{key}={value}" if rng.random() < 0.97 else key


def try_settings(folder: Path, out: Path, rng: random.Random) -> str:
    path = ROOT / "config.yaml"
    if rng.random() < 0.3:
        content = path.read_bytes()
        path = folder / "config.yaml"
        path.write_bytes(damaged(content, rng))
        if rng.random() < 0.2:
            path.write_text(yaml.safe_dump(rng.choice(({}, [], "x", 1, None, {"profiles": 3}, {"data": None}))))
    changes = [odd_change(rng) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    profile = rng.choice(("szch", "small", "demo", "szch", "small", "none"))
    settings = config.parse("fuzz", ["data"], ["--config", str(path), "--profile", profile, *changes])
    config.to_yaml(settings)
    return "result"


def try_weights(folder: Path, out: Path, rng: random.Random) -> str:
    """Weights with a damaged header, damaged bytes or an odd content."""
    network = tiny_network(rng)
    path = folder / "x.safetensors"
    network.save(path)
    content = path.read_bytes()
    form = rng.randrange(4)
    if form == 0:
        path.write_bytes(damaged(content, rng))
    elif form == 1:
        path.write_bytes(with_odd_header(content, rng))
    else:
        path = folder / "x.pth"
        state = network.state_dict()
        odd = (
            {},
            [],
            3,
            "x",
            {"a": 1},
            {"state_dict": 3},
            {"state_dict": state},
            state,
            {**state, "more": torch.zeros(2)},
        )
        torch.save(rng.choice(odd), path)
        if form == 3:
            path.write_bytes(damaged(path.read_bytes(), rng))
    rng.choice((MLVQGAN, ConditionalUNet)).load(path)
    return "result"


def try_state(folder: Path, out: Path, rng: random.Random) -> str:
    """Training states that are damaged or hold something else."""
    for step in range(rng.choice((1, 2))):
        path = folder / f"state_{step:08d}.pt"
        torch.save(rng.choice(({"step": step, "x": torch.zeros(3)}, [], 3, {"a": np.zeros(3)}, {"a": Path("x")})), path)
        if rng.random() < 0.6:
            path.write_bytes(damaged(path.read_bytes(), rng))
    training_state.newest_state(folder, warn=lambda text: None)
    return "result"


def try_script(folder: Path, out: Path, rng: random.Random) -> str:
    """A script, started as a person does, with a bad image, folder, list or setting."""
    script = rng.choice(SCRIPTS)
    make = rng.choice((picture_file, dicom_file))
    path = make(folder, rng)
    if rng.random() < 0.3:
        path.write_bytes(damaged(path.read_bytes(), rng))
    # Half of the places are the inputs' own, where nothing may be written over.
    place = rng.choice((out / "results", out / "results", out / "results", folder, path, folder / "new.png"))
    arguments = [
        f"runs={out}",
        f"data.root={folder}",
        f"eval.output={place}",
        f"metrics.output={place}",
        "data.image_size=64",
        "threads=1",
        f"eval.input={rng.choice((path, path, folder, folder / 'none.txt'))}",
    ]
    arguments.append("eval.dicom=" + rng.choice(("true", "false", "false")))
    if rng.random() < 0.25:
        change = odd_change(rng)
        if "\0" not in change:  # no shell can say that
            arguments.append(change)
    return run_script(script, ["--profile", "small", *arguments], out)


def try_training(folder: Path, out: Path, rng: random.Random) -> str:
    """The autoencoder's training with a bad image or list, or with foreign files in its folder."""
    names = [str(number) for number in range(4)]
    for part in ("CXR", "BS"):
        (folder / part).mkdir()
        for name in names:
            picture_file(folder / part, rng, name)
    (out / "lists").mkdir()
    lists.write_list(out / "lists" / "in_trainset.txt", names)
    place = out / "vqgan"
    place.mkdir()
    spoilt = rng.randrange(5)
    if spoilt == 0:
        path = rng.choice(sorted((folder / "CXR").iterdir()))
        path.write_bytes(damaged(path.read_bytes(), rng))
    elif spoilt == 1:
        rng.choice(sorted((folder / "BS").iterdir())).unlink()
    elif spoilt == 2:
        (out / "lists" / "in_trainset.txt").write_bytes(damaged(b"0\n1\n2\n3\n", rng))
    elif spoilt == 3:
        name = rng.choice(("weights.safetensors", "state_00000002.pt", "config.yaml", "log.csv", ".lock"))
        (place / name).write_bytes(rng.randbytes(rng.choice((0, 40))))
    arguments = [
        f"runs={out}",
        f"data.root={folder}",
        f"train.workers={rng.choice((0, 1, 2))}",
        "data.image_size=32",
        "vqgan.epochs=1",
        "vqgan.masked=false",
        "vqgan.network.channels=[8,8]",
        "vqgan.network.codes=16",
        "vqgan.loss.ms_ssim=0",
        "threads=1",
    ]
    return run_script("vq-gan_train.py", ["--profile", "demo", *arguments], out)


def run_script(script: str, arguments: list[str], out: Path) -> str:
    """A script in a process of its own: "result", or UserError with the one line that it said."""
    command = [sys.executable, str(ROOT / script), *arguments]
    ended = subprocess.run(
        command, cwd=out, capture_output=True, timeout=SCRIPT_SECONDS, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    said = ended.stderr.decode("utf-8", "replace")
    lines = [
        line for line in said.splitlines() if not line.startswith("note: ") and "\r" not in line and "%|" not in line
    ]
    assert "Traceback" not in said, f"{script} {arguments}: {said.strip()[-600:]}"
    assert ended.returncode in (0, 1, 2), f"{script} {arguments}: status {ended.returncode}"
    if ended.returncode == 0:
        return "result"
    assert len([line for line in lines if line.startswith(script)]) == 1, f"{script} {arguments}: {said[-600:]}"
    raise UserError(lines[-1])


# --- The campaign -----------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[Path, Path, random.Random], str], int]] = {  # of each: what is done, and its share
    "image": (try_image, 30),
    "dicom": (try_dicom, 20),
    "array": (try_array, 8),
    "name": (try_name, 5),
    "list": (try_list, 6),
    "folder": (try_folder, 6),
    "settings": (try_settings, 12),
    "weights": (try_weights, 8),
    "state": (try_state, 3),
    "script": (try_script, 2),
    "training": (try_training, 1),
}

WITH_SCRIPTS = ("script", "training")  # kinds that start a script, which takes longer


def attempt(kind: str, number: int, seed: int, folder: Path) -> tuple[str, str]:
    """(outcome, what was said) of one input, made and tried in a new folder."""
    rng = random.Random(f"{seed}/{number}/{kind}")
    inputs = folder / "in"
    out = folder / "out"
    inputs.mkdir()
    out.mkdir()
    before: dict[str, str] = {}
    function = KINDS[kind][0]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, _too_slow)
    limit = SCRIPT_SECONDS if kind in WITH_SCRIPTS else LIMIT_SECONDS
    signal.setitimer(signal.ITIMER_REAL, limit)
    heard = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(heard), redirect_stderr(heard), _watched(inputs, before):
            warnings.simplefilter("ignore")
            outcome = function(inputs, out, rng)
        said = ""
    except UserError as error:
        outcome = "refused"
        said = str(error)
        if "\n" in said or len(said) > 2000:
            outcome = "FAILED: a message of several lines"
        elif "allocate" in said:
            outcome = "FAILED: asks for more memory than there is"
    except SystemExit as error:
        outcome = "refused" if error.code == 2 else f"FAILED: exit status {error.code}"  # argparse's own refusal
        said = heard.getvalue()
    except TooSlow:
        outcome = f"FAILED: took more than {limit} s"
        said = traceback.format_exc(limit=-3)
    except (Exception, subprocess.TimeoutExpired) as error:
        outcome = f"FAILED: {type(error).__name__}"
        said = "".join(traceback.format_exception(error)[-4:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    if taken > LIMIT_BYTES:
        outcome = f"FAILED: took {taken >> 20} MiB"
    # Files may join the inputs, since results may go anywhere; none may change or go.
    after = digests(inputs)
    if any(after.get(path) != digest for path, digest in before.items()):
        outcome = "FAILED: changed its input"
    return outcome, said


class _watched:
    """Notes what the inputs are when the code under test is first called: they are made inside the same function."""

    def __init__(self, folder: Path, before: dict[str, str]):
        self.folder = folder
        self.before = before
        self.originals = {}

    def __enter__(self):
        for owner, name in WATCHED:
            original = getattr(owner, name)
            self.originals[owner, name] = original
            setattr(owner, name, self._noting(original))

    def _noting(self, original):
        def call(*arguments, **keywords):
            if not self.before:
                self.before.update(digests(self.folder))
            return original(*arguments, **keywords)

        return call

    def __exit__(self, *error):
        for (owner, name), original in self.originals.items():
            setattr(owner, name, original)


# The first functions of the project that see an input.
WATCHED = (
    (images, "read"),
    (inputs, "find_inputs"),
    (lists, "read_list"),
    (lists, "find_pairs"),
    (config, "parse"),
    (weights_file, "read_weights"),
    (training_state, "newest_state"),
    (subprocess, "run"),
)


def digests(folder: Path) -> dict[str, str]:
    """{path: digest} of the ordinary files below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _too_slow(number, frame):
    raise TooSlow


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="inputs (1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (0)")
    parser.add_argument("--seconds", type=float, default=0, help="go on for so long, whatever --count says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas (all)")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = options.only.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")

    counts: Counter = Counter()
    failures = 0
    start = time.monotonic()
    number = options.first
    while time.monotonic() - start < options.seconds if options.seconds else number < options.first + options.count:
        shares = [KINDS[kind][1] for kind in kinds]
        kind = random.Random(f"{options.seed}/{number}").choices(kinds, shares)[0]
        with tempfile.TemporaryDirectory() as folder:
            outcome, said = attempt(kind, number, options.seed, Path(folder))
            if outcome.startswith("FAILED"):
                failures += 1
                print(f"{number} {kind}: {outcome}\n    " + said.strip().replace("\n", "\n    "), flush=True)
                if options.keep:
                    shutil.copytree(
                        folder, options.keep / f"{options.seed}_{number}_{kind}", symlinks=True, dirs_exist_ok=True
                    )
        counts[kind, outcome.split(":")[0]] += 1
        number += 1

    seconds = time.monotonic() - start
    print(f"\n{'kind':10} {'result':>8} {'refused':>8} {'failed':>8}")
    for kind in kinds:
        print(f"{kind:10} {counts[kind, 'result']:8} {counts[kind, 'refused']:8} {counts[kind, 'FAILED']:8}")
    print(f"{number - options.first} inputs of seed {options.seed} in {seconds:.0f} s: {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
