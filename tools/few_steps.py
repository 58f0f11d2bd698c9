"""Few steps: teachers and their students on the demo's simulated patients, sampled in 1, 2, 4, 8 and 50 calls.

    python tools/few_steps.py              make few-steps; docs/few_steps.md reads the result
    python tools/few_steps.py --jobs 1     on one core
    python tools/few_steps.py --families "GL-LCM" --seeds 1    one teacher and its student, the first seed of sampling
    python tools/few_steps.py --folder runs/fresh --docs runs/fresh --first-patient 1700000 --training-seed 1
    python tools/few_steps.py --folder runs/try --docs runs/try --epochs 1 --student-epochs 1 --seeds 1    minutes

The teachers are noise estimators of BS-LDM, with unet.prior, walked by DDIM, and as the papers have it, walked by DDPM,
and of GL-LCM, walked by its consistency steps with guidance. ldm_train.py and lcm_train.py train them and distil the
students. What is measured is kept in <folder>/<family>/measured, so a stopped run goes on by the same command.

Writes <docs>/few_steps.png and <docs>/few_steps.json, {"full_steps": 50, "teacher": {"1": row, "2", "4", "8", "50"},
"student": {"1": row, "2", "4", "8"}, "untouched": row, "autoencoder": row (the true soft tissue, encoded and decoded),
"training_seconds": {"teacher", "student"}, ..., "others": {family: the same}}. It begins with the first family, BS-LDM.
A row has means over the test images and the seeds of the sampling noise:

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models import images, scores  # noqa: E402, found on the path that was just set
from models.data import datasets, lists  # noqa: E402
from models.evaluation import insertion  # noqa: E402
from models.pipelines import BSLDM, GLLCM, Pipeline  # noqa: E402
from models.runtime.files import replacing  # noqa: E402
from models.unet import ConditionalUNet  # noqa: E402
from models.vqgan import MLVQGAN  # noqa: E402
from tools.arguments import positive  # noqa: E402

SIZE = 96  # side of the images, pixels
FULL_STEPS = 50  # the teacher's full walk
CALLS = (1, 2, 4, 8)  # of both networks
BATCH = 20  # images that are sampled together
VQGAN = ROOT / "weights" / "vqgan.safetensors"
COMMON = (
    f"vqgan.weights={VQGAN}",
    f"data.image_size={SIZE}",
    "device=cpu",
    "precision=float32",  # of networks this small the fastest, also on CPUs that compute in bf16
    "augment.versions=1",
    "train.validate_every=1000000",  # neither validation nor sample pictures are looked at
    "train.sample_every=1000000",
    "train.save_every=60",
)


@dataclass(frozen=True)
class Family:
    """A teacher and its student.

    sampler: the teacher's, of a method that has several. epochs: of the teacher's training and of the student's.
    student_rate: the default was chosen on validation patients, see docs/few_steps.md. settings: of both.
    """

    method: type[Pipeline]
    sampler: str | None
    epochs: tuple[int, int]
    student_rate: float = 3e-5
    settings: tuple[str, ...] = ()

    def weights(self, folder: Path, network: str) -> Path:
        """network: teacher or student. folder: the family's."""
        section = self.method.section
        return folder / (section if network == "teacher" else f"{section}_student") / "weights.safetensors"


# GL-LCM trains on whole and masked pairs, so its epochs have twice as many steps: 40 of 8 pairs, BS-LDM's 20. The
# papers' form has to learn what a prior knows, so it takes longer, and its student has further to go.
FAMILIES = {
    "BS-LDM": Family(BSLDM, "ddim", epochs=(14, 4)),
    "GL-LCM": Family(GLLCM, None, epochs=(12, 3)),
    "BS-LDM, papers' form": Family(
        BSLDM,
        "ddpm",
        epochs=(24, 6),
        student_rate=3e-4,
        settings=("unet.prior=0", "unet.condition=scaled", "ldm.condition=scaled"),
    ),
}
BALLS_MM = (14.0, 18.0, 22.0, 26.0)  # diameters of the nodules that are put into each X-ray
BALL_HU = 30.0  # Hounsfield units of a solid nodule
FINE = 0.25  # cycles a pixel, above which the spectrum is compared
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
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seeds", type=positive, default=3, help="of the sampling noise")
    parser.add_argument("--first-patient", type=int, default=0, help="simulate.seed; 0: the demo's own patients")
    parser.add_argument("--training-seed", type=int, default=0, help="train.seed, of teachers and students")
    parser.add_argument("--epochs", type=positive, help="of the teachers' trainings, instead of each family's own")
    parser.add_argument("--student-epochs", type=positive, help="of the distillations")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="families that are worked on at once")
    parser.add_argument("--no-summary", action="store_true", help="train and measure, but write nothing into <docs>")
    options = parser.parse_args()
    torch.set_num_threads(1)

    # data
    if not (patients_folder(options) / "lists" / "data_testset.txt").is_file():
        simulated = ("simulate.count=200", f"simulate.seed={options.first_patient}")
        run(ROOT / "dataSegmentation.py", "--profile", "demo", *data_settings(options), *simulated)

    # each family is the work of one process, on one core
    if options.no_summary:
        for name in options.families:
            work(name, options)
        return
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        arguments = [(*sys.argv[1:], "--families", name, "--no-summary") for name in options.families]
        list(pool.map(lambda of_one: run(__file__, *of_one), arguments))  # the list raises what a family's run raised

    # what was measured
    patients = load_patients(patients_folder(options))
    lpips = scores.Lpips()
    found = [summary(name, options, patients, lpips) for name in options.families]
    result = {**found[0], "others": dict(zip(options.families[1:], found[1:]))}
    options.docs.mkdir(parents=True, exist_ok=True)
    with replacing(options.docs / "few_steps.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    draw(dict(zip(options.families, found)), options.docs / "few_steps.png")
    for name, of_family in zip(options.families, found):
        print(f"{name}\n\n{table(of_family)}\n", flush=True)


def work(name: str, options: argparse.Namespace) -> None:
    """Train a family's teacher and student and sample them, as far as that is not done."""
    family = FAMILIES[name]
    folder = options.folder / name
    train(family, folder, options)
    patients = load_patients(patients_folder(options))
    lpips = scores.Lpips()
    for seed in range(options.seeds):
        for network, calls in rows():
            measure(family, network, calls, seed, patients, lpips, folder)


def rows() -> list[tuple[str, int]]:
    """(network, calls) of all rows."""
    return [("teacher", calls) for calls in (*CALLS, FULL_STEPS)] + [("student", calls) for calls in CALLS]


def patients_folder(options: argparse.Namespace) -> Path:
    """Where data/ and lists/ are: the demo's, or those of the patients that --first-patient asks for."""
    if options.first_patient == 0:
        return Path("runs/demo")
    return options.folder / f"patients_{options.first_patient}"


def data_settings(options: argparse.Namespace) -> tuple[str, str]:
    folder = patients_folder(options)
    return f"data.root={folder / 'data'}", f"data.lists={folder / 'lists'}"


# --- Trainings --------------------------------------------------------------------------------------------------------


def train(family: Family, folder: Path, options: argparse.Namespace) -> None:
    """Train teacher and student, as far as they are not, and write <folder>/seconds.json, {network: CPU seconds}."""
    section = family.method.section
    script = ROOT / f"{section}_train.py"
    settings = (
        "--profile",
        "demo",
        f"runs={folder}",
        f"train.seed={options.training_seed}",
        *data_settings(options),
        *COMMON,
        *family.settings,
        f"{section}.steps={FULL_STEPS}",
    )
    epochs = options.epochs or family.epochs[0]
    teacher = (
        f"{section}.epochs={epochs}",
        f"{section}.milestones=[{epochs * 4 // 5}]",
        f"{section}.gamma=0.2",
        f"{section}.batch_size=8",
        f"{section}.learning_rate=1e-3",
        f"{section}.average=0.99",
        f"{section}.start=null",
    )
    epochs = options.student_epochs or family.epochs[1]
    student = (
        f"{section}.teacher={family.weights(folder, 'teacher')}",
        f"distill.epochs={epochs}",
        f"distill.milestones=[{epochs * 4 // 5}]",
        "distill.gamma=0.2",
        "distill.batch_size=4",
        f"distill.learning_rate={family.student_rate}",
    )
    record = folder / "seconds.json"
    seconds = json.loads(record.read_text()) if record.is_file() else {}
    for network, changes in (("teacher", teacher), ("student", student)):
        if network in seconds and family.weights(folder, network).is_file():
            continue
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        try:
            run(script, *settings, *changes)
        finally:
            # also of a run that was stopped, whose state the next one goes on from
            spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            seconds[network] = seconds.get(network, 0.0) + spent
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(seconds))


def run(script: str | Path, *arguments: str) -> None:
    """Run a script of this project, and stop if it fails."""
    command = [sys.executable, str(script), *arguments]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise SystemExit(f"{script} ended with status {ended.returncode}: {' '.join(command)}")


# --- What is measured -------------------------------------------------------------------------------------------------


def load_patients(folder: Path) -> list["Patient"]:
    """The pairs of the test list in a folder of data/ and lists/."""
    names = (folder / "lists" / "data_testset.txt").read_text().split()
    root = folder / "data"
    vqgan = MLVQGAN.load(VQGAN)
    patients = []
    for name in names:
        pair = (root / "CXR" / name, root / "BS" / name, root / "Mask" / name)
        patients.append(Patient(Path(name).stem, pair, vqgan))
    return patients


class Patient:
    """A test image at the networks' size, float (S, S) in [0, 1], with its lungs and with nodules at known places."""

    def __init__(self, name: str, pair: lists.Pair, vqgan: MLVQGAN):
        cxr_path, _, mask_path = pair
        signed = datasets.load(pair, "soft", SIZE)  # (1, S, S)
        self.name = name
        self.soft = images.to_unit(signed)[0].numpy()
        self.cxr = images.to_unit(datasets.load(pair, "cxr", SIZE))[0].numpy()
        with torch.inference_mode():
            self.decoded = images.to_unit(vqgan.decode(vqgan.latent(signed[None])))[0, 0].clamp(0, 1).numpy()
        self.mask = images.mask_to_network(images.read_mask_of(mask_path, images.read(cxr_path).pixels.shape), SIZE)

        # what each nodule adds alone, and the X-ray with all of them
        nodules = [ball(diameter) for diameter in BALLS_MM]
        placed = insertion.places(self.mask, self.cxr - self.soft, nodules, f"few steps/{name}")
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


def measure(
    family: Family, network: str, calls: int, seed: int, patients: list[Patient], lpips: scores.Lpips, folder: Path
) -> None:
    """Sample all patients with and without nodules; keep results and scores in <folder>/measured."""
    path = kept(folder, network, calls, seed)
    if path.is_file():
        return
    pipeline = family.method.load(VQGAN, family.weights(folder, network), seed=seed, residual=False, steps=calls)
    if network == "teacher" and family.sampler:
        pipeline.options["sampler"] = family.sampler  # a student's header says its own
    start = time.process_time()
    results = sample(pipeline, patients, [patient.cxr for patient in patients])
    seconds = (time.process_time() - start) / len(patients)
    with_nodules = sample(pipeline, patients, [patient.with_nodules for patient in patients])
    values = score(patients, results, with_nodules, lpips)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, results=results, seconds=seconds, **values)


def kept(folder: Path, network: str, calls: int, seed: int) -> Path:
    return folder / "measured" / f"{network}_{calls}_{seed}.npz"


def sample(pipeline: Pipeline, patients: list[Patient], cxrs: list[np.ndarray]) -> np.ndarray:
    """Results (N, S, S) in [0, 1]; the noise is that of the patient's name, with nodules and without."""
    found = []
    for start in range(0, len(patients), BATCH):
        of_batch = patients[start : start + BATCH]
        names = [patient.name for patient in of_batch]
        masks = [patient.mask for patient in of_batch]
        cxr = torch.from_numpy(np.stack(cxrs[start : start + BATCH])).float()[:, None]  # (B, 1, S, S)
        soft = pipeline(images.to_signed(cxr), names, masks)  # (B, 1, S, S)
        found.append(images.to_unit(soft)[:, 0].clamp(0, 1).numpy())
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


def summary(name: str, options: argparse.Namespace, patients: list[Patient], lpips: scores.Lpips) -> dict:
    """What few_steps.json holds of a family."""
    family = FAMILIES[name]
    folder = options.folder / name
    steps = {}
    for network in ("teacher", "student"):
        steps[network] = ConditionalUNet.load(family.weights(folder, network)).notes["step"]
    result: dict = {
        "full_steps": FULL_STEPS,
        "method": name,
        "images": len(patients),
        "nodules": sum(len(patient.added) for patient in patients),
        "seeds": options.seeds,
        "training_seconds": json.loads((folder / "seconds.json").read_text()),
        "training_steps": steps,
        "teacher": {},
        "student": {},
    }
    for network, calls in rows():
        files = [np.load(kept(folder, network, calls, seed)) for seed in range(options.seeds)]
        result[network][str(calls)] = row(files, patients)
    for shown, attribute in (("untouched", "cxr"), ("autoencoder", "decoded")):
        values = score(patients, np.stack([getattr(patient, attribute) for patient in patients]), None, lpips)
        result[shown] = {key: float(column.mean()) for key, column in values.items()}
    return result


def row(files: list, patients: list[Patient]) -> dict:
    """The means of what `measure` kept, a file for each seed."""
    by_seed = {}
    for name in SCORES:
        if name != "spread":
            by_seed[name] = [float(file[name].mean()) for file in files]
    means = {name: float(np.mean(column)) for name, column in by_seed.items()}
    # pairs of seeds: samples of the posterior differ from each other as much as from the truth
    if len(files) > 1:
        truth = np.stack([patient.soft for patient in patients])
        error = np.mean([np.square(file["results"] - truth).mean() for file in files])
        by_seed["spread"] = []
        for one, other in combinations(files, 2):
            apart = np.square(one["results"] - other["results"]).mean()
            by_seed["spread"].append(float(np.sqrt(apart / error)))
        means["spread"] = float(np.mean(by_seed["spread"]))
    means["seconds"] = float(np.mean([file["seconds"] for file in files]))
    return {**means, "by_seed": by_seed}


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


def draw(families: dict[str, dict], path: Path) -> None:
    """Quality against calls, a line of panels for each family; bands reach from the worst to the best seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shape = (len(families), len(SCORES))
    figure, axes = pyplot.subplots(*shape, figsize=(18, 2.8 * shape[0]), layout="constrained", squeeze=False)
    for line, (family, result) in zip(axes, families.items()):
        for axis, name in zip(line, SCORES):
            draw_panel(axis, result, name)
        line[0].set_ylabel(family)
    for axis, name in zip(axes[0], SCORES):
        axis.set_title(TITLES[name])
    for axis in axes[-1]:
        axis.set_xlabel("calls of the noise estimator")
    axes.flat[0].legend(fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=75, format="png")
    pyplot.close(figure)


def draw_panel(axis, result: dict, name: str) -> None:
    """One score of one family; nothing where there is none, as of the spread with one seed."""
    if name not in result["teacher"]["1"]:
        axis.set_axis_off()
        return
    for network, colour in (("teacher", "tab:blue"), ("student", "tab:orange")):
        of_network = {calls: row for calls, row in result[network].items() if name in row}
        calls = [int(number) for number in of_network]
        axis.plot(calls, [row[name] for row in of_network.values()], "o-", color=colour, label=network)
        least = [min(row["by_seed"][name]) for row in of_network.values()]
        most = [max(row["by_seed"][name]) for row in of_network.values()]
        axis.fill_between(calls, least, most, color=colour, alpha=0.25, linewidth=0)
    for value, style, label in (
        (result["untouched"].get(name), "--", "untouched CXR"),
        (result["teacher"]["1"].get(name), ":", "teacher, one call"),
        (result["autoencoder"].get(name), "-.", "autoencoder alone"),
    ):
        if value is not None:
            axis.axhline(value, color="grey", linestyle=style, linewidth=1, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks([*CALLS, FULL_STEPS], [str(calls) for calls in (*CALLS, FULL_STEPS)])
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
