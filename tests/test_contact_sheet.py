"""The contact sheet: which pairs it shows, and where; and how the tools that take a folder end on a wrong one."""

import runpy
import sys

import numpy as np
import pytest

from models import images
from tools import contact_sheet


def write_pair(root, name, cxr, soft):
    """Two even images of these grey levels."""
    for folder, grey in (("CXR", cxr), ("BS", soft)):
        images.write(root / folder / f"{name}.png", np.full((20, 20), grey, np.float32))


def test_simulated_pairs_come_first_and_real_ones_last(tmp_path, monkeypatch):
    write_pair(tmp_path / "simulated", "1", 0.2, 0.4)
    write_pair(tmp_path / "real", "a", 0.6, 0.8)
    places = [str(tmp_path / "simulated"), str(tmp_path / "sheet.png"), "--real", str(tmp_path / "real")]
    monkeypatch.setattr(sys, "argv", ["contact_sheet", *places, "--side", "10", "--columns", "3"])
    contact_sheet.main()
    pixels = images.read(tmp_path / "sheet.png").pixels
    assert pixels.shape == (10, 60)
    assert pixels[5, 5::10] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0, 0], abs=0.01)


def test_a_sheet_has_as_many_rows_as_it_needs():
    shown = [np.full((2, 4), grey) for grey in (0.1, 0.2, 0.3)]
    assert contact_sheet.sheet(shown, 2)[::2, ::4].tolist() == [[0.1, 0.2], [0.3, 0]]


@pytest.mark.parametrize("tool", ["contact_sheet", "train_refiner"])
def test_a_wrong_folder_is_one_line(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, str(tmp_path / "nowhere"), str(tmp_path / "result")])
    monkeypatch.delitem(sys.modules, f"tools.{tool}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"tools.{tool}", run_name="__main__", alter_sys=True)
    complaint = capsys.readouterr().err
    assert ended.value.code == 2 and complaint.count("\n") == 1 and f"no folder {tmp_path / 'nowhere'}" in complaint


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_a_number_below_one_is_refused_in_one_line(text, tmp_path, monkeypatch, capsys):
    write_pair(tmp_path, "1", 0.2, 0.4)
    sheet = tmp_path / "sheet.png"
    for option in ("--count", "--columns", "--side"):
        monkeypatch.setattr(sys, "argv", ["contact_sheet", str(tmp_path), str(sheet), f"{option}={text}"])
        with pytest.raises(SystemExit) as ended:
            contact_sheet.main()
        assert ended.value.code == 2 and f"{text} is no whole number" in capsys.readouterr().err
        assert not sheet.exists()
