"""The split into training, validation and test: drawn once, then kept and checked."""

import math
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from .. import images
from ..config import Data
from ..runtime.files import UserError
from . import lists, patients
from .lists import SETS, Pair

PURPOSES = ("training", "validation", "test")  # of SETS


def split(
    names: Iterable[str], shares: Sequence[float], seed: int, patient_of: dict[str, str] | None = None
) -> tuple[list[str], list[str], list[str]]:
    """Names, shuffled by the seed whatever their order was, as (training, validation, test).

    Each share is rounded down and the rest goes to the last one that is not zero, which gives the published 592 / 74 /
    75 of 741.
    Every share that is not zero gets a name as long as there are enough. patient_of: {name: patient}, and then patients
    are split, each with all of its images.
    """
    if len(shares) != len(SETS) or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(
            f"data.split={list(shares)} should be the shares of training, validation and test, with the sum 1"
        )

    # A group holds the names of one patient; a name without a patient is a group of its own.
    groups: dict[str, list[str]] = {}
    # Sorted, so that neither the disk's order nor that of a dictionary has a say in the split.
    for name in sorted(names, key=images.natural):
        group = (patient_of or {}).get(name, name)
        groups.setdefault(group, []).append(name)

    # How many groups each set gets.
    wanted = [index for index, share in enumerate(shares) if share > 0]
    counts = [math.floor(share * len(groups) + 1e-9) for share in shares]  # 0.29 * 100 is below 29 in floats
    counts[wanted[-1]] += len(groups) - sum(counts)
    for index in wanted:
        # An empty set is worse than a share that is a little off, and the largest set misses one least.
        if counts[index] == 0 and len(groups) >= len(wanted):
            counts[int(np.argmax(counts))] -= 1
            counts[index] = 1

    # Deal them out.
    members = list(groups.values())
    # Patients are shuffled, not images: all images of one patient go to the same set, or the test would have been
    # seen in training.
    order = np.random.default_rng(seed).permutation(len(groups))
    sets: tuple[list[str], list[str], list[str]] = ([], [], [])
    first = 0
    for names_of_set, count in zip(sets, counts):
        for index in order[first : first + count]:
            names_of_set.extend(members[index])
        first += count
    return sets


def settle_lists(pairs: dict[str, Pair], settings: Data) -> list[int]:
    """Write the three lists, or check those that are there; the number of images in each.

    Raises UserError where lists that are there lack one of the three, name what is no faultless pair, or share images
    or patients.
    """
    # Lists that are there are never drawn anew: results on another test set could not be compared.
    paths = [lists.list_path(settings.lists, settings.name, set_name) for set_name in SETS]
    there = [path for path in paths if path.exists()]
    if not there:
        return _write_lists(pairs, paths, settings)
    # Published lists without a data set's name, train_set.txt and test_set.txt, have none for validation.
    nameless = there[0].name.endswith("_set.txt")
    training, validation, test = paths
    required = (training, test) if nameless else (training, validation, test)
    for absent in required:
        # Two lists of three: a new third one could repeat their images.
        if absent not in there:
            raise UserError(
                f"{there[0]} is there, but {absent} is not; put it there, or delete the lists for a new split"
            )

    sets = [_read_names(path) for path in paths]
    _check_lists(pairs, paths, sets, settings)
    pattern = "*_set.txt" if nameless else f"{settings.name}_*set.txt"
    print(f"the lists are there already and stay as they are (delete {there[0].parent / pattern} for a new split)")

    # Pairs that came later join no set by themselves; they are only reported.
    listed = set(chain.from_iterable(sets))
    if left := [name for name in pairs if name not in listed]:
        print(f"note: {len(left)} pairs are in no list: {lists.shown_names(left)}", file=sys.stderr)
    return [len(names) for names in sets]


def _write_lists(pairs: dict[str, Pair], paths: list[Path], settings: Data) -> list[int]:
    """Split the pairs and write the lists; the number of images in each."""
    patient_of = patients.find(pairs, settings.patient)
    sets = split(pairs, settings.split, settings.seed, patient_of)
    for path, names in zip(paths, sets):
        # With the ending, as the published lists have it.
        file_names = [pairs[name][0].name for name in names]
        lists.write_list(path, file_names)

    counts = [len(names) for names in sets]

    # Only sets that were asked for: a share of 0 is meant to be empty.
    empty = [purpose for purpose, share, count in zip(PURPOSES, settings.split, counts) if share > 0 and count == 0]
    if empty:
        groups = len({patient_of.get(name, name) for name in pairs})
        what = "patients" if patient_of else "pairs"
        print(
            f"note: no image for {' and '.join(empty)}: {groups} {what} are too few for "
            f"data.split={list(settings.split)}",
            file=sys.stderr,
        )
    return counts


def _read_names(path: Path) -> list[str]:
    """The names of a list; a share of 0 has an empty list or none, which is no fault here."""
    return lists.read_list(path) if path.is_file() and path.stat().st_size else []


def _check_lists(pairs: dict[str, Pair], paths: list[Path], sets: list[list[str]], settings: Data) -> None:
    """UserError where the lists name what is no pair, or share images or patients."""
    for path, names in zip(paths, sets):
        if missing := [name for name in names if name not in pairs]:
            raise UserError(
                f"{path} names images that are missing or faulty in {settings.root}: {lists.shown_names(missing)}; "
                "mend them, or delete the lists for a new split"
            )

    # Images first: one that is in two sets would be reported as a shared patient too.
    everything = list(chain.from_iterable(sets))
    if shared := lists.repeated(everything):
        raise UserError(
            f"the lists in {settings.lists} share images: {lists.shown_names(shared)}; delete the lists for a new split"
        )

    patient_of = patients.find({name: pairs[name] for name in everything}, settings.patient)
    once_a_set: list[str] = []
    for names in sets:
        # As a set: several images of one patient inside one list are no fault.
        once_a_set += {patient_of[name] for name in names if name in patient_of}
    if shared := lists.repeated(once_a_set):
        raise UserError(
            f"the lists in {settings.lists} have the same patient in several sets: {lists.shown_names(shared)}; "
            "delete the lists for a new split"
        )
