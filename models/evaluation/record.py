"""The record of an evaluation: which images are done, so that a stopped run goes on, and what the whole run cost."""
import json
import platform
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import images
from ..runtime import checkpoint, processes
from .cases import Case

SUMMARY = "summary.json"              # of a run that has ended
UNFINISHED = "unfinished_{rank}.json"  # of a run that has not: what each process has done
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts memory in


@dataclass(frozen=True)
class Entry:
    """One image that is done.

    content: of the files that its result depends on. seconds: that it took. warm: whether its process had done a batch
    before. notes: further figures of this image, {"psnr": ...}.
    """
    content: str
    seconds: float
    warm: bool
    notes: dict[str, float]


class Record:
    """The files unfinished_<process>.json and summary.json of an output folder.

    identity: what the results depend on beside the images. An image that a stopped run of the same identity has left
    counts as done if the files that it was made from are unchanged and its result is still there.
    """

    def __init__(self, output: Path, identity: dict, cases: list[Case]):
        self.output = output
        self.identity = json.loads(json.dumps(identity))  # as it comes back from the disk: lists for tuples
        self.cases = cases
        self.own: dict[str, Entry] = {}  # what this process has done
        self.done = self._left_by_a_stopped_run()

    def add(self, case: Case, seconds: float, warm: bool, notes: dict[str, float]) -> None:
        """This process has written an image's files."""
        self.own[case.name] = Entry(case.content, round(seconds, 3), warm, notes)

    def save(self) -> None:
        """Write what is done so far. The first process's file also keeps what the stopped run had done."""
        entries = dict(self.own)
        if processes.rank() == 0:
            entries |= self.done
        tree = {"identity": self.identity, "images": {name: vars(entry) for name, entry in entries.items()}}
        write_json(self.output / UNFINISHED.format(rank=processes.rank()), tree)

    def finish(self, about: dict) -> dict:
        """Put together what all processes have done; write summary.json and remove the unfinished records. Returns the
        summary.

        about: what the summary says of the run beside its cost.
        """
        # every process gets the entries of all, in the order of the images
        everyone = dict(self.done)
        for own in processes.all_gather_objects(self.own):
            everyone |= own
        entries = {case.name: everyone[case.name] for case in self.cases}

        notes: dict[str, dict[str, float]] = {}
        for name, entry in entries.items():
            for key, value in entry.notes.items():
                notes.setdefault(key, {})[name] = value
        seconds = {name: entry.seconds for name, entry in entries.items()}
        warm = [entry.seconds for entry in entries.values() if entry.warm]
        summary = {
            **about,
            **cost(list(seconds.values()), warm),
            **notes,
            "images": len(entries),
            "processes": processes.world_size(),
            "seconds_per_image": seconds,
        }
        if processes.rank() == 0:
            write_json(self.output / SUMMARY, summary)
            for path in self.output.glob(UNFINISHED.format(rank="*")):
                path.unlink(missing_ok=True)
        return summary

    def _left_by_a_stopped_run(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for path in sorted(self.output.glob(UNFINISHED.format(rank="*"))):
            # A file that was being written, or is somebody else's, counts for nothing: those images are made again.
            with suppress(OSError, ValueError, KeyError, TypeError):
                tree = json.loads(path.read_text(encoding="utf-8"))
                if tree["identity"] == self.identity:
                    found |= {name: Entry(**entry) for name, entry in tree["images"].items()}
        processes.barrier()  # all have read before any writes
        done = {}
        for case in self.cases:
            entry = found.get(case.name)
            if entry is not None and entry.content == case.content and (self.output / f"{case.name}.png").is_file():
                done[case.name] = entry
        return done


def cost(seconds: list[float], warm: list[float]) -> dict:
    """What summary.json says of the cost: the median time of an image and the most memory that any process took.

    seconds: of every image; warm: of those after their process's first batch, which warms up.
    """
    if torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        peak = max(torch.cuda.max_memory_allocated(device) for device in devices)
        peak_of = "allocated on the GPU"
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        peak_of = "of the whole process"
    return {
        "seconds": float(np.median(warm or seconds)),
        "seconds_after_warm_up": bool(warm),
        "peak_memory": int(processes.all_reduce_max(peak)[0]),
        "peak_memory_of": peak_of,
    }


def describe_run(method: str, device: torch.device, precision: str, compiled: bool, settings: dict,
                 weights: list[str]) -> dict:
    """What summary.json says of a run: method, settings, machine, weights with their digests, date."""
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
        "weights": {str(path): checkpoint.digest(path) for path in weights},
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def write_json(path: Path, tree: dict) -> None:
    text = json.dumps(tree, indent=1) + "\n"
    images.write_file(path, text.encode())
