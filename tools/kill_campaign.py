"""Kill -9 each training at random moments, let the same command go on, and compare with a run that nothing interrupted.

    python tools/kill_campaign.py [--kills 20] [--seed 0] [--folder FOLDER] [vqgan ldm lcm]

Prints, for each training, how many kills there were, how many of them while a state was being written, and what differs at the end:
weights, averages, optimiser tensors, progress, log. Exit status 1 where anything does. Some five minutes on two cores.
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
TINY = ["--profile", "demo", "device=cpu", "train.workers=0", "train.sample_every=10", "train.validate_every=2", "data.image_size=64",
        "data.split=[0.4,0.3,0.3]", "data.root=data", "data.lists=lists", "vqgan.network.channels=[8,16]",
        "vqgan.network.residual_channels=8", "vqgan.network.codes=32", "vqgan.discriminator.channels=4", "vqgan.loss.ms_ssim=0",
        "vqgan.loss.adversarial=0.1", "vqgan.batch_size=3", "vqgan.average=0.9", "unet.multipliers=[1,1]", "unet.attention=[2]",
        "ldm.batch_size=1", "ldm.average=0.9", "lcm.batch_size=1", "lcm.average=0.9", "augment.versions=3"]
SCRIPTS = {"vqgan": "vq-gan_train.py", "ldm": "ldm_train.py", "lcm": "lcm_train.py"}
WAYS = ("anywhere", "training", "training", "writing")  # when a process is killed, in turn
LONGEST = 0.3  # seconds of training before a kill


def start(script: str, *arguments, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / script), *TINY, *arguments], cwd=folder, stdout=subprocess.DEVNULL,
                            stderr=(folder / "stderr.txt").open("w"), env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(process: subprocess.Popen, folder: Path) -> None:
    if process.wait():
        raise SystemExit(f"status {process.returncode}: {(folder / 'stderr.txt').read_text()}")


def prepare(folder: Path) -> None:
    """Ten simulated pairs and a trained autoencoder."""
    finish(start("dataSegmentation.py", "simulate.count=10", folder=folder), folder)
    finish(start(SCRIPTS["vqgan"], "runs=ready", "vqgan.epochs=1", folder=folder), folder)


def kill_once(process: subprocess.Popen, states: Path, way: str, chance: random.Random) -> bool:
    """Kill a training at a random moment of a kind; False where it ended before."""
    before = set(states.glob("state_*.pt"))
    if way == "anywhere":
        time.sleep(chance.uniform(0, 5))
    while way != "anywhere" and process.poll() is None and not set(states.glob("state_*.pt")) - before:
        time.sleep(0.002)
    if way == "training":
        time.sleep(chance.uniform(0, LONGEST))
    until = time.monotonic() + 60
    while way == "writing" and process.poll() is None and not any(states.glob(".state_*.part")) and time.monotonic() < until:
        pass
    process.kill()
    return process.wait() != 0


def torment(name: str, folder: Path, epochs: int, kills: int, chance: random.Random, ways=WAYS) -> dict[str, int]:
    """Train `name` in <folder>/killed with kills and in <folder>/whole without; counts of the kills."""
    common = [f"{name}.epochs={epochs}", "vqgan.weights=ready/vqgan/weights.safetensors"]
    finish(start(SCRIPTS[name], *common, "runs=whole", folder=folder), folder)
    states, counts = folder / "killed" / name, {"kills": 0, "while a state was being written": 0, "with a state to go on from": 0}
    for turn in range(kills):
        process = start(SCRIPTS[name], *common, "runs=killed", "train.save_every=0", folder=folder)
        if not kill_once(process, states, ways[turn % len(ways)], chance):
            break
        counts["kills"] += 1
        counts["while a state was being written"] += any(states.glob(".state_*.part"))
        counts["with a state to go on from"] += any(states.glob("state_*.pt"))
    finish(start(SCRIPTS[name], *common, "runs=killed", "train.save_every=0", folder=folder), folder)
    return counts


def differences(whole: Path, killed: Path) -> list[str]:
    """What is not the same to the bit in the folders of two trainings."""
    found = [name for name in ("weights.safetensors", "best.safetensors", "log.csv") if (whole / name).read_bytes() != (killed / name).read_bytes()]
    found += [f"a temporary file: {path.name}" for path in killed.glob(".*.part")]
    states = [torch.load(sorted(folder.glob("state_*.pt"))[-1], weights_only=True) for folder in (whole, killed)]
    for part in ("networks", "average", "optimizers", "progress", "identity"):
        if not same(states[0][part], states[1][part]):
            found.append(part)
    return found


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None)
    parser.add_argument("names", nargs="*", default=list(SCRIPTS))
    options = parser.parse_args()
    folder, bad = Path(options.folder or tempfile.mkdtemp(prefix="kill_campaign_")), 0
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    for name in options.names:
        counts = torment(name, folder, 40, options.kills, random.Random(f"{options.seed}/{name}"))
        found = differences(folder / "whole" / name, folder / "killed" / name)
        bad += bool(found) or counts["kills"] < options.kills
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}; "
              f"differs from the uninterrupted run: {', '.join(found) or 'nothing'}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
