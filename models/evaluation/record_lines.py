"""The unfinished record of an evaluation: what its lines of JSON say (record.py writes them).

A run that goes on needs name and stamp of each image that is done, and needs them before its first image. Those are
taken from the lines' text; whole entries are made when somebody asks for them, which is at the end of the run. With
100 000 images done the objects of all lines would take half a second, most of it for fresh memory.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..runtime.garbage import without_collection

SHARD_FILE = re.compile(r"unfinished_(\d+)of(\d+)_\d+\.jsonl")
# Lines as json.dumps writes them, by what is taken of each: an image that is about to be written, name and stamp of one
# that is done, and any other line. A torn line is of the last kind, since the first two end in their brackets; so is a
# name with letters that JSON writes as escapes.
PLAIN = r'"([^"\\\x00-\x1f]*)"'
LINE = re.compile(
    rf'^(?:\{{"writing": \[{PLAIN}\]\}}'
    rf'|\{{"name": {PLAIN}, "content": "[0-9a-f/]*", "seconds": [0-9.e+-]+, "warm": (?:true|false), '
    r'"notes": \{[^{}\x00-\x1f]*\}, "stamp": "([0-9./]*)"\}'
    r"|(.+))$",
    re.MULTILINE | re.ASCII,
)
PIECE = 1 << 18  # bytes of a record that are looked through at once, so that what is found does not pile up


class Entry(NamedTuple):
    """One image that is done.

    content: of the files that its result depends on. seconds: that it took. warm: whether its process had done a batch
    before. notes: further figures of this image, {"psnr": ...}. stamp: see Case.stamp.
    """

    content: str
    seconds: float
    warm: bool
    notes: dict[str, float]
    stamp: str = ""


@dataclass(eq=False)
class Earlier:
    """What the record of an earlier run says.

    about: what that run was, see `summary.describe_run`. stamps: {name: stamp of the entry} of the images that a run
    which has not ended has done. others: further images whose files it has written, or began to. failed: {name: why it
    could not be read}. costs: what the process said at its end, see `Record.finish`. shards: into how many its job
    array was divided; 0: no array. content: the record's.
    """

    about: dict
    stamps: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    costs: dict = field(default_factory=dict)
    shards: int = 0
    content: bytes = field(default=b"", repr=False)

    @property
    def names(self) -> set[str]:
        """The images whose files it has written, or began to."""
        return self.others.union(self.stamps)

    @cached_property
    @without_collection()
    def entries(self) -> dict[str, Entry]:
        """{name: entry} of the images in `stamps`. Takes seconds for 100 000."""
        entries = {}
        for tree in _parse_lines(_decoded(self.content)):
            if "content" in tree:
                with suppress(KeyError, TypeError):  # as in `_read_line`
                    # of an image that was changed since and made again, the last counts
                    name = tree.pop("name")
                    entries[name] = Entry(**tree)
        return entries


def read(path: Path) -> Earlier:
    """What an unfinished record says. Torn lines and those of other programs count for nothing."""
    match = SHARD_FILE.fullmatch(path.name)
    run = Earlier({}, content=path.read_bytes(), shards=int(match[2]) if match else 0)

    # most lines, by their text
    begun = set()
    other_lines = []
    for piece in _pieces(run.content):
        for writing, name, stamp, line in LINE.findall(_decoded(piece)):
            if name:
                run.stamps[name] = stamp
                begun.discard(name)
            elif line:
                other_lines.append(line)
            else:
                begun.add(writing)

    # the rest, by JSON
    for tree in _parse_lines("\n".join(other_lines)):
        with suppress(ValueError, KeyError, TypeError):  # of another program, or of a later version
            _read_line(run, tree)
    run.others.update(begun)
    run.others.difference_update(run.stamps)
    return run


def _pieces(content: bytes) -> Iterator[bytes]:
    """Pieces of a record, each of whole lines."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start + PIECE)
        if end < 0:
            end = len(content)
        yield content[start:end]
        start = end


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def _read_line(run: Earlier, tree: dict) -> None:
    """Add what a line of an unfinished record says."""
    if "content" in tree:
        name = tree.pop("name")
        run.stamps[name] = Entry(**tree).stamp
    elif "about" in tree:
        run.about = tree["about"]
    elif "writing" in tree:
        run.others.update(tree["writing"])
    elif "costs" in tree:
        run.costs = dict(tree["costs"])
    elif "failed" in tree:
        run.failed[tree["failed"]] = str(tree["reason"])


def _parse_lines(text: str) -> list[dict]:
    """The lines of JSON in a text, without those that are none."""
    # All at once is three times as fast as one by one. No torn line becomes whole by those that follow it.
    joined = text.strip().replace("\n", ",")
    with suppress(ValueError):
        return json.loads(f"[{joined}]")
    # The last line may be torn: whoever wrote it was killed. That image is made again.
    trees = []
    for line in text.splitlines():
        with suppress(ValueError):
            trees.append(json.loads(line))
    return trees
