"""Shares of a collection: which X-rays a task of a job array and a process of torchrun take, and one summary of all.

    python batch_lcm_eval.py eval.input=FOLDER eval.shard=3/431      the third of 431 tasks
    python batch_lcm_eval.py eval.input=FOLDER eval.shard=merge      when all have ended

All tasks write into one folder. They find the same X-rays in the same order, so a share needs no list of its own.
"""

import re
import sys

from .. import config
from ..data import lists
from ..runtime import processes
from ..runtime.files import UserError
from ..runtime.garbage import without_collection
from .cases import Case
from .record import Record

MERGE = "merge"


def parse_shard(text: str | None) -> tuple[int, int] | str | None:
    """eval.shard -> (3, 431) of "3/431", MERGE of "merge", None of None. Raises UserError for anything else."""
    if text is None or text == MERGE:
        return text
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"eval.shard={text} is neither a share, such as 3/431 (from 1/431 to 431/431), nor {MERGE}")
    return int(match[1]), int(match[2])


def refuse_shard(variants: dict[str, config.Settings]) -> None:
    """Raise UserError for what needs all X-rays in one task."""
    settings = next(iter(variants.values()))
    if len(variants) > 1:
        raise UserError("eval.shard divides one evaluation; give each variant of an ablation an array of its own")
    if settings.eval.nodules:
        raise UserError("eval.nodules measures all X-rays together; run it without eval.shard")


def images_per_batch(batch_size: int, samples: int) -> int:
    """X-rays that are dealt out together; `batch_size` results go through the networks at a time."""
    # at least one: with more samples than batch_size, `draw_samples` splits an image's results
    return max(1, batch_size // samples)


def into_batches(cases: list[Case], count: int) -> list[list[Case]]:
    """Cases in groups of `count`, in their order; the last may be smaller."""
    return [cases[start : start + count] for start in range(0, len(cases), count)]


def shard_cases(cases: list[Case], batch: int, number: int, count: int) -> list[Case]:
    """The share `number` of `count` (from 1): every count-th batch, so that a batch holds the same X-rays as without
    shares and its results are the same to the bit."""
    if count > len(cases):
        raise UserError(f"eval.shard={number}/{count}, but there are {len(cases)} images; take fewer tasks")
    own = []
    for group in into_batches(cases, batch)[number - 1 :: count]:
        own += group
    return own


@without_collection()
def batches_left(record: Record, count: int) -> list[list[Case]]:
    """This process's batches of a record's images, of those that are not all done."""
    # A batch that was stopped in the middle is computed whole, since in a smaller one results round otherwise.
    numbers = {place // count: None for place, name in enumerate(record.names) if name not in record.done}
    left = [record.cases[number * count : (number + 1) * count] for number in numbers]
    # every n-th batch: shares differ by one batch at most
    return left[processes.rank() :: processes.world_size()]


def merge(record: Record, batch: int) -> tuple[dict, int]:
    """(summary of all tasks of a job array, 0), or its part so far and 1 after saying which images are missing.

    batch: see `images_per_batch`.
    """
    summary, missing = record.merge()
    folder = record.output.folder
    if missing:
        shards = record.shards_of(missing, batch)
        again = f"; run again eval.shard={lists.shown_names(shards)}" if shards else ""
        print(
            f"{len(missing)} of {len(record.cases)} images are missing: {lists.shown_names(missing)}{again}",
            file=sys.stderr,
        )
    else:
        print(f"{summary['images']} images in {folder}")
    return summary, 1 if missing else 0
