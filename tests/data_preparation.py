"""What the tests of dataSegmentation.py share: the script as a person runs it, in a temporary folder."""

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT

import dataSegmentation
from models.runtime import entry, workers

SIZE = 64  # side of the images, pixels


def call(folder: Path, *settings: str, status: int = 0, process: bool = False) -> tuple[str, list[str]]:
    """Run the script with data in <folder>/set and lists in <folder>/lists -> its output, and the lines of its standard
    error without the progress.

    In this process, because a new one needs seconds to start; process=True: as a person does.
    """
    argv = [
        str(ROOT / "dataSegmentation.py"),
        f"data.root={folder}/set",
        f"data.lists={folder}/lists",
        f"data.image_size={SIZE}",
        *settings,
    ]
    run = _run_as_a_person_does if process else _run_here
    out, err, returned = run(argv)
    assert returned == status, err
    assert "Traceback" not in err, err
    lines = err.replace("\r", "\n").splitlines()
    return out, [line for line in lines if line and not line.endswith(("it/s]", "s/it]"))]


def _run_as_a_person_does(argv: list[str]) -> tuple[str, str, int]:
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.stdout, done.stderr, done.returncode


def _run_here(argv: list[str]) -> tuple[str, str, int]:
    out = io.StringIO()
    err = io.StringIO()
    with (
        mock.patch("sys.argv", argv),
        mock.patch.object(workers, "FEW", 99),  # images for which no processes are started
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        entry.run(dataSegmentation.main)
    return out.getvalue(), err.getvalue(), end.value.code


def contents(folder: Path) -> dict[Path, bytes]:
    """{path below the folder: content} of all files."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def copy_pairs(simulated: Path, folder: Path) -> Path:
    """The folder, with the pairs that the fixture `simulated` has in <folder>/set, and without their lists."""
    for part in ("CXR", "BS", "Mask"):
        shutil.copytree(simulated / "set" / part, folder / "set" / part)
    return folder


def refused(folder: Path, *settings: str, lines: int = 1, process: bool = False) -> list[str]:
    """The lines of a refusal, of which the last is the message and those above are faults; nothing was written."""
    before = contents(folder)
    _, errors = call(folder, *settings, status=2, process=process)
    assert contents(folder) == before
    assert len(errors) == lines, errors
    assert errors[-1].startswith("dataSegmentation.py: "), errors
    return errors
