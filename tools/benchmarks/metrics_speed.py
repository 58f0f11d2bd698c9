"""How much faster models/evaluation/scoring.py scores than a loop that builds LPIPS anew for each value, as published.

    python tools/benchmarks/metrics_speed.py [side 1024] [images 4] [rounds 3]

Both give the same table of the same images (random; one method beside the untouched CXR), in turn, in one process; the
medians' ratio is printed. The loop builds `lpips.LPIPS(net="alex")` with its ImageNet features from a file, as the
package does after its download, and computes one image after the other on all cores. Runs on a GPU if there is one.
"""

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lpips
import numpy as np
import torch
import torchvision
from skimage.metrics import structural_similarity

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models import features, images, scores  # noqa: E402
from models.evaluation import scoring  # noqa: E402


def main(side: int = 1024, count: int = 4, rounds: int = 3) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ways = {"published": as_published, "ours": ours}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, dict] = {}

    # in turn, without bars and warnings; the first turn warms up
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        root = Path(folder)
        prepare(root, side, count)
        for turn in range(rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                values[name] = way(root, side, device)
                if turn > 0:
                    seconds[name].append(time.perf_counter() - began)

    # what it took, and that both computed the same
    published_time = statistics.median(seconds["published"])
    our_time = statistics.median(seconds["ours"])
    machine = f"CPU, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    print(
        f"{count} images of {side} x {side} on {machine}, median of {rounds} rounds in turn: "
        f"LPIPS anew for each value {published_time / count:.2f} s an image, ours {our_time / count:.2f} s, "
        f"ratio {published_time / our_time:.1f}; "
        f"largest difference of a value {largest_difference(values['ours'], values['published']):.1e}"
    )


def prepare(root: Path, side: int, count: int) -> None:
    """Write images into root/CXR, BS and ours, and AlexNet into root/hub as torchvision's download leaves it."""
    rng = np.random.default_rng(0)
    for name in range(count):
        soft = 0.1 + 0.6 * images.resize(rng.random((16, 16)), (side, side)) + 0.02 * rng.standard_normal((side, side))
        bone = 0.2 * images.resize(rng.random((12, 12)), (side, side))
        images.write(root / "CXR" / f"{name}.png", soft + bone)
        images.write(root / "BS" / f"{name}.png", soft)
        images.write(root / "ours" / f"{name}.png", soft + 0.2 * bone)

    alexnet = torchvision.models.alexnet()
    known = features.read(features.find("alex"), "alex")
    state = alexnet.state_dict() | {f"features.{key}": value for key, value in known.items()}
    folder = root / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / features.DOWNLOADS["alex"])


def ours(root: Path, side: int, device: torch.device) -> dict:
    """{image: {score: value}} of the method."""
    scored = scoring.score_folders({"ours": root / "ours"}, root / "CXR", root / "BS", size=side, device=device)
    return {name: rows["ours"] for name, rows in scored.values.items()}


def as_published(root: Path, side: int, device: torch.device) -> dict:
    """The same, one image and one value after the other; the CXR's row is computed too, and not returned."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(root / "hub")
    values = {}
    for path in images.find(root / "ours").values():
        cxr = images.read(root / "CXR" / path.name).pixels
        gt = images.read(root / "BS" / path.name).pixels
        score_as_published(cxr, gt, cxr, device)
        values[path.stem] = score_as_published(cxr, gt, images.read(path).pixels, device)
    torch.hub.set_dir(before)
    return values


def score_as_published(cxr: np.ndarray, gt: np.ndarray, pred: np.ndarray, device: torch.device) -> dict[str, float]:
    """The columns of the table for one image; float (H, W) in [0, 1]."""
    row = {
        "BSR": scores.bsr(cxr, gt, pred),
        "BSR_two_sided": scores.bsr_two_sided(cxr, gt, pred),
        "BSR_residual": scores.bsr_residual(cxr, gt, pred),
        "MSE": scores.mse(gt, pred),
        "PSNR": scores.psnr(gt, pred),
        "SSIM": structural_similarity(
            gt.astype(float),
            pred.astype(float),
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        ),
    }
    tensors = [torch.from_numpy(array)[None, None].to(device) for array in (gt, pred)]
    for key, normalize in (("LPIPS", False), ("LPIPS_normalized", True)):
        network = lpips.LPIPS(net="alex", verbose=False).to(device)
        row[key] = float(network(*tensors, normalize=normalize))
    return row


def largest_difference(values: dict, expected: dict) -> float:
    differences = []
    for image, row in expected.items():
        for key, value in row.items():
            differences.append(abs(values[image][key] - value))
    return max(differences)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(*map(int, sys.argv[1:]))
