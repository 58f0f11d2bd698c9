"""Kill -9 each training at random moments, let the same command go on, and compare with a run that nothing interrupted.

    python tools/kill_campaign.py [--kills 20] [--seed 0] [--folder FOLDER] [vqgan ldm lcm]

Prints, for each training, how many kills there were, how many of them while a state was being written, and what differs
at the end: weights, their average, optimiser tensors, progress, log. Exit status 1 if anything does. About five minutes
on two cores.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--profile",
    "demo",
    "device=cpu",
    "train.workers=0",
    "train.sample_every=10",
    "train.validate_every=2",
    "data.image_size=64",
    "data.split=[0.4,0.3,0.3]",
    "data.root=data",
    "data.lists=lists",
    "vqgan.network.channels=[8,16]",
    "vqgan.network.residual_channels=8",
    "vqgan.network.codes=32",
    "vqgan.start=null",
    "lcm.start=null",
    "vqgan.discriminator.channels=4",
    "vqgan.loss.ms_ssim=0",
    "vqgan.loss.adversarial=0.1",
    "vqgan.batch_size=3",
    "vqgan.average=0.9",
    "unet.multipliers=[1,1]",
    "unet.attention=[2]",
    "ldm.batch_size=1",
    "ldm.average=0.9",
    "lcm.batch_size=1",
    "lcm.average=0.9",
    "augment.versions=3",
]
SCRIPTS = {"vqgan": "vq-gan_train.py", "ldm": "ldm_train.py", "lcm": "lcm_train.py"}
MOMENTS = ("anywhere", "training", "training", "writing")  # when a process is killed, in turn
LATEST = 0.3  # seconds of training before a kill
LATEST_START = 5  # seconds after its start in which a process is killed "anywhere"
PATIENCE = 60  # seconds to wait for a process to write
POLL = 0.002  # seconds between two looks into a folder
EPOCHS = 40  # of each training


def start(script: str, *arguments: str, folder: Path) -> subprocess.Popen:
    """Start a script in a folder; what it says on stderr goes to a file there."""
    command = [sys.executable, str(ROOT / script), *TINY, *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    stderr = (folder / "stderr.txt").open("w")
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=stderr, env=one_thread)


def finish(process: subprocess.Popen, folder: Path) -> None:
    """Wait for a script, and stop the campaign if it failed."""
    if process.wait():
        raise SystemExit(f"status {process.returncode}: {(folder / 'stderr.txt').read_text()}")


def prepare(folder: Path) -> None:
    """Ten simulated pairs and a trained autoencoder."""
    finish(start("dataSegmentation.py", "simulate.count=10", folder=folder), folder)
    finish(start(SCRIPTS["vqgan"], "runs=ready", "vqgan.epochs=1", folder=folder), folder)


def kill_once(process: subprocess.Popen, states: Path, moment: str, random_numbers: random.Random) -> bool:
    """Kill a training at a random moment. Returns False if it had ended before.

    moment: "anywhere" after the start, while "training", or while "writing" a state.
    """
    before = set(states.glob("state_*.pt"))
    if moment == "anywhere":
        time.sleep(random_numbers.uniform(0, LATEST_START))
    else:  # not before its first new state: it trains then
        while process.poll() is None and not set(states.glob("state_*.pt")) - before:
            time.sleep(POLL)
    if moment == "training":
        time.sleep(random_numbers.uniform(0, LATEST))
    if moment == "writing":  # without a pause between two looks: a state is written in milliseconds
        until = time.monotonic() + PATIENCE
        while process.poll() is None and not any(states.glob(".state_*.part")) and time.monotonic() < until:
            pass
    process.kill()
    return process.wait() != 0


def torment(
    name: str, folder: Path, epochs: int, kills: int, random_numbers: random.Random, moments: tuple[str, ...] = MOMENTS
) -> dict[str, int]:
    """Train `name` in <folder>/killed with kills and in <folder>/whole without. Returns counts of the kills."""
    common = [f"{name}.epochs={epochs}", "vqgan.weights=ready/vqgan/weights.safetensors"]
    finish(start(SCRIPTS[name], *common, "runs=whole", folder=folder), folder)

    states = folder / "killed" / name
    counts = {"kills": 0, "while a state was being written": 0, "with a state to go on from": 0}
    for turn in range(kills):
        process = start(SCRIPTS[name], *common, "runs=killed", "train.save_every=0", folder=folder)
        if not kill_once(process, states, moments[turn % len(moments)], random_numbers):
            break
        counts["kills"] += 1
        counts["while a state was being written"] += any(states.glob(".state_*.part"))
        counts["with a state to go on from"] += any(states.glob("state_*.pt"))
    finish(start(SCRIPTS[name], *common, "runs=killed", "train.save_every=0", folder=folder), folder)
    return counts


def differences(whole: Path, killed: Path) -> list[str]:
    """What is not the same to the bit in the folders of two trainings."""
    found = []
    for name in ("weights.safetensors", "best.safetensors", "log.csv"):
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            found.append(name)
    found += [f"a temporary file: {path.name}" for path in killed.glob(".*.part")]
    state_of_whole = newest_state(whole)
    state_of_killed = newest_state(killed)
    for entry in ("networks", "ema", "optimizers", "progress", "facts"):
        if not same(state_of_whole[entry], state_of_killed[entry]):
            found.append(entry)
    return found


def newest_state(folder: Path) -> dict:
    """The content of the last state_<step>.pt of a folder."""
    return torch.load(sorted(folder.glob("state_*.pt"))[-1], weights_only=True)


def same(a, b) -> bool:
    """Whether two contents of a state are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None)
    parser.add_argument("names", nargs="*", default=list(SCRIPTS))
    options = parser.parse_args()

    folder = Path(options.folder or tempfile.mkdtemp(prefix="kill_campaign_"))
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    failed = False
    for name in options.names:
        counts = torment(name, folder, EPOCHS, options.kills, random.Random(f"{options.seed}/{name}"))
        found = differences(folder / "whole" / name, folder / "killed" / name)
        failed = failed or bool(found) or counts["kills"] < options.kills
        in_words = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"{name}: {in_words}; differs from the uninterrupted run: {', '.join(found) or 'nothing'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
