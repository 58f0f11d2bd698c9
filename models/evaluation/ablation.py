"""One evaluation, or several that differ in a setting and are compared: what an ablation is."""
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ..runtime import processes
from ..runtime.device import pick_device
from . import report
from .pictures import Point
from .run import Case


def run(variants: dict, evaluate: Callable[[object, Path], list[Case]]) -> int:
    """Evaluate the settings of each variant; where there are several, score them beside each other. The script's exit status.

    variants: {what differs ("" where there is one): settings}. evaluate(settings, folder) writes its results into a folder:
    eval.output, or one below it for each of several variants, and returns the X-rays. Several write the tables and pictures of
    metrics.py into eval.output, and, where the numbers of steps differ, PSNR against seconds and against steps.
    """
    first = next(iter(variants.values()))
    output, cases = Path(first.eval.output), []
    folders = {name: output / re.sub(r"[^\w.=+-]+", "_", name) for name in variants}  # of "": output itself
    with processes.joined():
        for name, settings in variants.items():
            if name:
                processes.say(f"{name}: {folders[name]}")
            cases = evaluate(settings, folders[name])
    if len(variants) == 1 or processes.rank() > 0:
        return 0
    known = [case for case in cases if case.truth]
    if not known:
        print(f"no truth beside the images ({cases[0].path.parent.parent / 'BS'}), so nothing is scored", file=sys.stderr)
        return 0
    scored = report.score_folders(folders, known[0].path.parent, known[0].truth.parent, names=[case.name for case in known],
                                  masks=report.masks_beside(known[0].path.parent), size=first.metrics.size,
                                  device=pick_device(first.device), features=first.features)
    print(report.write(scored, output, folders, first.metrics.seed))
    draw_trade_offs(report.summarise(scored, first.metrics.seed), report.costs(folders), output)
    print(f"written to {output}")
    for fault in scored.faults:
        print(fault, file=sys.stderr)
    return 1 if scored.faults else 0


def draw_trade_offs(summary: dict, costs: dict, output: Path) -> None:
    """quality_seconds.png and quality_steps.png of {variant: {"PSNR": ...}}, a line for those that differ in their steps alone."""
    if len({cost["steps"] for cost in costs.values()}) < 2:
        return
    for key, axis in (("seconds", "seconds an image"), ("steps", "steps")):
        lines: dict[str, list[Point]] = {}
        for name, cost in costs.items():
            psnr = summary[name]["PSNR"]
            others = re.sub(r"\s*\bsteps=\S+", "", name).strip() or str(cost["sampler"])
            label = str(cost["steps"]) if key == "seconds" else ""
            lines.setdefault(others, []).append(Point(cost[key], psnr["mean"], psnr["low"], psnr["high"], label))
        report.quality_against_cost(lines, output / f"quality_{key}.png", axis)
