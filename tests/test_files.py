"""Every file that is written takes its place whole, under any name that the filesystem takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.runtime.files import MachineError, UserError, replacing, sweep

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 255  # bytes of a name, on the filesystems of Linux and macOS

NAMES = {
    "longest": "x" * (LONGEST - 4) + ".png",
    "longest in letters of two bytes": "é" * ((LONGEST - 5) // 2) + ".png",
    "a cut through a letter": "x" + "é" * 120 + ".png",
    "line break": "scan\n1.png",
    "not UTF-8": os.fsdecode(b"bad\xff.png"),
    "long and not UTF-8": os.fsdecode(b"\xff" * 250 + b".png"),
}


@pytest.fixture(params=NAMES)
def path(request, tmp_path) -> Path:
    path = tmp_path / NAMES[request.param]
    try:
        path.write_bytes(b"old")
    except OSError as error:
        pytest.skip(f"this filesystem does not take it: {error.strerror}")
    return path


def test_a_file_of_any_name_is_replaced(path):
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == [path.name]


def test_after_an_error_the_old_file_of_any_name_is_there(path):
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_what_a_killed_process_left_of_a_file_of_any_name_is_swept(path):
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from models.runtime.files import replacing
with replacing(os.fsdecode({os.fsencode(path)!r})):
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert len(os.listdir(path.parent)) == 2
    sweep(path.parent)
    assert os.listdir(path.parent) == [path.name]


def test_long_names_with_the_same_beginning_have_temporary_files_of_their_own(tmp_path):
    with replacing(tmp_path / ("x" * 240 + "1")) as one, replacing(tmp_path / ("x" * 240 + "2")) as two:
        assert one != two


def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path):
    with pytest.raises(UserError, match="cannot write .*: File name too long") as refused:
        with replacing(tmp_path / ("x" * (LONGEST + 1))):
            pytest.fail("the work began")
    assert refused.value.status == 2 and not os.listdir(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["x" * LONGEST, os.fsdecode(b"bad\xff.png")], ids=["longest", "not UTF-8"])
def test_a_full_disk_is_one_line_that_can_be_printed(name, tmp_path):
    with pytest.raises(MachineError, match="cannot write .*: No space left on device") as full:
        with replacing(tmp_path / name) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x" * 100000)
    assert full.value.status == 1 and not os.listdir(tmp_path)
    assert str(full.value).encode("utf-8").count(b"\n") == 0
