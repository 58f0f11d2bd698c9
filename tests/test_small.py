"""The shipped weights as a stranger uses them: no data, no training; less bone than before, at any size, on simulated
and on real pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from golden_draws import SHARED

from models import images, scores
from models.simulate import phantom

pytestmark = pytest.mark.slow

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
UNSEEN = 900_000  # a seed that the recipe does not use
METHODS = {"BS-LDM": "ldm_eval.py", "GL-LCM": "batch_lcm_eval.py"}


def run(run_here, script: str, folder: Path, source: Path) -> Path:
    status, _, told = run_here(
        script,
        "--profile",
        "small",
        f"eval.input={source}",
        f"eval.output={folder / script}",
        "device=cpu",
        folder=folder,
    )
    assert status == 0, told
    return folder / script


def values(cxr, soft, result, lpips) -> list[dict[str, float]]:
    """All scores of the untouched CXR and of the result."""
    return list(scores.score(cxr, soft, {"result": result}, lpips).values())


def test_the_weights_are_small_and_of_half_precision():
    files = {path.stem: path for path in WEIGHTS.glob("*.safetensors")}
    assert {"vqgan", "bsldm", "gllcm", "refiner", "lungs"} == files.keys() and sum(
        path.stat().st_size for path in files.values()
    ) < 25e6
    for name in ("vqgan", "bsldm", "gllcm", "refiner"):
        with safetensors.safe_open(files[name], "pt") as file:
            kinds = {str(file.get_slice(key).get_dtype()) for key in file.keys()}
        assert kinds == {"F16"}


@pytest.mark.parametrize("method", METHODS)
def test_a_strangers_image_of_any_shape_loses_bone(run_here, tmp_path, method, lpips):
    """A simulated patient at 640 x 600 and 16 bits, nothing else in the folder; what is soft stays sharp."""
    patient = phantom.simulate(UNSEEN, 640)
    cxr, soft = patient.cxr[:, 20:620], patient.soft[:, 20:620]
    images.write(tmp_path / "scan.png", cxr, 16)
    folder = run(run_here, METHODS[method], tmp_path, tmp_path / "scan.png")
    result = images.read(folder / "scan.png")
    assert result.pixels.shape == cxr.shape and result.bits == 16 and (folder / "panels" / "scan.png").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["method"] == method and len(summary["weights"]) == 3
    before, after = values(cxr, soft, result.pixels, lpips)
    assert after["BSR_two_sided"] > before["BSR_two_sided"] + 0.2 and after["PSNR"] > before["PSNR"] + 1, (
        before,
        after,
    )
    no_bone = np.abs(cxr - soft) < 0.004
    assert np.abs(result.pixels - cxr)[no_bone].mean() < 0.25 * np.abs(result.pixels - cxr)[~no_bone].mean()


@pytest.mark.parametrize("method", METHODS)
def test_real_pairs_score_better_than_untouched(run_here, tmp_path, method, lpips):
    if not (SHARED / "szch").is_dir():
        pytest.skip(f"no real pairs in {SHARED / 'szch'}")
    folder, size = run(run_here, METHODS[method], tmp_path, SHARED / "szch" / "CXR"), (512, 512)
    tables = []
    for number in range(3):
        cxr, soft = (
            images.resize(images.read(SHARED / "szch" / part / f"{number}.png").pixels, size) for part in ("CXR", "BS")
        )
        result = images.resize(images.read(folder / f"{number}.png").pixels, size)
        tables.append(values(cxr, soft, result, lpips))
    for score in scores.PUBLISHED + scores.BESIDE:
        before, after = (np.mean([table[part][score.key] for table in tables]) for part in (0, 1))
        assert after > before if score.larger_is_better else after < before, (
            f"{score.key}: untouched {before:.4f}, {method} {after:.4f}"
        )
