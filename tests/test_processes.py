"""Several processes as one: torchrun on two or three of them gives what one gives, the same on all; they stop and go on together.

Run by torchrun, this file is the worker of its own tests: `torchrun tests/test_processes.py networks FOLDER`, `... scripts COMMANDS` or
`... leave FILE`.
"""
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from models import config, images, losses  # noqa: E402
from models.runtime import entry, processes  # noqa: E402
from models.training import loop  # noqa: E402
from models.vqgan import MLVQGAN, BatchNorm, PatchDiscriminator  # noqa: E402

TINY = ["--profile", "demo", "device=cpu", "train.workers=0", "train.sample_every=2", "data.image_size=64", "data.split=[0.4,0.3,0.3]",
        "vqgan.network.channels=[8,16]", "vqgan.network.residual_channels=8", "vqgan.network.codes=32", "vqgan.discriminator.channels=4",
        "vqgan.loss.ms_ssim=0", "vqgan.loss.adversarial=0.5", "vqgan.epochs=2", "vqgan.batch_size=5", "vqgan.milestones=[]",
        "unet.multipliers=[1,1]", "unet.attention=[2]", "ldm.epochs=3", "ldm.batch_size=3", "lcm.epochs=3", "lcm.batch_size=5",
        "ldm.sampler=ddim", "ldm.steps=3", "lcm.steps=2", "ldm.epsilon=0.001", "lcm.epsilon=0.001"]  # rounding is not blown up by Adam
TRAININGS, EVALUATIONS = ("vq-gan_train.py", "ldm_train.py", "lcm_train.py"), ("vq-gan_eval.py", "ldm_eval.py", "batch_lcm_eval.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # what torchrun sets, so that one process computes to the bit what several do


def launch(*arguments, count: int, folder: Path) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    return subprocess.Popen([*(torchrun if count > 1 else [sys.executable]), *map(str, arguments)], cwd=folder, env=ENVIRONMENT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen, status: int | None = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert status in (None, process.returncode), f"{process.returncode}\n{out}\n{err}"
    return out, err


# --- The worker --------------------------------------------------------------------------------------------------------------

class Pictures:
    """Seven images of different brightness."""
    names = [f"picture{i}" for i in range(7)]
    pixels = torch.randn(7, 1, 16, 16, generator=torch.Generator().manual_seed(5)).tanh() + torch.linspace(-1, 1, 7)[:, None, None, None]

    def batches(self, index_lists, epoch=0):
        return ({"image": self.pixels[indices]} for indices in index_lists)


def objective(networks, batch, noise):
    """The autoencoder's, on images with noise of the loop's own."""
    image = batch["image"] + 0.1 * noise.normal("jitter", 1, 16, 16) * noise.integers("strength", 3)[:, None, None, None]
    hybrid = losses.HybridLoss(pixel="mse", perceptual=0, adversarial=0.5, ms_ssim=0)
    return losses.autoencoder_objective(hybrid)(networks, {"image": image}, noise)


CASES = {"uneven": (4, 1), "fewer_than_processes": (5, 1), "in_parts": (5, 2)}  # name -> batch size, parts; of seven images


def train_networks(folder: Path) -> None:
    """Each case of CASES; every process leaves what its networks and log hold."""
    for name, (batch_size, parts) in CASES.items():
        torch.manual_seed(processes.rank())  # the first process's weights must win
        networks = {"vqgan": MLVQGAN(channels=(4, 8), residual_channels=4, residual_layers=1, codes=24, decay=0.8, restart=True),
                    "discriminator": PatchDiscriminator(1, 4, 2)}
        optimizers = {key: torch.optim.SGD([p for p in network.parameters() if p.requires_grad]) for key, network in networks.items()}
        course = config.Course(epochs=3, batch_size=batch_size, learning_rate=0.05, milestones=(), gamma=1, average=0.5, start=None)
        train = config.Train(seed=0, workers=0, accumulate=parts, checkpointing=False, validate_every=1, sample_every=9, save_every=1e9)
        trainer = loop.Trainer(folder / name, networks, optimizers, objective, Pictures(), Pictures(), course=course, train=train,
                               learning_rates=dict.fromkeys(networks, 0.05))
        assert trainer.run() == 0
        tensors = {f"{key}.{n}": t for key, net in (*networks.items(), ("ema", trainer.ema)) for n, t in net.state_dict().items()}
        torch.save({"tensors": tensors, "rows": trainer.progress.rows}, folder / name / f"rank{processes.rank()}.pth")


def run_scripts(commands: Path) -> None:
    """The scripts of a file, one after the other; each joins and leaves a group of its own."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    entry.alone = lambda: True  # as far as leaving goes: after a script comes the next one
    for script, *arguments in json.loads(commands.read_text()):
        os.environ["MASTER_PORT"] = str(int(os.environ.get("MASTER_PORT", 0)) + 1)
        sys.argv = [script, *arguments]
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            assert not end.code, f"{script} ended with {end.code}"


def leave(file: Path) -> int:
    """A script that was stopped: the first process still saves, the others have nothing left to do."""
    with processes.joined():
        if processes.rank() == 0:
            time.sleep(1)
            file.write_text("saved")
    return 128 + signal.SIGTERM


# --- Networks ----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of the same trainings in one and in three processes."""
    folder = tmp_path_factory.mktemp("networks")
    pair = folder / "one", folder / "three"
    running = launch(__file__, "networks", pair[1], count=3, folder=folder)
    train_networks(pair[0])
    finish(running)
    return pair


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_three_processes_train_what_one_trains_and_all_hold_the_same(networks, case):
    one = torch.load(networks[0] / case / "rank0.pth", weights_only=True)
    three = [torch.load(networks[1] / case / f"rank{rank}.pth", weights_only=True) for rank in range(3)]
    for other in three[1:]:
        assert all(torch.equal(other["tensors"][name], tensor) for name, tensor in three[0]["tensors"].items())
        assert other["rows"] == three[0]["rows"]
    different = [name for name, tensor in one["tensors"].items() if not close(tensor, three[0]["tensors"][name])]
    assert not different
    assert [list(row) for row in one["rows"]] == [list(row) for row in three[0]["rows"]]
    assert all(list(a.values()) == pytest.approx(list(b.values()), rel=1e-4) for a, b in zip(one["rows"], three[0]["rows"]))
    assert one["rows"][-1]["loss"] != pytest.approx(one["rows"][0]["loss"], rel=1e-3)  # it trains at all


def test_batch_norm_in_one_process_is_pytorchs():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(4, 3, 5, 5)
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


# --- Scripts -----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """A data folder, and the folders that one and two processes made of it; and what two processes printed."""
    folder = tmp_path_factory.mktemp("chains")
    commands = {name: [[script, *TINY, f"runs={name}", "data.root=data", "data.lists=lists"] for script in (*TRAININGS, *EVALUATIONS)]
                for name in ("one", "two")}
    commands["one"].insert(0, ["dataSegmentation.py", *TINY, "data.root=data", "data.lists=lists", "simulate.count=10"])
    for command in commands["two"]:  # the latents and pictures of the same networks
        if command[0] != "vq-gan_train.py":
            command += ["vqgan.weights=one/vqgan/weights.safetensors"]
        if command[0] in EVALUATIONS:
            command += ["ldm.weights=one/ldm/weights.safetensors", "lcm.weights=one/lcm/weights.safetensors"]
    for name, content in commands.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    finish(launch(__file__, "scripts", "one.json", count=1, folder=folder))
    return folder, finish(launch(__file__, "scripts", "two.json", count=2, folder=folder))


@pytest.mark.parametrize("name", ["vqgan", "ldm", "lcm"])
def test_two_processes_train_what_one_trains(chains, name):
    folder, _ = chains
    for file in ("weights.safetensors", "best.safetensors"):
        one, two = load_file(folder / "one" / name / file), load_file(folder / "two" / name / file)
        assert one.keys() == two.keys() and not [key for key in one if not torch.allclose(one[key], two[key], rtol=1e-3, atol=2e-4)]
    rows = [(folder / chain / name / "log.csv").read_text().splitlines() for chain in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        if not one.startswith("epoch"):
            assert [float(x or 0) for x in one.split(",")] == pytest.approx([float(x or 0) for x in two.split(",")], rel=1e-3)
    assert {path.name for path in (folder / "one" / name).iterdir()} == {path.name for path in (folder / "two" / name).iterdir()}


@pytest.mark.parametrize("name", [script[:-3] for script in EVALUATIONS])
def test_two_processes_make_the_very_same_pictures(chains, name):
    folder, (out, _) = chains
    made = {chain: {path.relative_to(folder / chain): path.read_bytes() for path in (folder / chain / name).rglob("*.png")}
            for chain in ("one", "two")}
    assert len(made["one"]) >= 6 and made["one"] == made["two"]
    one, two = (json.loads((folder / chain / name / "summary.json").read_text()) for chain in ("one", "two"))
    assert list(one["seconds_per_image"]) == list(two["seconds_per_image"]) and one["images"] == two["images"] >= 3
    assert one.get("psnr") == two.get("psnr") and (one["processes"], two["processes"]) == (1, 2)
    assert len(re.findall(rf"images in two/{name} ", out)) == 1


def test_only_the_first_process_speaks(chains):
    out, err = chains[1]
    assert len(re.findall("mean PSNR", out)) == 1 and len(re.findall("does not read vqgan.epochs", err)) == len(EVALUATIONS) + 2


def children(process: subprocess.Popen) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_none_leaves_while_another_still_saves(tmp_path):
    _, err = finish(launch(__file__, "leave", tmp_path / "file", count=2, folder=tmp_path), status=1)
    assert (tmp_path / "file").read_text() == "saved" and set(re.findall(r"exitcode\s*:\s*(-?\d+)", err)) == {"143"}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds torchrun's processes through /proc")
def test_signalled_or_killed_in_one_process_all_stop_and_any_number_goes_on(chains, tmp_path):
    folder, _ = chains
    command = ["ldm_train.py", *TINY, f"runs={tmp_path}", "data.root=data", "data.lists=lists",
               "vqgan.weights=one/vqgan/weights.safetensors", "ldm.milestones=[]"]
    endless = [*command, "ldm.epochs=100000", "train.validate_every=1000000", "train.sample_every=1000000"]
    log = tmp_path / "ldm" / "log.csv"

    def trained(process, lines):
        for _ in range(1800):
            if process.poll() is not None:
                finish(process)
            if log.is_file() and len(log.read_text().splitlines()) > lines:
                return len(log.read_text().splitlines())
            time.sleep(0.1)
        raise AssertionError("no epoch in three minutes")

    def stopped(err):
        steps = re.findall(r"stopped after (\d+) steps and saved; the same command goes on", err)
        assert len(steps) == 1 and sorted((tmp_path / "ldm").glob("state_*"))[-1].name == f"state_{int(steps[0]):08d}.pt", err
        return int(steps[0])

    process = launch(ROOT / endless[0], *endless[1:], count=2, folder=folder)
    lines = trained(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal: torchrun gets it, and sends its processes a second one
    stopped(finish(process, status=None)[1])

    process = launch(ROOT / endless[0], *endless[1:], count=2, folder=folder)
    lines = trained(process, lines + 2)
    os.kill(children(process)[1], signal.SIGTERM)  # a scheduler sends it to all; one is enough
    _, err = finish(process, status=None)
    steps = stopped(err)
    assert re.search(r"exitcode\s*:\s*143", err)

    process = launch(ROOT / endless[0], *endless[1:], "train.save_every=0", count=2, folder=folder)
    lines = trained(process, lines + 2)
    os.kill(children(process)[1], signal.SIGKILL)
    began = time.monotonic()
    _, err = finish(process, status=1)
    assert time.monotonic() - began < 60 and f"going on from {tmp_path / 'ldm' / f'state_{steps:08d}.pt'}" in err

    _, err = finish(launch(ROOT / command[0], *command[1:], f"ldm.epochs={lines + 2}", count=1, folder=folder))
    assert "going on from" in err and len(log.read_text().splitlines()) == 1 + lines + 2
    assert np.isfinite(float(log.read_text().splitlines()[-1].split(",")[3]))
    assert images.read(tmp_path / "ldm" / "samples" / f"epoch_{lines + 2:04d}.png").pixels.std() > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, path = sys.argv[1:]
    if what == "networks":
        with processes.joined():
            train_networks(Path(path))
    elif what == "scripts":
        run_scripts(Path(path))
    else:
        entry.run(lambda: leave(Path(path)))
