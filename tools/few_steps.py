"""Few steps: a teacher and its student on the demo's simulated patients, sampled in 1, 2, 4, 8 and 50 calls.

    python tools/few_steps.py              make few-steps; ten minutes of CPU; docs/few_steps.md reads the result
    python tools/few_steps.py --seeds 1    the first of the three seeds of sampling alone
    python tools/few_steps.py --folder runs/try --docs runs/try --epochs 1 --student-epochs 1 --seeds 1    minutes

The teacher is a BS-LDM noise estimator with unet.prior, walked by DDIM; the student is distilled from it by
ldm_train.py ldm.teacher=... . Both scripts do the work, and what is measured is kept in <folder>/measured, so a stopped
run goes on by the same command.

Writes <docs>/few_steps.png and <docs>/few_steps.json, {"full_steps": 50, "teacher": {"1": row, "2", "4", "8", "50"},
"student": {"1": row, "2", "4", "8"}, "untouched": row, "autoencoder": row (the true soft tissue, encoded and decoded),
"training_seconds": {"teacher", "student"}, ...}, where a row has means over the test images and the seeds:

    PSNR (dB), LPIPS, two_sided (BSR, 0 to 1)     as models/scores.py has them
    spectrum       power above 0.25 cycles a pixel over the truth's; 1 is as sharp as the truth
    spread         RMS difference of two seeds' results over the RMS error; 1 for posterior samples, 0 for their mean
    nodules_kept   share of the contrast of inserted nodules that is left, see models/evaluation/insertion.py
    seconds        CPU time per image on one thread, encoding and decoding included
    by_seed        {score: a mean for each seed; of spread, for each pair of seeds}
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models import images, scores  # noqa: E402, found on the path that was just set
from models.data import datasets, lists  # noqa: E402
from models.evaluation import insertion  # noqa: E402
from models.pipelines import BSLDM  # noqa: E402
from models.runtime.files import replacing  # noqa: E402
from models.unet import ConditionalUNet  # noqa: E402

SIZE = 96  # side of the images, pixels
FULL_STEPS = 50  # the teacher's full walk
CALLS = (1, 2, 4, 8)  # of both networks
BATCH = 10  # images that are sampled together
DATA = ("data.root=runs/demo/data", "data.lists=runs/demo/lists")
VQGAN = ROOT / "weights" / "vqgan.safetensors"
COMMON = (
    f"vqgan.weights={VQGAN}",
    f"data.image_size={SIZE}",
    "device=cpu",
    "augment.versions=1",
    "train.validate_every=1000000",  # neither validation nor sample pictures are looked at
    "train.sample_every=1000000",
    "train.save_every=60",
    f"ldm.steps={FULL_STEPS}",
)
BALLS_MM = (14.0, 18.0, 22.0, 26.0)  # diameters of the nodules that are put into each X-ray
BALL_HU = 30.0  # Hounsfield units of a solid nodule
FINE = 0.25  # cycles a pixel, above which the spectrum is compared
SECTIONS = {"teacher": "ldm", "student": "ldm_student"}  # network -> its folder
SCORES = ("PSNR", "LPIPS", "two_sided", "spectrum", "spread", "nodules_kept")
TITLES = {
    "PSNR": "PSNR (dB)",
    "LPIPS": "LPIPS (lower is better)",
    "two_sided": "two-sided BSR",
    "spectrum": "fine power, of the truth's",
    "spread": "spread over seeds, of the error",
    "nodules_kept": "contrast of nodules kept",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", type=int, default=3, help="of the sampling noise")
    parser.add_argument("--epochs", type=int, default=14, help="of the teacher's training, 20 steps of 8 pairs each")
    parser.add_argument("--student-epochs", type=int, default=4, help="of the distillation, 40 steps of 4 pairs each")
    options = parser.parse_args()
    torch.set_num_threads(1)

    # data and networks
    if not Path("runs/demo/lists/data_testset.txt").is_file():
        run("dataSegmentation.py", "--profile", "demo", "simulate.count=200")
    seconds = train(options)

    # measured seed by seed, so that a run that is stopped has all rows of the seeds before
    vqgan = BSLDM.load(VQGAN, options.folder / "ldm" / "weights.safetensors").vqgan
    patients = [Patient(name, pair, vqgan) for name, pair in test_pairs().items()]
    lpips = scores.Lpips()
    for seed in range(options.seeds):
        for network, calls in rows():
            measure(network, calls, seed, patients, lpips, options.folder)
        result = summary(options, patients, lpips, seed + 1, seconds)
        options.docs.mkdir(parents=True, exist_ok=True)
        with replacing(options.docs / "few_steps.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        draw(result, options.docs / "few_steps.png")
    print(table(result))


def rows() -> list[tuple[str, int]]:
    """(network, calls) of all rows."""
    return [("teacher", calls) for calls in (*CALLS, FULL_STEPS)] + [("student", calls) for calls in CALLS]


# --- Trainings --------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> dict[str, float]:
    """Train teacher and student, as far as they are not -> {network: CPU seconds}."""
    settings = ("--profile", "demo", f"runs={options.folder}", *DATA, *COMMON)
    epochs = options.epochs
    teacher = (f"ldm.epochs={epochs}", f"ldm.milestones=[{epochs * 4 // 5}]", "ldm.gamma=0.2", "ldm.batch_size=8")
    epochs = options.student_epochs
    student = (
        f"ldm.teacher={options.folder / 'ldm' / 'weights.safetensors'}",
        f"distill.epochs={epochs}",
        f"distill.milestones=[{epochs * 4 // 5}]",
        "distill.gamma=0.2",
        "distill.batch_size=4",
        "distill.learning_rate=3e-4",
    )
    record = options.folder / "seconds.json"
    seconds = json.loads(record.read_text()) if record.is_file() else {}
    for network, changes in (("teacher", teacher), ("student", student)):
        finished = options.folder / SECTIONS[network] / "weights.safetensors"
        if network in seconds and finished.is_file():
            continue
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        try:
            run("ldm_train.py", *settings, *changes)
        finally:
            # also of a run that was stopped, whose state the next one goes on from
            spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            seconds[network] = seconds.get(network, 0.0) + spent
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(seconds))
    return seconds


def run(script: str, *settings: str) -> None:
    """Run a script of the root, and stop if it fails."""
    command = [sys.executable, str(ROOT / script), *settings]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise SystemExit(f"{script} ended with status {ended.returncode}: {' '.join(command)}")


# --- What is measured -------------------------------------------------------------------------------------------------


def test_pairs() -> dict[str, lists.Pair]:
    """The pairs of the demo's test list."""
    names = Path("runs/demo/lists/data_testset.txt").read_text().split()
    root = Path("runs/demo/data")
    pairs = {}
    for name in names:
        pairs[Path(name).stem] = (root / "CXR" / name, root / "BS" / name, root / "Mask" / name)
    return pairs


class Patient:
    """A test image at the networks' size, float (S, S) in [0, 1], with nodules at known places."""

    def __init__(self, name: str, pair: lists.Pair, vqgan):
        cxr_path, _, mask_path = pair
        signed = datasets.load(pair, "soft", SIZE)  # (1, S, S)
        self.name = name
        self.soft = images.to_unit(signed)[0].numpy()
        self.cxr = images.to_unit(datasets.load(pair, "cxr", SIZE))[0].numpy()
        with torch.inference_mode():
            self.decoded = images.to_unit(vqgan.decode(vqgan.latent(signed[None])))[0, 0].clamp(0, 1).numpy()
        mask = images.mask_to_network(images.read_mask_of(mask_path, images.read(cxr_path).pixels.shape), SIZE)

        # what each nodule adds alone, and the X-ray with all of them
        nodules = [ball(diameter) for diameter in BALLS_MM]
        placed = insertion.places(mask, self.cxr - self.soft, nodules, f"few steps/{name}")
        waters = [insertion.water_map(nodule, x, y, SIZE) for nodule, x, y, _ in placed]
        self.added = [insertion.insert(self.cxr, water) - self.cxr for water in waters]
        self.with_nodules = insertion.insert(self.cxr, np.sum(waters, axis=0))


def ball(diameter: float) -> insertion.Nodule:
    """A solid ball in the lung, diameter in mm: rays through it cross 2 sqrt(r^2 - d^2) of it."""
    radius = diameter / 2
    offset = np.arange(-np.ceil(radius), np.ceil(radius) + 1)  # mm
    chord = 2 * np.sqrt(np.clip(radius**2 - offset[:, None] ** 2 - offset**2, 0, None))
    water = chord / 10 * (BALL_HU - insertion.LUNG_HU) / 1000  # cm
    return insertion.Nodule(f"{diameter:g} mm", water.astype(np.float32))


def measure(network: str, calls: int, seed: int, patients: list[Patient], lpips: scores.Lpips, folder: Path) -> None:
    """Sample all patients with and without nodules; keep results and scores in <folder>/measured."""
    path = kept(folder, network, calls, seed)
    if path.is_file():
        return
    sampler = {"sampler": "ddim" if network == "teacher" else "lcm", "steps": calls}
    weights = folder / SECTIONS[network] / "weights.safetensors"
    pipeline = BSLDM.load(VQGAN, weights, seed=seed, residual=False, strength=1.0, clip=4.0, clip_rate=0.0, **sampler)
    start = time.process_time()
    results = sample(pipeline, patients, [patient.cxr for patient in patients])
    seconds = (time.process_time() - start) / len(patients)
    with_nodules = sample(pipeline, patients, [patient.with_nodules for patient in patients])
    values = score(patients, results, with_nodules, lpips)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, results=results, seconds=seconds, **values)


def trained(network: str, folder: Path) -> ConditionalUNet:
    return ConditionalUNet.load(folder / SECTIONS[network] / "weights.safetensors")


def kept(folder: Path, network: str, calls: int, seed: int) -> Path:
    return folder / "measured" / f"{network}_{calls}_{seed}.npz"


def sample(pipeline: BSLDM, patients: list[Patient], cxrs: list[np.ndarray]) -> np.ndarray:
    """Results (N, S, S) in [0, 1]; the noise is that of the patient's name, with nodules and without."""
    found = []
    for start in range(0, len(patients), BATCH):
        names = [patient.name for patient in patients[start : start + BATCH]]
        cxr = torch.from_numpy(np.stack(cxrs[start : start + BATCH])).float()[:, None]  # (B, 1, S, S)
        found.append(images.to_unit(pipeline(images.to_signed(cxr), names))[:, 0].clamp(0, 1).numpy())
    return np.concatenate(found)


def score(
    patients: list[Patient], results: np.ndarray, with_nodules: np.ndarray | None, lpips: scores.Lpips
) -> dict[str, np.ndarray]:
    """{score: a value per patient, of nodules_kept one per nodule}."""
    values: dict[str, list[float]] = {"PSNR": [], "LPIPS": [], "two_sided": [], "spectrum": [], "nodules_kept": []}
    for number, patient in enumerate(patients):
        result = results[number]
        values["PSNR"].append(scores.psnr(patient.soft, result))
        values["LPIPS"].append(lpips(patient.soft, result))
        values["two_sided"].append(scores.bsr_two_sided(patient.cxr, patient.soft, result))
        values["spectrum"].append(fine_power(result) / fine_power(patient.soft))
        if with_nodules is not None:
            change = with_nodules[number] - result
            values["nodules_kept"] += [insertion.slope(change, added) for added in patient.added]
    return {name: np.array(column) for name, column in values.items() if column}


def fine_power(image: np.ndarray) -> float:
    """The power of an image (S, S) above FINE cycles a pixel, under a Hann window."""
    window = np.hanning(len(image))
    spectrum = np.fft.fft2((image - image.mean()) * window[:, None] * window)
    frequency = np.fft.fftfreq(len(image))
    radius = np.hypot(frequency[:, None], frequency)
    return float((np.abs(spectrum[radius > FINE]) ** 2).sum())


# --- Tables and the picture -------------------------------------------------------------------------------------------


def summary(
    options: argparse.Namespace, patients: list[Patient], lpips: scores.Lpips, seeds: int, seconds: dict[str, float]
) -> dict:
    """What few_steps.json holds, of the seeds that are measured."""
    result: dict = {
        "full_steps": FULL_STEPS,
        "method": "BS-LDM, unet.prior=0.3; teacher: DDIM, student: consistency sampler",
        "images": len(patients),
        "nodules": sum(len(patient.added) for patient in patients),
        "seeds": seeds,
        "training_seconds": seconds,
        "training_steps": {network: trained(network, options.folder).notes["step"] for network in SECTIONS},
        "teacher": {},
        "student": {},
    }
    for network, calls in rows():
        paths = [kept(options.folder, network, calls, seed) for seed in range(seeds)]
        files = [np.load(path) for path in paths if path.is_file()]
        by_seed = {}
        for name in SCORES:
            if name != "spread":
                by_seed[name] = [float(file[name].mean()) for file in files]
        row = {name: float(np.mean(column)) for name, column in by_seed.items()}
        # pairs of seeds: samples of the posterior differ from each other as much as from the truth
        if len(files) > 1:
            truth = np.stack([patient.soft for patient in patients])
            error = np.mean([np.square(file["results"] - truth).mean() for file in files])
            apart = []
            for one, other in combinations(files, 2):
                apart.append(float(np.sqrt(np.square(one["results"] - other["results"]).mean() / error)))
            row["spread"] = float(np.mean(apart))
            by_seed["spread"] = apart
        row["seconds"] = float(np.mean([file["seconds"] for file in files]))
        result[network][str(calls)] = {**row, "by_seed": by_seed}
    for name, shown in (("untouched", "cxr"), ("autoencoder", "decoded")):
        values = score(patients, np.stack([getattr(patient, shown) for patient in patients]), None, lpips)
        result[name] = {key: float(column.mean()) for key, column in values.items()}
    return result


def table(result: dict) -> str:
    """Markdown: a row for each network and number of calls."""
    headings = [*SCORES, "seconds"]
    lines = [f"| network | calls | {' | '.join(headings)} |", "|---" * (len(headings) + 2) + "|"]
    for network in ("untouched", "autoencoder", "teacher", "student"):
        of_network = result[network] if network in ("teacher", "student") else {"": result[network]}
        for calls, row in of_network.items():
            cells = [f"{row[name]:.3f}" if name in row else "" for name in headings]
            lines.append(f"| {network} | {calls} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: dict, path: Path) -> None:
    """Quality against calls; bands reach from the worst to the best seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for axis, name in zip(axes.flat, SCORES):
        for network, colour in (("teacher", "tab:blue"), ("student", "tab:orange")):
            of_network = {calls: row for calls, row in result[network].items() if name in row}
            calls = [int(number) for number in of_network]
            if not calls:
                continue
            axis.plot(calls, [row[name] for row in of_network.values()], "o-", color=colour, label=network)
            least = [min(row["by_seed"][name]) for row in of_network.values()]
            most = [max(row["by_seed"][name]) for row in of_network.values()]
            axis.fill_between(calls, least, most, color=colour, alpha=0.25, linewidth=0)
        regression = result["teacher"]["1"].get(name)
        for value, style, label in (
            (result["untouched"].get(name), "--", "untouched CXR"),
            (regression, ":", "regression, one call"),
            (result["autoencoder"].get(name), "-.", "autoencoder alone"),
        ):
            if value is not None:
                axis.axhline(value, color="grey", linestyle=style, linewidth=1, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks([*CALLS, FULL_STEPS], [str(calls) for calls in (*CALLS, FULL_STEPS)])
        axis.set_xlabel("calls of the noise estimator")
        axis.set_title(TITLES[name])
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
