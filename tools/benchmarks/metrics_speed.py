"""How much faster models/evaluation/scoring.py scores than a loop that does as the published scripts do: LPIPS built anew for each value.

    python tools/benchmarks/metrics_speed.py [side 1024] [images 4] [rounds 3]

Both give the same table of the same images (random; one method beside the untouched CXR), in turn, in one process; the medians'
ratio is printed. The loop builds `lpips.LPIPS(net="alex")` with its ImageNet features from a file, as the package does after its
download, and computes one image after the other on all cores. Runs on the GPU where there is one.
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

import numpy as np
import torch
from skimage.metrics import structural_similarity

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models import features, images, scores  # noqa: E402
from models.evaluation import scoring  # noqa: E402


def main(side: int = 1024, count: int = 4, rounds: int = 3) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # no bars
        warnings.simplefilter("ignore")
        root = Path(folder)
        prepare(root, side, count)
        seconds: dict[str, list[float]] = {"published": [], "ours": []}
        for turn in range(rounds + 1):  # the first warms up
            for name, way in (("published", as_published), ("ours", ours)):
                began = time.perf_counter()
                values = way(root, side, device)
                seconds[name] += [time.perf_counter() - began] * (turn > 0)
                if name == "published":
                    expected = values
            worst = max(abs(values[image][key] - expected[image][key]) for image in values for key in expected[image])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    print(f"{count} images of {side} x {side} on {where}, median of {rounds} rounds in turn: LPIPS anew for each value "
          f"{medians['published'] / count:.2f} s an image, ours {medians['ours'] / count:.2f} s, ratio {medians['published'] / medians['ours']:.1f}; "
          f"largest difference of a value {worst:.1e}")


def prepare(root: Path, side: int, count: int) -> None:
    """Images in root/CXR, BS, ours, and AlexNet as torchvision's download leaves it."""
    rng = np.random.default_rng(0)
    for name in range(count):
        soft = 0.1 + 0.6 * images.resize(rng.random((16, 16)), (side, side)) + 0.02 * rng.standard_normal((side, side))
        bone = 0.2 * images.resize(rng.random((12, 12)), (side, side))
        for part, pixels in (("CXR", soft + bone), ("BS", soft), ("ours", soft + 0.2 * bone)):
            images.write(root / part / f"{name}.png", pixels)
    import torchvision
    alexnet = torchvision.models.alexnet()
    known = features.read(features.find("alex"), "alex")
    alexnet.load_state_dict(alexnet.state_dict() | {f"features.{key}": value for key, value in known.items()})
    (root / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(alexnet.state_dict(), root / "hub" / "checkpoints" / features.DOWNLOADS["alex"])


def ours(root: Path, side: int, device: torch.device) -> dict:
    found = scoring.score_folders({"ours": root / "ours"}, root / "CXR", root / "BS", size=side, device=device)
    return {name: rows["ours"] for name, rows in found.values.items()}


def as_published(root: Path, side: int, device: torch.device) -> dict:
    """The same columns, one image and one value after the other; the CXR's row is computed and not compared."""
    import lpips
    values, before = {}, torch.hub.get_dir()
    torch.hub.set_dir(root / "hub")
    for path in images.find(root / "ours").values():
        for pred_path in (root / "CXR" / path.name, path):
            cxr, gt, pred = (images.read(file).pixels for file in (root / "CXR" / path.name, root / "BS" / path.name, pred_path))
            row = {"BSR": scores.bsr(cxr, gt, pred), "BSR_two_sided": scores.bsr_two_sided(cxr, gt, pred),
                   "BSR_residual": scores.bsr_residual(cxr, gt, pred), "MSE": scores.mse(gt, pred), "PSNR": scores.psnr(gt, pred),
                   "SSIM": structural_similarity(gt.astype(float), pred.astype(float), data_range=1, gaussian_weights=True, sigma=1.5,
                                                 use_sample_covariance=False)}
            tensors = [torch.from_numpy(array)[None, None].to(device) for array in (gt, pred)]
            for key, normalize in (("LPIPS", False), ("LPIPS_normalized", True)):
                network = lpips.LPIPS(net="alex", verbose=False).to(device)
                row[key] = float(network(*tensors, normalize=normalize))
        values[path.stem] = row
    torch.hub.set_dir(before)
    return values


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
