"""Which scale of the condition is right? Both methods in the three pairings of training and sampling, several seeds.

    python tools/condition.py                     half an hour on one core; docs/condition.md reads the table
    python tools/condition.py --seeds 1 --epochs 2 --count 40          to see it run, in minutes

The CXR's latent is seen beside the noisy one scaled by sqrt(alpha_bar_t) or plain (models/schedulers.scale_condition).
Trained scaled and sampled plain is the published pairing. Everything else is alike: simulated patients, the shipped
autoencoder, network, epochs, batches, order of the data and noise of a seed; and what is alike is the papers' setting
but for its size. The scripts at the root do the work, so a stopped run goes on by the same command.

Writes <folder>/condition.json (all results) and <folder>/condition.md (the table).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models import images, scores  # noqa: E402, found on the path that was just set

SIZE = 64  # side of the images, pixels
# A network of the papers' kind that trains in a minute, in the latents of the shipped autoencoder.
COMMON = (
    f"vqgan.weights={ROOT / 'weights' / 'vqgan.safetensors'}",
    f"data.image_size={SIZE}",
    "device=cpu",
)
TRAINING = (
    "unet.width=32",
    "unet.multipliers=[1,1,2]",
    "unet.blocks=1",
    "unet.heads=4",
    "unet.attention=[4]",
    "train.validate_every=1000000",  # neither validation nor sample pictures are looked at
    "train.sample_every=1000000",
)
PAIRINGS = (("scaled", "plain"), ("scaled", "scaled"), ("plain", "plain"))  # condition in training, in sampling
TITLES = {
    ("scaled", "plain"): "scaled, then plain (published)",
    ("scaled", "scaled"): "scaled in both",
    ("plain", "plain"): "plain in both",
}
# section of the settings: (name, script that trains, script that samples, what is sampled)
METHODS = {
    "ldm": ("BS-LDM", "ldm_train.py", "ldm_eval.py", ("ldm.steps=50",)),
    "lcm": ("GL-LCM", "lcm_train.py", "batch_lcm_eval.py", ("lcm.steps=25", "lcm.alpha=1.25")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/condition"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30, help="of BS-LDM; GL-LCM, with two pairs a patient, has half")
    parser.add_argument("--count", type=int, default=260, help="simulated patients, of whom 20 are tested on")
    parser.add_argument("--offset", type=float, default=0.1, help="coefficient of the offset noise")
    options = parser.parse_args()

    # data: the same for all
    test = 20 / options.count
    data = (f"data.root={options.folder / 'data'}", f"data.lists={options.folder / 'lists'}")
    split = f"data.split=[{1 - test},0,{test}]"
    run("dataSegmentation.py", f"data.image_size={SIZE}", *data, split, f"simulate.count={options.count}")

    # Both files are written anew after every result, so that a run may be stopped with what it has.
    results: list[dict] = []
    for seed in range(options.seeds):
        for section in METHODS:
            for result in measure(section, seed, options, data):
                results.append(result)
                text = json.dumps({"options": {**vars(options), "folder": None}, "results": results}, indent=1)
                (options.folder / "condition.json").write_text(text + "\n")
                (options.folder / "condition.md").write_text(table(results))
    print(table(results))


def measure(section: str, seed: int, options: argparse.Namespace, data: tuple[str, ...]) -> Iterator[dict]:
    """The scores of one method's three pairings with one seed: two trainings, three evaluations."""
    title, training, evaluation, sampling = METHODS[section]
    epochs = options.epochs if section == "ldm" else options.epochs // 2
    for trained, sampled in PAIRINGS:
        # the same training serves both ways of sampling: its second start finds nothing to do
        runs = options.folder / f"{trained}_{options.offset:g}_{seed}"
        settings = (*COMMON, *data, f"runs={runs}")
        course = (
            *TRAINING,
            f"unet.condition={trained}",
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
        seeded = ("eval.batch_size=10", f"eval.seed={seed}", f"eval.output={output}")
        run(evaluation, *settings, *sampling, condition, *seeded)
        row = score(output, options.folder / "data")
        yield {"method": title, "seed": seed, "trained": trained, "sampled": sampled, **row}


def run(script: str, *settings: str) -> None:
    """Run a script of the root, and stop if it fails."""
    command = [sys.executable, str(ROOT / script), *settings]
    ended = subprocess.run(command, env={**os.environ, "TQDM_DISABLE": "1"}, stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise SystemExit(f"{script} ended with status {ended.returncode}: {' '.join(command)}")


def score(output: Path, data: Path) -> dict[str, float]:
    """Means over the images of a folder: PSNR (dB), two-sided BSR (%), how far the image's mean is off (grey levels of
    1), and the PSNR that is left when each image's mean is put right."""
    values: dict[str, list[float]] = {"PSNR": [], "BSR_two_sided": [], "mean_off": [], "PSNR_mean_right": []}
    for path in sorted(output.glob("*.png")):
        prediction = images.read(path).pixels
        target = images.read(data / "BS" / path.name).pixels
        cxr = images.read(data / "CXR" / path.name).pixels
        off = float(np.mean(prediction - target))
        values["PSNR"].append(scores.psnr(target, prediction))
        values["BSR_two_sided"].append(100 * scores.bsr_two_sided(cxr, target, prediction))
        values["mean_off"].append(abs(off))
        values["PSNR_mean_right"].append(scores.psnr(target, prediction - off))
    return {name: mean(column) for name, column in values.items()}


def table(results: list[dict]) -> str:
    """Markdown: a row for each method and pairing, mean ± standard deviation over the seeds."""
    lines = [
        "| method | the CXR's latent | PSNR (dB) | PSNR, mean put right (dB) | image's mean off | two-sided BSR (%) |",
        "|---|---|---|---|---|---|",
    ]
    for title, *_ in METHODS.values():
        for trained, sampled in PAIRINGS:
            rows = [
                row for row in results if (row["method"], row["trained"], row["sampled"]) == (title, trained, sampled)
            ]
            if not rows:
                continue
            cells = [title, TITLES[trained, sampled]]
            for key, digits in (("PSNR", 2), ("PSNR_mean_right", 2), ("mean_off", 3), ("BSR_two_sided", 0)):
                column = [row[key] for row in rows]
                spread = stdev(column) if len(column) > 1 else 0.0
                cells.append(f"{mean(column):.{digits}f} ± {spread:.{digits}f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
