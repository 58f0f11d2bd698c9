"""metrics.py run as a person runs it, on a small folder: what it writes, what it leaves out, how it ends."""
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import metrics
from models import UserError, features, images, scores

ROOT = Path(__file__).resolve().parents[1]
SIDE = 64


@pytest.fixture(scope="module", autouse=True)
def imagenet():
    try:
        features.find("alex")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(tmp_path):
    """CXR/, BS/ and predictions one/ and two/ of images 1, 2 and 10; image 2 has no bone; one/ holds the truth of image 1 in 16 bits."""
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
    return [f"metrics.cxr={folder}/CXR", f"metrics.target={folder}/BS", f"metrics.prediction=[{paths}]",
            f"metrics.output={folder}/out", f"metrics.size={SIDE}", "device=cpu"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "metrics.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["metrics.py", *arguments])
    return metrics.main()


def test_two_methods_with_faults_are_scored_on_what_is_complete(folder):
    images.write(folder / "one" / "3.png", np.full((SIDE, SIDE), 0.5))  # no CXR, no truth, not in two/
    for part in ("CXR", "BS", "one", "two"):
        images.write(folder / part / "4.png", np.full((SIDE, SIDE), 0.5))
    (folder / "two" / "4.png").write_bytes(b"not an image")
    done = run(*arguments(folder, "one", "two"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "3 is not scored: no prediction of two, no CXR, no truth" in done.stderr
    assert f"4 is not scored: cannot read {folder}/two/4.png" in done.stderr

    with open(folder / "out" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["method"]) for row in rows] == [(name, method) for name in ("1", "2", "10")
                                                               for method in (scores.REFERENCE, "one", "two")]
    read = {(row["image"], row["method"]): row for row in rows}
    cxr, soft, two = (images.read(folder / part / "10.png").pixels for part in ("CXR", "BS", "two"))
    assert float(read["10", "two"]["BSR"]) == pytest.approx(scores.bsr(cxr, soft, two))
    assert float(read["10", scores.REFERENCE]["SSIM"]) == pytest.approx(scores.ssim(soft, cxr))
    assert read["1", "one"]["PSNR"] == "inf" and read["2", "two"]["BSR"] == "nan"

    report = json.loads((folder / "out" / "metrics.json").read_text())
    assert report["images"]["2"]["two"]["BSR"] is None
    psnr = [float(read[name, "one"]["PSNR"]) for name in ("2", "10")]
    assert report["summary"]["one"]["PSNR"] == pytest.approx({"mean": np.mean(psnr), "std": np.std(psnr), "count": 2, "undefined": 1})
    assert report["summary"]["two"]["BSR"]["undefined"] == 1

    table = (folder / "out" / "metrics.txt").read_text()
    assert table in done.stdout and f"3 images at {SIDE} x {SIDE}\n" in table
    assert "**" in (folder / "out" / "metrics.md").read_text()
    assert images.read(folder / "out" / "metrics.png").pixels.std() > 0.05
    assert sorted(path.name for path in (folder / "out").iterdir()) == \
        ["comparison.png", *(f"metrics.{end}" for end in ("csv", "json", "md", "png", "txt"))]


def test_missing_folder_ends_in_one_line_with_status_2(folder):
    done = run(*arguments(folder, "absent"))
    assert done.returncode == 2 and not (folder / "out").exists()
    assert done.stderr == f"metrics.py: no folder {folder}/absent; set metrics.prediction\n"


def test_all_done_is_status_0_and_resizing_is_said(folder, monkeypatch, capsys):
    images.write(folder / "two" / "1.png", np.full((2 * SIDE, SIDE), 0.5))
    assert main(monkeypatch, *arguments(folder, "two")) == 0
    assert f"3 images at {SIDE} x {SIDE}, 1 of them resized to that\n" in capsys.readouterr().out
    report = json.loads((folder / "out" / "metrics.json").read_text())
    assert set(report["summary"]) == {scores.REFERENCE, "two"} and math.isfinite(report["summary"]["two"]["LPIPS"]["mean"])


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
    assert metrics.name_methods(("runs/ldm_eval", "runs/lcm/")) == {"ldm_eval": "runs/ldm_eval", "lcm": "runs/lcm/"}
    assert metrics.name_methods(("a/test", "b/test", "c")) == {"a/test": "a/test", "b/test": "b/test", "c": "c"}
    for same in (("a", "./a"), ()):
        with pytest.raises(UserError, match="several different"):
            metrics.name_methods(same)
