"""What the tests of evaluations share: a run into a folder, by a function instead of networks."""

import json
from pathlib import Path

from models.evaluation import record, run
from models.evaluation.results import Output

SIZE = 64  # side of what the method sees, pixels


def evaluate(method, cases, output, *, batch_size=1, about=None, **keywords):
    """A run into a folder, as the scripts do it."""
    place = Output.at(output, len(cases))
    facts = {"image_size": SIZE, **(about or {})}
    opened = record.Record(place, facts, cases)
    return run.evaluate(method, opened, batch_size=batch_size, **keywords)


def read_summary(folder: Path) -> dict:
    """The record of a run that has ended."""
    return json.loads((folder / "summary.json").read_text())


class Function:
    """A function (cxr, names, masks, progress) as a method of evaluation."""

    def __init__(self, function, residual=False):
        self.function = function
        self.residual = residual
        self.compiled = False

    def __call__(self, *arguments):
        return self.function(*arguments)


def darker(cxr, names, masks, progress):
    """A method that takes 0.1 of [-1, 1] from every pixel."""
    return cxr - 0.1
