"""The record of an evaluation: whose files lie in its folder, which images are done, what the whole run cost.

<output>/summary.json is the record of a run that has ended. Until then each process appends to
unfinished_<process>.jsonl, a line of JSON at a time: first what the run is, then the names that it is about to write,
then an entry for each image that is done or that could not be read. So a stopped run goes on, and no later run mistakes
somebody's file for one of its own.

The tasks of a job array (eval.shard=3/431) write into one folder at the same time: each appends to records of its own,
unfinished_<shard>of<shards>_<process>.jsonl, and touches no others. `merge` makes the summary of all.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from .. import images
from ..data import lists
from ..runtime import ownership, processes
from ..runtime.files import MachineError, UserError
from ..runtime.garbage import without_collection
from . import insertion, record_lines
from .cases import Case, stamps_and_numbers
from .record_lines import Earlier, Entry
from .results import FOLDERS, Listing, Output
from .summary import (
    INDEX,
    SUMMARY,
    common,
    difference,
    going_on,
    has_nodules,
    median_time,
    peak_memory,
    read_summary,
    recorded_names,
)

UNFINISHED = "unfinished_{process}.jsonl"


class Record:
    """The record of one evaluation in its output folder. To make one reads what is there and refuses what would do
    harm.

    about: what the run is, see `summary.describe_run`; with "image_size". cases: the images. shard: (3, 431) for the
    third of 431 tasks, whose images these are; None: no job array.

    Raises UserError if a result would replace an input or a file that no record names, if the folder holds results of
    other settings that this run does not replace (metrics.py would take both for one method), or if it cannot be
    written.
    """

    @without_collection()
    def __init__(self, output: Output, about: dict, cases: list[Case], shard: tuple[int, int] | None = None):
        self.output = output
        self.shard = shard

        # Records of other runs come from JSON; this one is compared with them, so it goes through JSON too.
        self.about = json.loads(json.dumps(about))  # as it comes back from the disk: lists for tuples
        self.cases = cases
        self.own: dict[str, Entry] = {}  # what this process has done
        self.failed: dict[str, str] = {}  # what it could not read, and why
        self.names = [case.name for case in cases]
        self.known = frozenset(self.names)
        self.stamps: dict[str, str] = {}  # of the images, see Case.stamp; asked where results are there

        # whose files lie in the folder
        # one file for each process of the stopped run, however many this run has
        listing = Listing(output.folder)
        unfinished = _unfinished_among(listing.numbers(""), output.folder)
        self.stopped = [record_lines.read(path) for path in unfinished]
        self.earlier = [*self.stopped, *self._read_summary()]
        self.replaced: list[Earlier] = []  # runs whose results have to go
        self.continued: list[Earlier] = []  # runs with these settings, whose results may stay
        # Runs with the same settings may share the folder: their results could have come from one run. Others may not.
        for run in self.earlier:
            same = common(run.about) == common(self.about)
            group = self.continued if same else self.replaced
            group.append(run)

        # All of this leaves the disk as it is; `begin` is what changes it.
        self.present: set[str] = set()  # images whose results are there
        self._refuse_foreign(listing)
        self._refuse_mixture()
        if processes.rank() == 0:
            ownership.require_writable(output.folder)
            if output.file is not None:
                ownership.require_writable(output.file.parent)

        # images that need not be made again, each with the run that has made it; and results that stay without
        # belonging to this run
        self.done = self._done()
        self.beside = self._beside()

    def begin(self) -> None:
        """Make the folder ready: a record of this run, no results of other settings (this run replaces all of them)."""
        processes.barrier()  # every process has read the records before any changes them

        # what was being written when a run was killed; of an array's tasks, others may be writing
        if self.shard is None:
            self._tidy()

        # A task of an array leaves everything of the others alone, and so does a run that goes on: its records are
        # appended to, so that going on takes no longer the more is done.
        if self.shard is None and not self._only_goes_on():
            self._take_over()

        # The other processes' records begin after process 0 has removed the old ones, or theirs would go too.
        processes.barrier()
        if not self._unfinished_file().exists():
            self.output.folder.mkdir(parents=True, exist_ok=True)
            self._append({"about": self.about})

    def _only_goes_on(self) -> bool:
        """Whether every record in the folder is of this very run, stopped before."""
        same = all(going_on(run.about) == going_on(self.about) for run in self.stopped)
        return bool(self.stopped) and same and len(self.earlier) == len(self.stopped)

    def _tidy(self) -> None:
        """Remove the temporary files that killed runs have left."""
        folder = self.output.folder
        folders = {folder, *(folder / name for name in FOLDERS)}
        # in a tree they lie beside the results that were begun and never done
        for run in self.stopped:
            for name in run.others:
                folders.update(path.parent for path in self.output.files(name))
        processes.tidy(*sorted(folders))

    def _take_over(self) -> None:
        """Make one record of all there are, and remove the results of other settings."""
        folder = self.output.folder
        if processes.rank() > 0:
            return

        # One file takes over what all earlier records say, before any of them goes: whenever this is killed, files
        # are known.
        names = sorted(set().union(*(run.names for run in self.earlier)))
        lines = [{"about": self.about}, {"writing": names}]
        for name, entry in self._entries_of(self.done).items():
            lines.append({"name": name, **entry._asdict()})
        # written whole under another name and then renamed, unlike later lines, which are appended
        own_file = self._unfinished_file()
        text = "\n".join(json.dumps(line) for line in lines)
        images.write_file(own_file, text.encode())

        # From here on results of other settings go, with what they had beside them.
        self._remove_unfinished(keep=own_file)
        for run in self.replaced:
            # what this run has done already under the same name stays
            for name in run.names - self.done.keys():
                for path in self.output.files(name):
                    path.unlink(missing_ok=True)
            if has_nodules(run.about):
                for name in insertion.FILES:
                    (folder / name).unlink(missing_ok=True)

        # a summary of results that are gone would describe the new ones wrongly
        if self.replaced:
            (folder / SUMMARY).unlink(missing_ok=True)
            (folder / INDEX).unlink(missing_ok=True)

    def writing(self, cases: list[Case]) -> None:
        """Files of these images are about to be written: from now on they are known to be this script's."""
        self._append({"writing": [case.name for case in cases]})

    def add(self, case: Case, entry: Entry) -> None:
        """All files of an image are written."""
        self.own[case.name] = entry
        self._append({"name": case.name, **entry._asdict()})

    def add_failed(self, failed: list[tuple[str, str]]) -> None:
        """These images, [(name, reason), ...], could not be read and are left out."""
        for name, reason in failed:
            self.failed[name] = reason
            self._append({"failed": name, "reason": reason})

    def finish(self, about: dict) -> dict:
        """Put together what all processes have done; write summary.json and remove the unfinished records. Returns the
        summary.

        about: what the summary says of the run beside `self.about` and its cost. A task of a job array writes no
        summary but says in its record what it cost; `merge` writes it. Raises UserError if no image could be read.
        """
        # every process gets the entries of all, in the order of the images
        everyone = self._entries_of(self.done)
        failed: dict[str, str] = {}
        for own, own_failed in processes.all_gather_objects((self.own, self.failed)):
            everyone |= own
            failed |= own_failed
        if failed and not everyone:
            raise UserError(f"none of the {len(failed)} images could be read: {next(iter(failed.values()))}")
        # sorted like the input: which process did an image should not show in the summary
        entries = {name: everyone[name] for name in self.names if name in everyone}
        costs = {**about, **peak_memory(), "processes": processes.world_size()}
        if self.shard is not None:
            if processes.rank() == 0:
                self._append({"costs": costs})
            return self._summarise(entries, failed, costs)

        # The summary first: killed in between, the folder has two records instead of none.
        summary = self._summarise(entries, failed, costs)
        if processes.rank() == 0:
            self._write_summary(summary)
        return summary

    def merge(self) -> tuple[dict, list[str]]:
        """(the summary of all tasks of a job array, names of images that are missing); the summary is written if none
        is. Raises UserError if no task has done an image."""
        # Tasks may have run on different machines: what must be the same is what decides a result.
        entries: dict[str, Entry] = {}
        failed: dict[str, str] = {}
        devices: dict[str, None] = {}  # a set that keeps the order
        costs: dict = {}
        for run in self.stopped:
            if run not in self.continued:
                continue
            done = self._valid(run)
            entries |= self._entries_of(done)
            failed |= run.failed
            if done:
                devices[str(run.about.get("device"))] = None
            largest = max(costs.get("peak_memory", 0), run.costs.get("peak_memory", 0))
            costs |= run.costs
            costs["peak_memory"] = largest
        if not entries:
            raise UserError(
                f"no task has left results of this run in {self.output.folder}; start one with eval.shard=1/N"
            )

        # a fault counts only while there is no result
        failed = {name: failed[name] for name in self.names if name in failed and name not in entries}
        missing = [name for name in self.names if name not in entries and name not in failed]
        ordered = {name: entries[name] for name in self.names if name in entries}
        summary = self._summarise(ordered, failed, {**costs, "device": "; ".join(devices)})
        if not missing:
            self._tidy()
            self._write_summary(summary)
        return summary, missing

    def shards_of(self, missing: list[str], batch: int) -> list[str]:
        """The values of eval.shard whose tasks make these images, if all tasks were of one array. batch: images that
        are dealt out together."""
        counts = {run.shards for run in self.stopped}
        if len(counts) != 1 or 0 in counts:
            return []
        (count,) = counts
        wanted = set(missing)
        numbers = {place // batch % count + 1 for place, name in enumerate(self.names) if name in wanted}
        return [f"{number}/{count}" for number in sorted(numbers)]

    def _summarise(self, entries: dict[str, Entry], failed: dict[str, str], about: dict) -> dict:
        """What summary.json says of the images that are done and of those that could not be read."""
        # {"psnr": {image: value}, ...}: the summary lists figures by their name, entries list them by image
        notes: dict[str, dict[str, float]] = {}
        for name, entry in entries.items():
            for key, value in entry.notes.items():
                notes.setdefault(key, {})[name] = value
        seconds = {name: entry.seconds for name, entry in entries.items()}
        warm = [entry.seconds for entry in entries.values() if entry.warm]

        # Later keys win: what was found out while running corrects what was announced before.
        summary = {
            **self.about,
            **about,
            **median_time(list(seconds.values()), warm),
            **notes,
            "images": len(entries),
            "seconds_per_image": seconds,
        }
        if failed:
            summary["failed"] = failed

        # named, so that the next run knows these files as this script's own
        if self.beside:
            summary["results_of_earlier_runs"] = self.beside
        return summary

    def _write_summary(self, summary: dict) -> None:
        """Write summary.json, then remove the unfinished records."""
        text = json.dumps(summary, indent=1) + "\n"
        images.write_file(self.output.folder / SUMMARY, text.encode())
        self._remove_unfinished()

    def _read_summary(self) -> list[Earlier]:
        path = self.output.folder / SUMMARY
        if not path.exists():
            return []
        summary = read_summary(self.output.folder)

        # a summary.json of some other program, which must not be written over
        if "seconds_per_image" not in summary:
            raise UserError(
                f"{path} is there already and is not the record of an evaluation; give the results another "
                "folder with eval.output=, or move that file away"
            )
        return [Earlier(summary, others=set(recorded_names(summary)))]

    @cached_property
    def case_of(self) -> dict[str, Case]:
        """{name: case} of the images."""
        return dict(zip(self.names, self.cases))

    def _entries_of(self, done: dict[str, Earlier]) -> dict[str, Entry]:
        """{name: entry} of images, each with the run that has made it."""
        return {name: run.entries[name] for name, run in done.items()}

    def _done(self) -> dict[str, Earlier]:
        """The images that a stopped run has left, if the files that they were made from are unchanged."""
        # Only a run that was the same in everything goes on: another machine may give slightly other pixels.
        done: dict[str, Earlier] = {}
        for run in self.stopped:
            if going_on(run.about) == going_on(self.about):
                done |= self._valid(run)
        return done

    def _valid(self, run: Earlier) -> dict[str, Earlier]:
        """The images of a run whose results are there and whose X-rays and masks are unchanged, each with the run."""
        # the cheap question first: case.content reads the whole X-ray
        stamps = self.stamps
        unchanged = [name for name, stamp in run.stamps.items() if stamp and stamps.get(name) == stamp]
        valid = dict.fromkeys([name for name in unchanged if name in self.present], run)
        if len(valid) == len(run.stamps):
            return valid

        for name in run.stamps:
            if name in self.present and name not in valid:
                with suppress(OSError):  # an X-ray that has gone has no valid result
                    if run.entries[name].content == self.case_of[name].content:
                        valid[name] = run
        return valid

    def _beside(self) -> list[str]:
        """Images of earlier runs with these settings whose results stay beside those of this run."""
        # of runs with the same settings alone, as the other ones' results go
        names: set[str] = set()
        for run in self.continued:
            names |= run.names - self.known
        return sorted(name for name in names if self.output.result(name).is_file())

    def _refuse_foreign(self, listing: Listing) -> None:
        # Two inputs of one name, say scan.png and scan.dcm, have one result; panels/a.png has the place of a's panel.
        if len(self.known) < len(self.names):
            repeated = lists.repeated(self.names)
            raise UserError(f"several images would have the same result: {lists.shown_names(repeated)}")
        for name in self.names:
            if "/" not in name:
                continue
            first, _, rest = name.partition("/")
            if first in FOLDERS and rest in self.known:
                raise UserError(
                    f"the result of {name} would take the place of the file that belongs to {rest} in {first}/; "
                    "rename that folder of images"
                )

        # What will be written and is there already. What earlier runs have written by their own record may be replaced.
        own_names = set().union(*(run.names for run in self.earlier))
        # tables of the insertion test and the page belong to the whole folder, not to an image
        existing = [path for path in self._of_the_folder(has_nodules(self.about)) if path.exists()]
        own = self._of_the_folder(with_nodules=True) if self.earlier else []
        # where a run goes on or begins anew; each input is asked for once, also for what `_valid` will want to know
        numbers: set[int] = set()
        if self.earlier:
            self.stamps, numbers = stamps_and_numbers(self.cases)
        self.present, found = self.output.existing(self.names, own_names, numbers, listing)
        for name, file in found:
            existing.append(Path(file))
            if name in own_names:
                own.append(Path(file))
        if not existing:
            return

        # what is read, and so must stay as it is
        inputs = []
        for case in self.cases:
            inputs += [path for path in (case.file, case.mask, case.target) if path is not None]
        ownership.refuse_foreign(existing, inputs, own, "eval.output")

    def _of_the_folder(self, with_nodules: bool) -> list[Path]:
        """The files that a run writes for all its images together, beside the summary."""
        names = [INDEX, *insertion.FILES] if with_nodules else [INDEX]
        return [self.output.folder / name for name in names]

    def _refuse_mixture(self) -> None:
        # Results of other settings are replaced by this run's if it makes the same images; what is left over would mix.
        # A task of a job array replaces none, as its neighbours may be at work.
        own_names = frozenset() if self.shard else self.known
        for run in self.replaced:
            left_over = sorted(name for name in run.names - own_names if self.output.result(name).is_file())
            if left_over:
                words = difference(run.about, self.about)
                raise UserError(
                    f"{self.output.folder} holds results of other settings ({words}): "
                    f"{lists.shown_names(left_over)}; give this run another folder with eval.output=, "
                    "or remove that one"
                )

    def _unfinished_file(self) -> Path:
        process = str(processes.rank())
        if self.shard is not None:
            process = f"{self.shard[0]}of{self.shard[1]}_{process}"
        return self.output.folder / UNFINISHED.format(process=process)

    def _unfinished_files(self) -> list[Path]:
        """The unfinished records that are in the folder now, of any process."""
        folder = self.output.folder
        return _unfinished_among(os.listdir(folder) if folder.is_dir() else [], folder)

    def _remove_unfinished(self, keep: Path | None = None) -> None:
        for path in self._unfinished_files():
            if path != keep:
                path.unlink(missing_ok=True)

    def _append(self, tree: dict) -> None:
        """A line more in this process's unfinished record."""
        path = self._unfinished_file()
        try:
            # The line break comes first: it ends a line that a killed process may have left torn.
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(tree))
        except OSError as error:
            raise MachineError(f"cannot write {path}: {error.strerror or error}") from error


def _unfinished_among(names: Iterable[str], folder: Path) -> list[Path]:
    """The unfinished records among the files of a folder."""
    # not by Path.glob, which makes a path of every result first
    start, end = UNFINISHED.split("{process}")
    unfinished = [name for name in names if name.startswith(start) and name.endswith(end)]
    return [folder / name for name in sorted(unfinished)]
