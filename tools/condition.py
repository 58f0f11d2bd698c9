"""Which scale of the condition is right? Both methods in the three pairings of training and sampling, several seeds.

    python tools/condition.py                     half an hour on one core; docs/condition.md has the table
    python tools/condition.py --seeds 1 --epochs 2 --count 20          to see it run, in minutes

The CXR's latent is seen beside the noisy one scaled by sqrt(alpha_bar_t) or plain (models/schedulers.scale_condition).
Trained scaled and sampled plain is the published pairing. Everything else is alike: patients, the shipped autoencoder,
network, epochs, batches, order of the data and noise of a seed; and what is alike is the papers' setting but for its
size. The last row, with unet.prior, is what the profiles demo and small have beside plain in both.
The scripts at the root do the work, so a stopped run goes on by the same command; two may run beside each other, of one
set of patients each (--patients), and the plain command then makes the tables of both.

Two sets of patients: the demo's, drawn, and others, from rays through a chest CT.
Writes <folder>/condition.json (all results) and <folder>/condition.md (the tables).
"""

import argparse
import io
import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models import images, scores  # noqa: E402, found on the path that was just set
from tools.arguments import positive  # noqa: E402

SIZE = 64  # side of the images, pixels
# A network of the papers' kind that trains in a minute, in the latents of the shipped autoencoder.
COMMON = (
    f"vqgan.weights={ROOT / 'weights' / 'vqgan.safetensors'}",
    f"data.image_size={SIZE}",
    "device=cpu",
)
TRAINING = (
    "unet.width=32",
    "unet.multipliers=[1,1]",
    "unet.blocks=1",
    "unet.heads=4",
    "unet.attention=[2]",
    "train.validate_every=1000000",  # neither validation nor sample pictures are looked at
    "train.sample_every=1000000",
)
# what simulates the patients -> whose they are; the demo's, with the demo's lists: make demo draws them larger
PATIENTS = {"phantom": "the demo's patients, drawn", "ct": "patients from a chest CT"}
# condition in training, in sampling, unet.prior; the last for comparison, see `measure`
PAIRINGS = (("scaled", "plain", 0.0), ("scaled", "scaled", 0.0), ("plain", "plain", 0.0), ("plain", "plain", 0.3))
TITLES = {
    ("scaled", "plain", 0.0): "scaled, then plain (published)",
    ("scaled", "scaled", 0.0): "scaled in both",
    ("plain", "plain", 0.0): "plain in both",
    ("plain", "plain", 0.3): "plain in both, and a prior",
}
# section of the settings: (name, script that trains, script that samples, what is sampled)
METHODS = {
    "ldm": ("BS-LDM", "ldm_train.py", "ldm_eval.py", ("ldm.steps=50",)),
    "lcm": ("GL-LCM", "lcm_train.py", "batch_lcm_eval.py", ("lcm.steps=25", "lcm.alpha=1.25")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/condition"))
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument(
        "--epochs", type=positive, default=8, help="of BS-LDM; GL-LCM, with two pairs a patient, has half"
    )
    parser.add_argument("--patients", nargs="*", choices=PATIENTS, default=list(PATIENTS), help="one set only, or both")
    parser.add_argument("--count", type=positive, default=200, help="patients of a set, of whom a tenth are tested on")
    parser.add_argument("--offset", type=float, default=0.1, help="coefficient of the offset noise")
    options = parser.parse_args()

    # data: two sets, the same for all
    results: list[dict] = []
    for source in options.patients:
        data = data_of(source, options)
        run("dataSegmentation.py", *data, f"simulate.source={source}", f"simulate.count={options.count}")
        names = (options.folder / source / "lists" / "data_testset.txt").read_text().split()
        row = score(options.folder / source / "data" / "CXR", options.folder / source / "data", names)
        results.append({"patients": source, "method": "untouched CXR", **row})

    # Both files are written anew after every result, so that a run may be stopped with what it has.
    for seed in range(options.seeds):
        for source in options.patients:
            for section in METHODS:
                for result in measure(section, source, seed, options):
                    results.append(result)
                    text = json.dumps({"options": {**vars(options), "folder": None}, "results": results}, indent=1)
                    (options.folder / "condition.json").write_text(text + "\n")
                    (options.folder / "condition.md").write_text(tables(results))
    print(tables(results))


def data_of(source: str, options: argparse.Namespace) -> tuple[str, ...]:
    """The settings that name one set of patients."""
    folder = options.folder / source
    return f"data.root={folder / 'data'}", f"data.lists={folder / 'lists'}", f"data.image_size={SIZE}"


def measure(section: str, source: str, seed: int, options: argparse.Namespace) -> Iterator[dict]:
    """The scores of one method's pairings on one set of patients with one seed: a training for each but the first two,
    which share one, and an evaluation each. The prior, which is no pairing, is tried where the demo uses it first."""
    title, training, evaluation, sampling = METHODS[section]
    epochs = options.epochs if section == "ldm" else options.epochs // 2
    folder = options.folder / source
    names = (folder / "lists" / "data_testset.txt").read_text().split()
    for trained, sampled, prior in PAIRINGS:
        if prior and (section, source) != ("ldm", "phantom"):
            continue
        runs = folder / f"{trained}_{prior:g}_{options.offset:g}_{seed}"
        case = {"seed": seed, "trained": trained, "sampled": sampled, "prior": prior}

        # what an earlier run of this tool has scored is not done again
        done = runs / f"{section}_{sampled}_{epochs}.json"
        if done.is_file():
            yield {"patients": source, "method": title, **case, **json.loads(done.read_text())}
            continue

        # the same training serves both ways of sampling: its second start finds nothing to do
        share_latents(runs, folder / "latents")
        settings = (*COMMON, *data_of(source, options), f"runs={runs}")
        course = (
            *TRAINING,
            f"unet.condition={trained}",
            f"unet.prior={prior:g}",
            f"train.seed={seed}",
            f"{section}.epochs={epochs}",
            f"{section}.milestones=[{epochs * 3 // 4}]",
            f"{section}.learning_rate=1e-3",
            f"{section}.batch_size=8",
            f"{section}.average=0.99",
            f"{section}.offset_noise={options.offset}",
        )
        run(training, *settings, *course)
        output = runs / f"{section}_{sampled}"
        condition = f"{section}.condition={sampled}"
        seeded = ("eval.batch_size=20", f"eval.seed={seed}", f"eval.output={output}", "eval.panels=false")
        run(evaluation, *settings, *sampling, condition, *seeded)
        row = score(output, folder / "data", names)
        done.write_text(json.dumps(row) + "\n")
        yield {"patients": source, "method": title, **case, **row}


def share_latents(runs: Path, shared: Path) -> None:
    """Let the trainings of `runs` keep their latents in the folder `shared`: all encode the same images."""
    link = runs / "latents"
    if not link.is_symlink():
        shared.mkdir(parents=True, exist_ok=True)
        runs.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shared.resolve(), target_is_directory=True)


def run(script: str, *settings: str) -> None:
    """Run a script of the root, and stop if it fails or is stopped.

    In this process: there are a hundred such runs, and each would import PyTorch anew.
    """
    sys.argv = [script, *settings]
    try:
        with redirect_stdout(io.StringIO()):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise SystemExit(f"{script} ended with status {ended.code}: {' '.join(sys.argv)}") from None


def score(output: Path, data: Path, names: list[str]) -> dict[str, float]:
    """Means over the named images of a folder: PSNR (dB), two-sided BSR (%), how far the image's mean is off (grey
    levels of 1), and the PSNR that is left when each image's mean is put right."""
    values: dict[str, list[float]] = {"PSNR": [], "BSR_two_sided": [], "mean_off": [], "PSNR_mean_right": []}
    for name in names:
        prediction = images.read(output / name).pixels
        target = images.read(data / "BS" / name).pixels
        cxr = images.read(data / "CXR" / name).pixels
        off = float(np.mean(prediction - target))
        values["PSNR"].append(scores.psnr(target, prediction))
        values["BSR_two_sided"].append(100 * scores.bsr_two_sided(cxr, target, prediction))
        values["mean_off"].append(abs(off))
        values["PSNR_mean_right"].append(scores.psnr(target, prediction - off))
    return {name: mean(column) for name, column in values.items()}


def tables(results: list[dict]) -> str:
    """Markdown: for each set of patients a table with a row for each method and pairing, mean ± standard deviation over
    the seeds."""
    parts = []
    for source, title in PATIENTS.items():
        rows = [row for row in results if row["patients"] == source]
        if not rows:
            continue
        parts.append(f"{title[0].upper()}{title[1:]}:\n\n{table(rows)}")
    return "\n".join(parts)


def table(results: list[dict]) -> str:
    """Markdown: one table, of one set of patients."""
    lines = [
        "| method | the CXR's latent | PSNR (dB) | PSNR, mean put right (dB) | image's mean off | two-sided BSR (%) |",
        "|---|---|---|---|---|---|",
    ]
    cases = [("untouched CXR", None)] + [(title, case) for title, *_ in METHODS.values() for case in PAIRINGS]
    for title, case in cases:
        rows = [row for row in results if row["method"] == title]
        if case is not None:
            rows = [row for row in rows if (row["trained"], row["sampled"], row["prior"]) == case]
        if not rows:
            continue
        cells = [title, TITLES[case] if case else ""]
        for key, digits in (("PSNR", 2), ("PSNR_mean_right", 2), ("mean_off", 3), ("BSR_two_sided", 0)):
            column = [row[key] for row in rows]
            spread = f" ± {stdev(column):.{digits}f}" if len(column) > 1 else ""
            cells.append(f"{mean(column):.{digits}f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
