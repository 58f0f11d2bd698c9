"""What the tests share: one thread (small networks gain nothing from more, and lose much on a busy machine), scripts run in this process."""
import io
import runpy
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from golden_draws import fill

from models import scores
from models.runtime.files import UserError
from models.unet import ConditionalUNet
from models.vqgan import MLVQGAN

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs start so, and the scripts that tests signal would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent


def run_script(script: str, *arguments: str, folder: Path = ROOT) -> tuple[int, str, str]:
    """Run a script in a folder without starting Python and torch anew -> (exit status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return stop.value.code or 0, out.getvalue(), err.getvalue()


@pytest.fixture
def run_here():
    return run_script


@pytest.fixture(scope="session")
def networks():
    """(ML-VQGAN, ConditionalUNet), small, for images of 64 x 64; not to be changed."""
    return fill(MLVQGAN(channels=(8, 16), residual_channels=8, residual_layers=1, codes=32)), \
        fill(ConditionalUNet(width=32, multipliers=(1, 1), blocks=1, heads=4, attention=(2,)))


@pytest.fixture(scope="session")
def lpips():
    """LPIPS with its real features, where they are on this machine."""
    try:
        return scores.Lpips()
    except UserError as error:
        pytest.skip(str(error))
