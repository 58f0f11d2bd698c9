"""How tools/train_lungs.py and tools/train_refiner.py train their network.

AdamW, a learning rate that rises and then falls by half a cosine, gradients of bounded norm, and an average of the
weights, which is what is kept. By the loop of all trainings: the same command goes on where it was stopped.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models import config
from models.training import interfaces, loop

MAX_NORM = 1.0  # gradients above are scaled down to it
SAVE_EVERY = 60  # seconds
NEVER = 10**9  # epochs between sample pictures, of which there are none


@dataclass(frozen=True)
class Plan:
    """steps: updates in all, rounded up to whole epochs. longest_epoch: updates after which the log and the weights are
    written; the samples never end. batch: samples in an update. rate: the highest learning rate. last_rate: share of it
    that is added all along, so that the last steps still move. warmup: steps in which the rate rises. decay: of
    AdamW's weights. average: decay of the averaged weights, per step."""

    steps: int
    longest_epoch: int
    batch: int
    rate: float
    last_rate: float
    warmup: int
    decay: float
    average: float

    @property
    def epoch(self) -> int:
        """Updates in an epoch."""
        return min(self.steps, self.longest_epoch)

    @property
    def samples_an_epoch(self) -> int:
        return self.epoch * self.batch

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.epoch)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, from 0: a short rise, then half a cosine down."""
        steps = self.epochs * self.epoch
        rise = min(1, (step + 1) / self.warmup)
        angle = math.pi * min(step, steps) / steps  # 0 to pi
        fall = 0.5 + 0.5 * math.cos(angle)  # 1 to 0
        return self.rate * rise * (fall + self.last_rate)


class Trainer(loop.Trainer):
    """A training of one network by a plan."""

    def __init__(
        self,
        folder: Path,
        name: str,
        network: nn.Module,
        objective: interfaces.Objective,
        data: interfaces.Source,
        plan: Plan,
        validation_data: interfaces.Source | None = None,
        workers: int = 0,
        facts: dict[str, object] | None = None,
    ):
        """name: of the network, and of its loss, in what the objective is given and returns. facts: what must not
        change between start and going on."""
        course = config.Course(
            epochs=plan.epochs,
            batch_size=plan.batch,
            learning_rate=plan.rate,
            milestones=(),
            gamma=1.0,
            average=plan.average,
            start=None,
        )
        settings = config.AnyTraining(
            seed=0,
            workers=workers,
            accumulate=1,
            checkpointing=False,
            validate_every=1,
            sample_every=NEVER,
            save_every=SAVE_EVERY,
        )
        optimizer = torch.optim.AdamW(network.parameters(), plan.rate, weight_decay=plan.decay)
        super().__init__(
            folder,
            {name: network},
            {name: optimizer},
            objective,
            data,
            validation_data,
            course=course,
            train=settings,
            learning_rates={name: plan.rate},
            facts=facts,
        )
        self.plan = plan

    def rate(self, phase: str) -> float:
        return self.plan.rate_at(self.progress.step)

    def gradients(self, batch: dict, size: int) -> tuple[dict[str, float], float]:
        values, norm = super().gradients(batch, size)
        if norm > MAX_NORM:
            for parameter in self.parameters[self.main]:
                parameter.grad.mul_(MAX_NORM / norm)
        return values, norm

    def to_the_end(self) -> nn.Module:
        """The averaged network after all steps. SystemExit where the training stops before."""
        status = self.run()
        if status:  # stopped, or no finite loss: the loop has said why
            raise SystemExit(status)
        return self.exported()
