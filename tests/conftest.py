"""What the tests share: one thread (small networks gain nothing from more, and lose much on a busy machine), scripts run in this process."""
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs start so, and the scripts that tests signal would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run_here(monkeypatch, capsys):
    """run_here(script, *arguments, folder=...) -> (exit status, stdout, stderr) without starting Python and torch anew."""

    def run(script: str, *arguments: str, folder: Path = ROOT) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run
