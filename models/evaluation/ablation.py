"""Several evaluations that differ in a setting, scored beside each other: what an ablation is."""

import re
import sys
from pathlib import Path

from .. import config, images
from ..runtime.device import pick_device
from ..runtime.files import UserError
from . import report, report_numbers, scoring
from .cases import Case
from .pictures import Point


def check_same_cases(cases_of: dict[str, list[Case]]) -> None:
    """Raise UserError, before the first variant runs, unless all variants have the same X-rays with the same truth."""
    # Means over different images say nothing about the setting that differs, however alike the tables look.
    first, *others = cases_of
    expected = [(case.file, case.target) for case in cases_of[first]]
    for other in others:
        if [(case.file, case.target) for case in cases_of[other]] != expected:
            raise UserError(
                f"the variants {first} and {other} have different X-rays, and an ablation compares results of the "
                "same ones; run them one by one"
            )


def check_output(folders: dict[str, Path], output: Path) -> None:
    """Raise UserError, before the first variant runs, if the tables and pictures cannot be written into `output`."""
    # A name such as soft.png is allowed for one image of one evaluation, never for several folders.
    if output.suffix.lower() in images.SUFFIXES and not output.is_dir():
        count = len(folders)
        raise UserError(f"eval.output={output} is one file, but an ablation writes {count} folders; name a folder")

    # tables of an earlier ablation may be replaced, since their record names them; files of others may not
    report.refuse_foreign(output, list(folders), [], "eval.output")


def compare(folders: dict[str, Path], cases: list[Case], output: Path, settings: config.Settings) -> int:
    """Score the results of {variant: folder} against the truth beside the X-rays. The script's exit status.

    Writes the tables and pictures of metrics.py into `output`, and, if the variants' numbers of steps differ, PSNR
    against seconds and against steps. Without a truth nothing is scored.
    """
    # Only X-rays with a truth can be scored; the others still have their results.
    names = []
    target_folder = None
    for case in cases:
        if case.target is not None:
            names.append(case.name)
            target_folder = case.target.parent  # the same for all: BS/ beside CXR/
    if target_folder is None:
        print(f"no truth beside the images ({_why_no_target(cases[0])}), so nothing is scored", file=sys.stderr)
        return 0

    # scores
    cxr_folder = target_folder.parent / "CXR"
    # the masks are those beside the truth, whatever masks the evaluation was given: a score needs one reference
    scored = scoring.score_folders(
        folders,
        cxr_folder,
        target_folder,
        names=names,
        masks=scoring.masks_beside(cxr_folder),
        size=settings.metrics.size,
        device=pick_device(settings.device),
        features=settings.features,
    )

    # tables and pictures
    seed = settings.metrics.seed
    print(report.write(scored, output, folders, seed))
    draw_trade_offs(report_numbers.summarise(scored, seed), report_numbers.costs(folders), output)
    print(f"written to {output}")
    for fault in scored.faults:
        print(fault, file=sys.stderr)
    return 1 if scored.faults else 0


def _why_no_target(case: Case) -> str:
    """Why no true soft tissue was found for an X-ray."""
    folder = case.path.resolve().parent
    targets = folder.parent / "BS"
    if folder.name != "CXR":
        return f"it is looked for in BS/ beside a folder CXR/, but the images lie in {folder.name}/"
    if not targets.is_dir():
        return f"no folder {targets}"
    return f"no image of the same name in {targets}"


def draw_trade_offs(summary: dict, costs: dict, output: Path) -> None:
    """quality_seconds.png and quality_steps.png of {variant: {"PSNR": ...}}: one line for variants that differ in their
    steps alone."""
    # With one number of steps there is no trade-off to draw: every variant would be a point on its own.
    numbers_of_steps = {cost["steps"] for cost in costs.values()}
    if len(numbers_of_steps) < 2:
        return
    for key, axis in (("seconds", "seconds an image"), ("steps", "steps")):
        lines: dict[str, list[Point]] = {}  # {name in the legend: its runs}
        for variant, cost in costs.items():
            # "sampler=ddim steps=10" belongs to the line "sampler=ddim"; if steps alone differ, to the sampler's own
            other_settings = re.sub(r"\s*\bsteps=\S+", "", variant).strip()
            line = other_settings or str(cost["sampler"])
            # PSNR, as its error bar is the bootstrap interval that the tables show as well
            psnr = summary[variant]["PSNR"]
            # against steps the axis says it already
            label = str(cost["steps"]) if key == "seconds" else ""
            lines.setdefault(line, []).append(Point(cost[key], psnr["mean"], psnr["low"], psnr["high"], label))
        report.quality_against_cost(lines, output / f"quality_{key}.png", axis)
