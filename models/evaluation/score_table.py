"""The scores of a hundred thousand images, and their files, in little memory.

As dictionaries of floats the scores of one image take 2 kB, and the paths of its files as much again. Here a score
takes the eight bytes of its number, and of a file only the ending of its name is kept.
"""

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

Row = dict[str, dict[str, float]]  # {method: {score's key: value}} of an image


class ScoreTable(Mapping[str, Row]):
    """{image: {method: {score's key: value}}}, whose rows are made when they are asked for.

    All rows have the methods and keys of the first.
    """

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.columns: list[str] = []  # the scores' keys
        self.places: dict[str, int] = {}  # of the images, in the order in which they came
        self.numbers = array("d")  # image by image, of each method by method, of each key by key

    @classmethod
    def of(cls, rows: Mapping[str, Row]) -> "ScoreTable":
        """A table of what {image: row} holds."""
        table = cls()
        for image, row in rows.items():
            table.add(image, row)
        return table

    def add(self, image: str, row: Row) -> None:
        """Append an image that is not in the table yet. Raises KeyError if the row lacks a score that the first has."""
        if not self.places:
            self.methods = list(row)
            self.columns = list(row[self.methods[0]])

        # whole before it is appended: half a row would move all that follow
        values = []
        for method in self.methods:
            for key in self.columns:
                values.append(row[method][key])
        self.places[image] = len(self.places)
        self.numbers.extend(values)

    def series(self, method: str, key: str) -> np.ndarray:
        """A score of every image, float64 (images,), in their order."""
        values = np.frombuffer(self.numbers, np.float64).reshape(len(self), len(self.methods), len(self.columns))
        # a copy, since an array("d") of which there is a view cannot grow
        return values[:, self.methods.index(method), self.columns.index(key)].copy()

    def __getitem__(self, image: str) -> Row:
        start = self.places[image] * len(self.methods) * len(self.columns)
        row = {}
        for method in self.methods:
            end = start + len(self.columns)
            row[method] = dict(zip(self.columns, self.numbers[start:end]))
            start = end
        return row

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class ImageFiles:
    """The files of one image to score. target: the true soft tissue; predictions: {method: path}."""

    cxr: Path
    target: Path
    mask: Path | None
    predictions: dict[str, Path]


class Listing(NamedTuple):
    """The images of one folder: {image: ending of its file's name}."""

    folder: Path
    endings: dict[str, str]

    @classmethod
    def of(cls, found: Mapping[str, Path]) -> "Listing":
        """found: {image: path} of one folder, as images.find gives it; not empty."""
        folder = next(iter(found.values())).parent
        # one text for each ending, however many files have it
        return cls(folder, {name: sys.intern(path.name[len(name) :]) for name, path in found.items()})


class FileTable(Mapping[str, ImageFiles]):
    """{image: its files}, whose paths are made when they are asked for."""

    def __init__(self, cxr: Path, target: Path, masks: Path | None, predictions: Mapping[str, Path]):
        """All four: folders."""
        self.cxr = cxr
        self.target = target
        self.masks = masks
        self.predictions = predictions
        # {image: endings of its CXR, of its target, of its mask (None: it has none), of each prediction}
        self.endings: dict[str, tuple[str, str, str | None, tuple[str, ...]]] = {}
        self.shared: dict[tuple, tuple] = {}  # the endings of all images are the same few, kept once each

    def add(self, name: str, cxr: str, target: str, mask: str | None, predictions: Sequence[str]) -> None:
        """Append an image by the endings of its files' names."""
        endings = (cxr, target, mask, tuple(predictions))
        self.endings[name] = self.shared.setdefault(endings, endings)

    def __getitem__(self, name: str) -> ImageFiles:
        cxr, target, mask, endings = self.endings[name]
        predictions = {}
        for (method, folder), ending in zip(self.predictions.items(), endings):
            predictions[method] = folder / f"{name}{ending}"
        mask_path = None
        if self.masks is not None and mask is not None:
            mask_path = self.masks / f"{name}{mask}"
        return ImageFiles(self.cxr / f"{name}{cxr}", self.target / f"{name}{target}", mask_path, predictions)

    def __iter__(self) -> Iterator[str]:
        return iter(self.endings)

    def __len__(self) -> int:
        return len(self.endings)
