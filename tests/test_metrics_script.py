"""metrics.py run as a person runs it, on a small folder: what it writes, what it leaves out, how it ends."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import make_dicom
from PIL import Image

import metrics
from models import features, images, scores
from models.evaluation import findings_tables, report, scoring
from models.runtime.files import UserError

SIDE = 64


@pytest.fixture(scope="module", autouse=True)
def imagenet():
    try:
        features.find("alex")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(tmp_path):
    """CXR/, BS/ and predictions one/ and two/ of images 1, 2 and 10; image 2 has no bone; one/ holds the truth of image
    1 in 16 bits."""
    rng = np.random.default_rng(0)
    for name in ("1", "2", "10"):
        soft = np.rint(255 * (0.2 + 0.5 * rng.random((SIDE, SIDE)))) / 255
        bone = np.zeros_like(soft)
        bone[10:20] = 0 if name == "2" else 0.2
        images.write(tmp_path / "CXR" / f"{name}.png", soft + bone, 16)
        images.write(tmp_path / "BS" / f"{name}.png", soft, 16)
        images.write(tmp_path / "one" / f"{name}.png", soft if name == "1" else soft + 0.01, 16)
        images.write(tmp_path / "two" / f"{name}.png", soft + 0.5 * bone)
    images.write(tmp_path / "one" / "panels" / "1.png", np.zeros((8, 8)))
    (tmp_path / "one" / "summary.json").write_text("{}")
    return tmp_path


def arguments(folder: Path, *predictions: str) -> list[str]:
    paths = ",".join(str(folder / name) for name in predictions)
    return [
        f"metrics.cxr={folder}/CXR",
        f"metrics.target={folder}/BS",
        f"metrics.prediction=[{paths}]",
        f"metrics.output={folder}/out",
        f"metrics.size={SIDE}",
        "device=cpu",
    ]


def main(monkeypatch, *arguments: str) -> int:
    """Without the pictures, which take most of the time."""
    monkeypatch.setattr(report, "write_pictures", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["metrics.py", *arguments])
    return metrics.main()


@pytest.mark.slow
def test_two_methods_with_faults_are_scored_on_what_is_complete(folder, run_here):
    images.write(folder / "one" / "3.png", np.full((SIDE, SIDE), 0.5))  # no CXR, no truth, not in two/
    for part in ("CXR", "BS", "one", "two"):
        images.write(folder / part / "4.png", np.full((SIDE, SIDE), 0.5))
    (folder / "two" / "4.png").write_bytes(b"not an image")
    status, shown, told = run_here("metrics.py", *arguments(folder, "one", "two"))
    assert status == 1
    assert "3 is not scored: no prediction of two, no CXR, no truth" in told
    assert f"4 is not scored: cannot read {folder}/two/4.png" in told

    with open(folder / "out" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["method"]) for row in rows] == [
        (name, method) for name in ("1", "2", "10") for method in (scores.REFERENCE, "one", "two")
    ]
    read = {(row["image"], row["method"]): row for row in rows}
    cxr, soft, two = (images.read(folder / part / "10.png").pixels for part in ("CXR", "BS", "two"))
    assert float(read["10", "two"]["BSR"]) == pytest.approx(scores.bsr(cxr, soft, two))
    assert float(read["10", scores.REFERENCE]["SSIM"]) == pytest.approx(scores.ssim(soft, cxr))
    assert read["1", "one"]["PSNR"] == "inf" and read["2", "two"]["BSR"] == "nan"

    tree = json.loads((folder / "out" / "metrics.json").read_text())
    assert tree["images"]["2"]["two"]["BSR"] is None
    psnr = [float(read[name, "one"]["PSNR"]) for name in ("2", "10")]
    found = tree["summary"]["one"]["PSNR"]
    assert (found["mean"], found["std"]) == pytest.approx((np.mean(psnr), np.std(psnr))) and (
        found["count"],
        found["undefined"],
    ) == (2, 1)
    assert tree["summary"]["two"]["BSR"]["undefined"] == 1
    assert (
        tree["tests"][0]["p"] is None
        and "undefined, fewer than 6 images differ" in (folder / "out" / "metrics.txt").read_text()
    )

    table = (folder / "out" / "metrics.txt").read_text()
    for part in (
        f"3 images at {SIDE} x {SIDE}\n",
        "BSR is undefined for 1 of 3 images (no bone)",
        "every method: PSNR is undefined for 1 of 3 images (equal images)",
    ):
        assert part in table and part in shown
    assert "inside the lungs" not in table and "**" in (folder / "out" / "metrics.md").read_text()
    assert r"\textbf{" in (folder / "out" / "metrics.tex").read_text()
    for name in ("metrics", "comparison", "examples_one", "examples_two"):
        assert images.read(folder / "out" / f"{name}.png").pixels.std() > 0.05
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "comparison.png",
        "examples_one.png",
        "examples_two.png",
        *(f"metrics.{end}" for end in ("csv", "json", "md", "png", "tex", "txt")),
        "report.html",
        "report_files",
    ]
    # without the page an earlier one, of other numbers, goes
    assert run_here("metrics.py", *arguments(folder, "one", "two"), "metrics.page=false")[0] == 1
    assert not [path.name for path in (folder / "out").iterdir() if path.name.startswith("report")]


def test_missing_folder_ends_in_one_line_with_status_2(folder, run_here):
    status, _, told = run_here("metrics.py", *arguments(folder, "absent"))
    assert status == 2 and not (folder / "out").exists()
    assert told == f"metrics.py: no folder {folder}/absent; set metrics.prediction\n"


def test_all_done_is_status_0_and_resizing_is_said(folder, monkeypatch, capsys):
    images.write(folder / "two" / "1.png", np.full((2 * SIDE, 2 * SIDE), 0.5))
    assert main(monkeypatch, *arguments(folder, "two")) == 0
    shown, told = capsys.readouterr()
    assert f"3 images at {SIDE} x {SIDE}, 1 of them resized to that (area average" in shown
    assert "scoring: 100%" in told  # also where nobody watches: 20,000 images take minutes
    tree = json.loads((folder / "out" / "metrics.json").read_text())
    assert set(tree["summary"]) == {scores.REFERENCE, "two"} and math.isfinite(tree["summary"]["two"]["LPIPS"]["mean"])
    assert len(tree["tests"]) == len(tree["summary"]["two"]) and {(test["a"], test["b"]) for test in tree["tests"]} == {
        (scores.REFERENCE, "two")
    }


def test_another_aspect_ratio_is_a_fault_and_not_a_squeeze(folder, monkeypatch, capsys):
    images.write(folder / "two" / "1.png", np.full((2 * SIDE, SIDE), 0.5))
    images.write(folder / "two" / "10.png", np.full((2 * SIDE + 1, 2 * SIDE), 0.5))  # rounded to a pixel
    images.write(folder / "Mask" / "2.png", np.ones((SIDE // 2, SIDE)))
    assert main(monkeypatch, *arguments(folder, "two")) == 1
    told = capsys.readouterr().err
    assert (
        f"1 is not scored: {folder}/two/1.png is {SIDE} x {2 * SIDE}, but the truth {SIDE} x {SIDE}: of another aspect"
        in told
    )
    assert (
        f"2 is not scored inside the lungs: the mask {folder}/Mask/2.png is {SIDE} x {SIDE // 2}" in told
        and "10 is not" not in told
    )


@pytest.mark.slow
def test_truths_of_another_grey_scale_are_faults_or_said(folder, monkeypatch, capsys):
    """A truth or a result whose depth is found otherwise than its CXR's, and a pair of DICOM files without a window."""
    levels = np.rint(4000 * images.read(folder / "CXR" / "1.png").pixels).astype(np.uint16)
    Image.fromarray(levels).save(folder / "CXR" / "1.png")
    Image.fromarray(levels // 4).save(folder / "BS" / "1.png")
    for part in ("CXR", "BS"):
        (folder / part / "10.png").unlink()
        make_dicom(folder / part / "10.dcm", levels)
    assert main(monkeypatch, *arguments(folder, "two")) == 1
    shown, told = capsys.readouterr()
    assert "1 is not scored" in told and "read as 10 bits" in told and "10 is not" not in told
    assert "1 of them DICOM pairs without a window" in shown and "read as the bits" not in shown

    # a result of 12 bits, as eval.range=4095 makes it of a CXR that is found to have 10
    Image.fromarray(levels // 4).save(folder / "CXR" / "1.png")
    images.write_like(folder / "two" / "1.png", levels / 8190, images.read(folder / "CXR" / "1.png", (0, 4095)))
    assert main(monkeypatch, *arguments(folder, "two")) == 1
    told = capsys.readouterr().err
    assert f"1 is not scored: {folder}/two/1.png is read as 12 bits, but {folder}/CXR/1.png as 10" in told

    # with the same depth it is scored, which the heading says
    images.write_like(folder / "two" / "1.png", levels / 8190, images.read(folder / "CXR" / "1.png"))
    assert main(monkeypatch, *arguments(folder, "two")) == 0
    assert "of 1 of them CXR and truth read as the bits that they use" in capsys.readouterr().out


@pytest.mark.slow
def test_images_of_other_runs_in_a_folder_are_noted(folder, monkeypatch, capsys):
    summary = {"method": "x", "seconds_per_image": {"1": 1.0}, "results_of_earlier_runs": ["2"]}
    (folder / "two" / "summary.json").write_text(json.dumps(summary))
    assert main(monkeypatch, *arguments(folder, "two")) == 0
    told = capsys.readouterr().err
    assert (
        f"note: {folder}/two holds images that its summary.json does not list, perhaps another method's: 10\n" in told
    )
    (folder / "two" / "unfinished_0.jsonl").write_text("")
    assert main(monkeypatch, *arguments(folder, "two")) == 0
    assert f"note: an evaluation in {folder}/two has not ended" in capsys.readouterr().err


def test_a_place_for_tables_that_is_not_ones_own_is_refused_before_the_scoring(folder, monkeypatch):
    monkeypatch.setattr(scores, "Lpips", lambda *_: pytest.fail("built"))
    images.write(folder / "CXR" / "comparison.png", np.full((SIDE, SIDE), 0.5))
    before = (folder / "CXR" / "comparison.png").read_bytes()
    with pytest.raises(UserError, match="CXR/comparison.png is there already"):
        main(monkeypatch, *arguments(folder, "two"), f"metrics.output={folder}/CXR")
    assert (folder / "CXR" / "comparison.png").read_bytes() == before
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/out"):
        main(monkeypatch, *arguments(folder, "two"), f"metrics.output={folder}/file/out")


@pytest.mark.slow
def test_a_list_masks_and_their_faults(folder, monkeypatch, capsys):
    inside = np.zeros((SIDE, SIDE))
    inside[5:40, 10:50] = 1
    for name in ("1", "10"):
        images.write(folder / "Mask" / f"{name}.png", inside)
    (folder / "list.txt").write_text("10.png\n2.png\n7.png\n")
    assert main(monkeypatch, *arguments(folder, "two"), f"metrics.images={folder}/list.txt") == 1
    shown = capsys.readouterr()
    assert (
        shown.err.splitlines()[-1] == "7 is not scored: no prediction of two, no CXR, no truth"
        and "1 is not" not in shown.err
    )
    tree = json.loads((folder / "out" / "metrics.json").read_text())
    assert list(tree["images"]) == ["10", "2"] and tree["images"]["2"]["two"]["MSE_lungs"] is None
    cxr, soft, two = (images.read(folder / part / "10.png").pixels for part in ("CXR", "BS", "two"))
    assert tree["images"]["10"]["two"]["BSR_lungs"] == pytest.approx(scores.bsr(cxr, soft, two, inside > 0))
    assert (
        "every method: MSE is undefined for 1 of 2 images (no mask)" in shown.out
        and "Scores inside the lungs" in shown.out
    )

    (folder / "Mask" / "1.png").write_bytes(b"no image")
    images.write(folder / "black" / "10.png", 0 * inside)
    assert main(monkeypatch, *arguments(folder, "two")) == 1
    assert f"1 is not scored inside the lungs: cannot read {folder}/Mask/1.png" in capsys.readouterr().err
    assert main(monkeypatch, *arguments(folder, "two"), f"metrics.masks={folder}/black") == 1
    shown = capsys.readouterr()
    assert "black/10.png is empty (all black)" in shown.err and "inside the lungs" not in shown.out


def test_nothing_in_common_is_a_users_error_before_the_network_is_built(folder, monkeypatch):
    monkeypatch.setattr(scores, "Lpips", lambda *_: pytest.fail("built"))
    images.write(folder / "three" / "elsewhere.png", np.full((SIDE, SIDE), 0.5))
    with pytest.raises(UserError, match="nothing to score"):
        main(monkeypatch, *arguments(folder, "three"))
    with pytest.raises(UserError, match="metrics.size=31 is too small"):
        main(monkeypatch, *arguments(folder, "one"), "metrics.size=31")
    with pytest.raises(UserError, match="no image in .*empty"):
        (folder / "empty").mkdir()
        main(monkeypatch, *arguments(folder, "empty"))


def test_methods_are_named_by_their_folder():
    assert scoring.name_methods(("runs/ldm_eval", "runs/lcm/")) == {"ldm_eval": "runs/ldm_eval", "lcm": "runs/lcm/"}
    assert scoring.name_methods(("a/test", "b/test", "c")) == {"a/test": "a/test", "b/test": "b/test", "c": "c"}
    for same in (("a", "./a"), ()):
        with pytest.raises(UserError, match="several different"):
            scoring.name_methods(same)


@pytest.mark.slow
def test_known_findings_are_measured_beside_the_scores(folder, monkeypatch, capsys):
    (folder / "list.csv").write_text("image,x,y,diameter\n1,20,25,6\n10,25,30,6\n9,5,5,5\n")
    asked = [*arguments(folder, "one", "two"), f"metrics.findings={folder}/list.csv"]
    assert main(monkeypatch, *asked) == 1  # 9 is no image
    shown = capsys.readouterr()
    assert "Findings (2)" in shown.out and "9: its 1 findings are left out" in shown.err
    for name in findings_tables.FILES:
        assert (folder / "out" / name).is_file()

    # neither the list itself nor a file that no record names is written over
    with pytest.raises(UserError, match="findings.csv is an input"):
        main(monkeypatch, *arguments(folder, "one"), f"metrics.findings={folder}/out/findings.csv")
    (folder / "new").mkdir()
    (folder / "new" / "findings.txt").write_text("somebody's")
    with pytest.raises(UserError, match="findings.txt is there already"):
        main(monkeypatch, *asked, f"metrics.output={folder}/new")
