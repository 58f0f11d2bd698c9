"""Several evaluations that differ in a setting, scored beside each other: what an ablation is."""
import re
import sys
from pathlib import Path

from .. import config
from ..runtime.device import pick_device
from . import report, scoring
from .cases import Case
from .pictures import Point


def compare(folders: dict[str, Path], cases: list[Case], output: Path, settings: config.Settings) -> int:
    """Score the results of {variant: folder} against the truth beside the X-rays. The script's exit status.

    Writes the tables and pictures of metrics.py into `output`, and, if the variants' numbers of steps differ, PSNR
    against seconds and against steps. Without a truth nothing is scored.
    """
    scorable = [case for case in cases if case.target]
    if not scorable:
        folder = cases[0].path.parent.parent / "BS"
        print(f"no truth beside the images ({folder}), so nothing is scored", file=sys.stderr)
        return 0

    # scores
    cxr_folder = scorable[0].path.parent
    target_folder = scorable[0].target.parent
    scored = scoring.score_folders(folders, cxr_folder, target_folder, names=[case.name for case in scorable],
                                   masks=scoring.masks_beside(cxr_folder), size=settings.metrics.size,
                                   device=pick_device(settings.device), features=settings.features)

    # tables and pictures
    seed = settings.metrics.seed
    print(report.write(scored, output, folders, seed))
    draw_trade_offs(report.summarise(scored, seed), report.costs(folders), output)
    print(f"written to {output}")
    for fault in scored.faults:
        print(fault, file=sys.stderr)
    return 1 if scored.faults else 0


def draw_trade_offs(summary: dict, costs: dict, output: Path) -> None:
    """quality_seconds.png and quality_steps.png of {variant: {"PSNR": ...}}: one line for variants that differ in their
    steps alone."""
    numbers_of_steps = {cost["steps"] for cost in costs.values()}
    if len(numbers_of_steps) < 2:
        return
    for key, axis in (("seconds", "seconds an image"), ("steps", "steps")):
        lines: dict[str, list[Point]] = {}
        for variant, cost in costs.items():
            # "sampler=ddim steps=10" belongs to the line "sampler=ddim"; if steps alone differ, to the sampler's own
            other_settings = re.sub(r"\s*\bsteps=\S+", "", variant).strip()
            line = other_settings or str(cost["sampler"])
            psnr = summary[variant]["PSNR"]
            label = str(cost["steps"]) if key == "seconds" else ""
            lines.setdefault(line, []).append(Point(cost[key], psnr["mean"], psnr["low"], psnr["high"], label))
        report.quality_against_cost(lines, output / f"quality_{key}.png", axis)
