"""A training to test the loop with: a straight line fitted to noisy points."""

import math
from pathlib import Path

import numpy as np
import torch

from models import config
from models.runtime.checkpoint import Network
from models.training import loop


class Line(Network):
    """y = a x."""

    def __init__(self, slope: float = 0.0):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([slope]))

    def forward(self, x):
        return self.a * x


class Points:
    """Fourteen points on y = 2 x; the one at `bad` is not a number."""

    def __init__(self, bad: int | None = None):
        self.x = torch.linspace(-1, 1, 14)
        self.y = 2 * self.x
        self.names = [f"point{i}" for i in range(14)]
        self.seen: list[list[int]] = []
        if bad is not None:
            self.y = torch.where(torch.arange(14) == bad, torch.nan, self.y)

    def batches(self, index_lists, epoch=0):
        for indices in index_lists:
            self.seen.append(indices)
            yield {"x": self.x[indices], "y": self.y[indices]}


def objective(networks, batch, noise):
    """The mean squared error at places that are jittered, so that a wrong order of the noise shows."""
    x = batch["x"] + 0.1 * noise.normal("jitter")
    loss = (networks["line"](x) - batch["y"]).square().mean()
    return {"line": loss}, {"loss": loss}


COURSE = {
    "epochs": 6,
    "batch_size": 4,
    "learning_rate": 0.1,
    "milestones": (4,),
    "gamma": 0.1,
    "average": 0.9,
    "start": None,
}


TRAIN = {
    "seed": 0,
    "workers": 0,
    "accumulate": 1,
    "checkpointing": False,
    "validate_every": 2,
    "sample_every": 3,
    "save_every": 1e9,
}


def make(
    folder,
    *,
    source=None,
    objective=objective,
    network=None,
    settings=None,
    fixed=(),
    facts=None,
    config_text=None,
    **changes,
):
    """A trainer of a line; `changes`: of COURSE and TRAIN."""
    assert changes.keys() <= COURSE.keys() | TRAIN.keys()
    course = config.Course(**{key: changes.get(key, value) for key, value in COURSE.items()})
    train = config.AnyTraining(**{key: changes.get(key, value) for key, value in TRAIN.items()})
    network = network or Line()
    optimizer = torch.optim.Adam(p for p in network.parameters() if p.requires_grad)
    return loop.Trainer(
        folder,
        {"line": network},
        {"line": optimizer},
        objective,
        source or Points(),
        Points(),
        course=course,
        train=train,
        learning_rates={"line": course.learning_rate},
        settings=settings or vars(course) | vars(train),
        fixed=fixed,
        facts=facts,
        config_text=config_text,
        picture=lambda networks: np.full((4, 6), 0.5),
    )


def contents(folder: Path) -> dict:
    """Everything that must not depend on interruptions."""
    newest = sorted(folder.glob("state_*.pt"))[-1]
    return {
        "state": torch.load(newest, weights_only=True),
        "log": (folder / "log.csv").read_bytes(),
        "weights": (folder / "weights.safetensors").read_bytes(),
        "best": (folder / "best.safetensors").read_bytes(),
    }


def same(a, b) -> bool:
    """Whether two nested dictionaries and lists hold the same, to the bit; NaN is NaN."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return a == b


class Killed(BaseException):
    """As kill -9 would: nothing runs after it."""
