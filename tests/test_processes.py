"""Several processes as one: torchrun on two or three gives what one gives; they stop and go on together.

Run by torchrun, this file is the worker of its own tests: `torchrun tests/test_processes.py networks FOLDER`,
`... scripts COMMANDS` or `... leave FILE`.

Sums over one and over three processes differ by rounding, and so do sums on processors of other makes. A latent that
lies between two codes falls to either, and all that follows differs. So the networks compared here are far from such
ties, and say how far; the script's autoencoder that is compared has a single code.
"""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from models import config, images, losses, pipelines  # noqa: E402
from models.evaluation import record, run  # noqa: E402
from models.evaluation.cases import find_cases  # noqa: E402
from models.evaluation.results import Output  # noqa: E402
from models.runtime import entry, processes  # noqa: E402
from models.training import loop  # noqa: E402
from models.unet import ConditionalUNet  # noqa: E402
from models.vqgan import MLVQGAN, BatchNorm, Codebook, PatchDiscriminator  # noqa: E402

TINY = [
    "--profile",
    "demo",
    "device=cpu",
    "train.workers=0",
    "train.sample_every=2",
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
    "vqgan.loss.adversarial=0.5",
    "vqgan.epochs=2",
    "vqgan.batch_size=5",
    "vqgan.milestones=[]",
    "unet.multipliers=[1,1]",
    "unet.attention=[2]",
    "ldm.epochs=3",
    "ldm.batch_size=3",
    "ldm.sampler=ddim",
    "ldm.steps=3",
    "lcm.epochs=3",
    "lcm.batch_size=5",
    "lcm.steps=2",
    "ldm.epsilon=0.001",
    "lcm.epsilon=0.001",
]  # with which Adam does not blow up rounding
ONE_CODE = ["vqgan.network.codes=1"]
EVALUATIONS = ("vq-gan_eval.py", "ldm_eval.py", "batch_lcm_eval.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it, for the same sums in one process
FAR = 5e-5  # of a latent from the border between two codes; rounding moves it by a millionth


def launch(*arguments, count: int, folder: Path) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command = [*(torchrun if count > 1 else [sys.executable]), *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, status: int | None = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert status in (None, process.returncode), f"{process.returncode}\n{out}\n{err}"
    return out, err


# --- The worker -----------------------------------------------------------------------------------------------------

SIDE = 12  # of the images, pixels
XRAY_SIDE = 32  # of the X-rays that are evaluated
SEED = 2  # of networks that stay FAR from ties
RATE = 0.01  # of learning; a faster one blows up what a single activation does


class Pictures:
    """Seven images of different brightness."""

    names = [f"picture{i}" for i in range(7)]
    brightness = torch.linspace(-1, 1, 7)[:, None, None, None]
    pixels = torch.randn(7, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5)).tanh() + brightness

    def batches(self, index_lists, epoch=0):
        return ({"image": self.pixels[indices]} for indices in index_lists)


def objective(networks, batch, noise):
    """The autoencoder's, on images with noise of the loop's own."""
    strength = 0.1 * noise.integers("strength", 3)[:, None, None, None]
    image = batch["image"] + strength * noise.normal("jitter", 1, SIDE, SIDE)
    hybrid = losses.HybridLoss(pixel="mse", perceptual=0, adversarial=0.5, ms_ssim=0)
    return losses.autoencoder_objective(hybrid)(networks, {"image": image}, noise)


@contextmanager
def distances_from_ties():
    """A list that collects, for every call of a codebook within, how far its latents are from lying between two codes.

    In units of the latent: the distance to the plane between the nearest code and the next.
    """
    found: list[float] = []
    nearest = Codebook.nearest

    def watched(self, flat: torch.Tensor) -> torch.Tensor:
        codes = self.embedding.weight.double()
        distances, places = torch.cdist(flat.double(), codes).topk(2, dim=1, largest=False)
        apart = (codes[places[:, 0]] - codes[places[:, 1]]).norm(dim=1)
        border = (distances[:, 1].square() - distances[:, 0].square()) / (2 * apart)
        found.append(border.min().item())
        return nearest(self, flat)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codebook, "nearest", watched)
        yield found


# name -> batch size, micro-batches; of seven images
CASES = {"uneven": (4, 1), "fewer_than_processes": (5, 1), "in_micro_batches": (5, 2)}


def join_and_use_networks(folder: Path) -> None:
    with processes.joined():
        train_networks(folder)
        make_pictures(folder)


def train_networks(folder: Path) -> None:
    """Each case of CASES; every process leaves what its networks and log hold."""
    for name, (batch_size, micro_batches) in CASES.items():
        torch.manual_seed(SEED + processes.rank())  # the first process's weights must win
        vqgan = MLVQGAN(channels=(4, 8), residual_channels=4, residual_layers=1, codes=6, decay=0.8, restart=True)
        networks = {"vqgan": vqgan, "discriminator": PatchDiscriminator(1, 4, 2)}
        optimizers = {}
        for key, network in networks.items():
            optimizers[key] = torch.optim.SGD([p for p in network.parameters() if p.requires_grad])
        course = config.Course(
            epochs=3, batch_size=batch_size, learning_rate=RATE, milestones=(), gamma=1, average=0.5, start=None
        )
        train = config.AnyTraining(
            seed=0,
            workers=0,
            accumulate=micro_batches,
            checkpointing=False,
            validate_every=1,
            sample_every=9,
            save_every=1e9,
        )
        trainer = loop.Trainer(
            folder / name,
            networks,
            optimizers,
            objective,
            Pictures(),
            Pictures(),
            course=course,
            train=train,
            learning_rates=dict.fromkeys(networks, RATE),
        )
        with distances_from_ties() as distances:
            assert trainer.run() == 0

        tensors = {}
        for key, network in (*networks.items(), ("ema", trainer.ema)):
            for parameter, tensor in network.state_dict().items():
                tensors[f"{key}.{parameter}"] = tensor
        left = {"tensors": tensors, "rows": trainer.progress.rows, "from_tie": min(distances)}
        torch.save(left, folder / name / f"rank{processes.rank()}.pth")


def make_pictures(folder: Path) -> None:
    """GL-LCM, with random networks, over the seven X-rays of data/ beside the folder, two at a time."""
    torch.manual_seed(SEED)
    vqgan = MLVQGAN(channels=(4, 8), residual_channels=4, residual_layers=1, codes=6).eval()
    unet = ConditionalUNet(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,)).eval()
    method = pipelines.GLLCM(vqgan, unet, steps=2)
    cases = find_cases(folder.parent / "data" / "CXR", folder, None)
    opened = record.Record(Output.at(folder / "pictures", len(cases)), {"image_size": XRAY_SIDE}, cases)
    run.evaluate(method, opened, batch_size=2)


def run_scripts(commands: Path) -> None:
    """The scripts of a file, one after the other; each joins and leaves a group of its own."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    for script, *arguments in json.loads(commands.read_text()):
        os.environ["MASTER_PORT"] = str(int(os.environ.get("MASTER_PORT", 0)) + 1)
        sys.argv = [script, *arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entry, "alone", lambda: True)  # as far as leaving goes: after a script comes the next one
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


# --- Networks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of the same trainings, and of the same evaluation, in one and in three processes."""
    folder = tmp_path_factory.mktemp("networks")
    random = np.random.default_rng(SEED)
    for number in range(7):
        images.write(folder / "data" / "CXR" / f"{number}.png", random.random((XRAY_SIDE, XRAY_SIDE)), 16)
        images.write(folder / "data" / "Mask" / f"{number}.png", np.eye(XRAY_SIDE))
    pair = folder / "one", folder / "three"
    running = launch(__file__, "networks", pair[1], count=3, folder=folder)
    train_networks(pair[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the three have, for the same sums
    make_pictures(pair[0])
    torch.set_num_threads(threads)
    finish(running)
    return pair


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding, and for a few activations on the other side of a ReLU's kink.

    One such activation moves a bias by some 1e-5 at this RATE; a process that is counted wrongly moves counts by ones.
    """
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-3, atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_three_processes_train_what_one_trains_and_all_hold_the_same(networks, case):
    one = torch.load(networks[0] / case / "rank0.pth", weights_only=True)
    assert one["from_tie"] > FAR, "rounding may decide for a code; take other networks or images"

    # all three hold the same, to the bit
    three = [torch.load(networks[1] / case / f"rank{rank}.pth", weights_only=True) for rank in range(3)]
    for other in three[1:]:
        assert all(torch.equal(other["tensors"][name], tensor) for name, tensor in three[0]["tensors"].items())
        assert other["rows"] == three[0]["rows"]

    # and, but for rounding, what one holds
    different = [name for name, tensor in one["tensors"].items() if not close(tensor, three[0]["tensors"][name])]
    assert not different
    for row, expected in zip(three[0]["rows"], one["rows"], strict=True):
        assert list(row) == list(expected)
        assert list(row.values()) == pytest.approx(list(expected.values()), rel=1e-3)
    assert one["rows"][-1]["loss"] != pytest.approx(one["rows"][0]["loss"], rel=1e-3)  # it trains at all
    assert (one["tensors"]["vqgan.quantizer.quantizer.ema_cluster_size"] > 1).sum() > 2  # and uses several codes


@pytest.mark.slow
def test_three_processes_make_the_very_same_pictures(networks):
    """Of seven X-rays in batches of two: no process has as many as another."""
    one, three = (folder / "pictures" for folder in networks)
    files = sorted(path.relative_to(one) for path in one.rglob("*.png"))
    assert len([file for file in files if len(file.parts) == 1]) == 7
    assert files == sorted(path.relative_to(three) for path in three.rglob("*.png"))
    assert not [file for file in files if (one / file).read_bytes() != (three / file).read_bytes()]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, three)]
    assert [summary["processes"] for summary in summaries] == [1, 3]
    assert list(summaries[0]["seconds_per_image"]) == list(summaries[1]["seconds_per_image"])


def test_batch_norm_in_one_process_is_pytorchs():
    torch.manual_seed(0)
    ours = BatchNorm(3)
    theirs = torch.nn.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(4, 3, 5, 5)
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


# --- Scripts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """A folder with data and what one and two processes made of it, in one/ and two/; and what two processes printed.

    <one or two>/vqgan holds autoencoders of one code, to compare. The other networks work on shared/vqgan and are
    evaluated with the weights in one/, so that their latents and pictures are those of the same networks.
    """
    folder = tmp_path_factory.mktemp("chains")
    autoencoder = ["vqgan.weights=shared/vqgan/weights.safetensors"]
    estimators = ["ldm.weights=one/ldm/weights.safetensors", "lcm.weights=one/lcm/weights.safetensors"]
    commands = {
        "one": [["dataSegmentation.py", *TINY, "simulate.count=10"], ["vq-gan_train.py", *TINY, "runs=shared"]],
        "two": [],
    }
    for name, chain in commands.items():
        chain.append(["vq-gan_train.py", *TINY, *ONE_CODE, f"runs={name}"])
        for script in ("ldm_train.py", "lcm_train.py"):
            chain.append([script, *TINY, *autoencoder, f"runs={name}"])
        for script in EVALUATIONS:
            chain.append([script, *TINY, *autoencoder, *estimators, f"runs={name}"])
        (folder / f"{name}.json").write_text(json.dumps(chain))
    finish(launch(__file__, "scripts", "one.json", count=1, folder=folder))
    return folder, finish(launch(__file__, "scripts", "two.json", count=2, folder=folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vqgan", "ldm", "lcm"])
def test_two_processes_train_what_one_trains(chains, name):
    folder, _ = chains
    for file in ("weights.safetensors", "best.safetensors"):
        one = load_file(folder / "one" / name / file)
        two = load_file(folder / "two" / name / file)
        assert one.keys() == two.keys()
        assert not [key for key in one if not torch.allclose(one[key], two[key], rtol=1e-3, atol=2e-4)]

    def rows(chain: str) -> list[list[str]]:
        return [line.split(",") for line in (folder / chain / name / "log.csv").read_text().splitlines()]

    columns, *expected = rows("one")
    assert rows("two")[0] == columns
    for one, two in zip(expected, rows("two")[1:], strict=True):
        assert [float(x or 0) for x in two] == pytest.approx([float(x or 0) for x in one], rel=1e-3)

    def files(chain: str) -> set[str]:
        return {path.name for path in (folder / chain / name).iterdir()}

    assert files("one") == files("two")


@pytest.mark.slow
@pytest.mark.parametrize("name", [script[:-3] for script in EVALUATIONS])
def test_two_processes_make_the_very_same_pictures(chains, name):
    folder, (out, _) = chains

    def pictures(chain: str) -> dict[Path, bytes]:
        return {path.relative_to(folder / chain): path.read_bytes() for path in (folder / chain / name).rglob("*.png")}

    assert len(pictures("one")) >= 6
    assert pictures("one") == pictures("two")
    one, two = (json.loads((folder / chain / name / "summary.json").read_text()) for chain in ("one", "two"))
    assert list(one["seconds_per_image"]) == list(two["seconds_per_image"])
    assert one["images"] == two["images"] >= 3
    assert one.get("psnr") == two.get("psnr")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(re.findall(rf"images in two/{name} ", out)) == 1


@pytest.mark.slow
def test_only_the_first_process_speaks(chains):
    out, err = chains[1]
    assert len(re.findall("mean PSNR", out)) == 1
    assert len(re.findall("does not read vqgan.epochs", err)) == len(EVALUATIONS) + 2


def children(process: subprocess.Popen) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
def test_none_leaves_while_another_still_saves(tmp_path):
    _, err = finish(launch(__file__, "leave", tmp_path / "file", count=2, folder=tmp_path), status=1)
    assert (tmp_path / "file").read_text() == "saved"
    assert set(re.findall(r"exitcode\s*:\s*(-?\d+)", err)) == {"143"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds torchrun's processes through /proc")
def test_signalled_or_killed_in_one_process_all_stop_and_any_number_goes_on(chains, tmp_path):
    folder, _ = chains
    command = [
        "ldm_train.py",
        *TINY,
        f"runs={tmp_path}",
        "vqgan.weights=shared/vqgan/weights.safetensors",
        "ldm.milestones=[]",
    ]
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
        assert len(steps) == 1, err
        newest = sorted((tmp_path / "ldm").glob("state_*"))[-1]
        assert newest.name == f"state_{int(steps[0]):08d}.pt", err
        return int(steps[0])

    process = launch(ROOT / endless[0], *endless[1:], count=2, folder=folder)
    lines = trained(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal; torchrun gets it and sends its processes a second one
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
    assert time.monotonic() - began < 60
    assert f"going on from {tmp_path / 'ldm' / f'state_{steps:08d}.pt'}" in err

    _, err = finish(launch(ROOT / command[0], *command[1:], f"ldm.epochs={lines + 2}", count=1, folder=folder))
    assert "going on from" in err
    assert len(log.read_text().splitlines()) == 1 + lines + 2
    assert np.isfinite(float(log.read_text().splitlines()[-1].split(",")[3]))
    assert images.read(tmp_path / "ldm" / "samples" / f"epoch_{lines + 2:04d}.png").pixels.std() > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, path = sys.argv[1:]
    work = {"networks": join_and_use_networks, "scripts": run_scripts, "leave": leave}[what]
    # as a script leaves: Python's own end, where a library's thread now and then aborts the process, is not run
    entry.run(lambda: work(Path(path)))
