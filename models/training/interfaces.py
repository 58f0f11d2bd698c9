"""What a training and the loop know of each other: the data, the objective, and the random numbers that it is given."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from ..runtime import seeding


class Source(Protocol):
    """Training or validation data: items by index, in batches."""

    names: list[str]

    def batches(self, index_lists: list[list[int]], epoch: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """For each list of indices its items, stacked on the first axis, as they are in this epoch."""
        ...


class Noise:
    """Random numbers for some images of a batch, as a function of (seed, step, name).

    They are drawn for the whole batch, and those of `places` are picked: an image's noise does not depend on how the
    batch is divided among processes and micro-batches.
    """

    def __init__(self, seed: int, step: int | str, batch_size: int, places: list[int], device: torch.device):
        self.key = f"{seed}/{step}"
        self.batch_size = batch_size
        self.places = places
        self.device = device

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Standard normal numbers (len(places), *shape)."""
        drawn = torch.randn(self.batch_size, *shape, generator=self._generator(name))
        return drawn[self.places].to(self.device)

    def integers(self, name: str, high: int) -> torch.Tensor:
        """Uniform integers 0 to high - 1, (len(places),)."""
        drawn = torch.randint(high, (self.batch_size,), generator=self._generator(name))
        return drawn[self.places].to(self.device)

    def _generator(self, name: str) -> torch.Generator:
        # the name keeps apart the draws of one step, such as timestep, noise and offset
        return seeding.generator(f"{self.key}/{name}")


# objective(networks, batch, noise) -> (phase -> loss to minimise, name -> value to log); all are means over the batch
Objective = Callable[[dict, dict, Noise], tuple[dict, dict]]
