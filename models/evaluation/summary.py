"""summary.json, the record of an evaluation that has ended: what it says of the run and its cost, how it is read, and
when the results of two runs may share a folder."""

import json
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

from .. import config
from ..data import lists
from ..runtime import checkpoint, processes

SUMMARY = "summary.json"
INDEX = "index.html"  # beside it: the page on which the results are looked through
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts memory in

# Settings on which the results of an image do not depend; runs that differ in them share a folder.
ANY_RESULT = {
    "eval.input",
    "eval.output",
    "eval.batch_size",
    "eval.nodules",
    "eval.inserted",
    "eval.panels",
    "eval.paths",
    "eval.snapshots",
    "eval.refiner",
}


def read_summary(folder) -> dict:
    """What an evaluation script left in its folder about its run; empty if there is none that can be read."""
    try:
        # A damaged summary counts as none: whoever needs it says so, and the scores need only the images.
        summary = json.loads((Path(folder) / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def recorded_names(summary: dict) -> list[str]:
    """The images whose results a summary.json knows: of its run, and of earlier ones with the same settings."""
    return [*summary.get("seconds_per_image", {}), *summary.get("results_of_earlier_runs", [])]


def median_time(seconds: list[float], warm: list[float]) -> dict:
    """What summary.json says of the time of an image.

    seconds: of every image; warm: of those after their process's first batch, which warms up.
    """
    # the median, which a few slow images do not move; after warm-up if there was more than one batch
    return {"seconds": float(np.median(warm or seconds)) if seconds else 0.0, "seconds_after_warm_up": bool(warm)}


def peak_memory() -> dict:
    """What summary.json says of the most memory that any process took. All processes call this together."""
    # PyTorch counts what its tensors took on a GPU; on a CPU only the system knows, and it counts everything.
    if torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        peak = max(torch.cuda.max_memory_allocated(device) for device in devices)
        peak_of = "allocated on the GPU"
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        peak_of = "of the whole process"
    return {
        # of the process that took most: this much a machine must have for one process
        "peak_memory": int(processes.all_reduce_max(peak)[0]),
        "peak_memory_of": peak_of,
    }


def describe_run(
    method: str,
    device: torch.device,
    precision: str,
    compiled: bool,
    settings: dict,
    weights: list[str],
    image_size: int,
) -> dict:
    """What summary.json says of a run before it begins: method, settings, machine, weights with their digests, date."""
    # a time per image means nothing without the machine and its threads
    machine = f"CPU, {torch.get_num_threads()} threads ({platform.machine()})"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    return {
        "method": method,
        "settings": settings,
        "device": machine,
        "precision": precision,
        "compiled": compiled,
        "torch": torch.__version__,
        # digests, as file names say nothing about what a training has since put there
        "weights": {str(path): checkpoint.digest(path) for path in weights},
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "image_size": image_size,
    }


def going_on(about: dict) -> dict:
    """What must be the same for a stopped run to go on: all but the date."""
    return {key: value for key, value in about.items() if key != "date"}


def common(about: dict) -> dict:
    """What all results in one folder have in common, {dotted key: value}.

    Method, settings, precision, and the weights by their digests, wherever they lie.
    """
    common = {key: about.get(key) for key in ("method", "precision", "image_size")}
    # where images lie and how many go together changes no result
    for key, value in config.flatten(about.get("settings", {})).items():
        # a setting of which nothing is said has had no effect; records of earlier versions do not know it
        if key not in ANY_RESULT and value is not None:
            common[key] = value

    # in the order vqgan, noise estimator; a copy in another folder is still the same weights
    common["weights"] = list(about.get("weights", {}).values())
    return common


def has_nodules(about: dict) -> bool:
    """Whether a run put nodules into its X-rays, so that it wrote insertion.FILES."""
    settings = config.flatten(about.get("settings", {}))
    return bool(settings.get("eval.nodules"))


def difference(before: dict, now: dict) -> str:
    """The settings in which two runs differ, in words."""
    was = common(before)
    words = []
    # seen from this run's settings: a setting that only the earlier run had gets the last phrase
    for key, value in common(now).items():
        if was.get(key) != value:
            words.append("other weights" if key == "weights" else f"{key} was {was.get(key)}, now {value}")
    return lists.shown_names(words, "; ") or "fewer settings"
