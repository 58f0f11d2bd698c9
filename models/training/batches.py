"""Which images a step sees, and how they are divided among processes and micro-batches.

The order of the images is a function of (seed, epoch); all processes compute the same, and load their own images of it.
"""

import math

import numpy as np

from ..runtime import processes


def data_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's images: a permutation of 0 to count - 1."""
    # NumPy mixes both numbers into one seed, so that neighbouring epochs and seeds have unrelated orders
    random = np.random.default_rng((seed, epoch))
    return random.permutation(count).tolist()


def in_order(indices: list[int], batch_size: int) -> list[list[int]]:
    """The indices in batches of a size, the last one with what is left."""
    starts = range(0, len(indices), batch_size)
    return [indices[start : start + batch_size] for start in starts]


def micro_batches(size: int, count: int) -> list[tuple[list[int], float]]:
    """For each of `count` micro-batches of a batch of `size` images: this process's places in the batch, and their
    weight, 1 or 0.

    The weight is 0 if there are fewer images than processes and this one only repeats another's (see
    processes.shard).
    """
    # as equal as whole images allow; with fewer images than micro-batches, some are empty and left out
    bounds = [round(number * size / count) for number in range(count + 1)]
    found = []
    for start, stop in zip(bounds, bounds[1:]):
        if start == stop:
            continue
        places_in_micro_batch, shard_weight = processes.shard(stop - start)
        places = [start + place for place in places_in_micro_batch]
        found.append((places, shard_weight))
    return found


def own_indices(indices: list[int], micro_batch_count: int) -> list[int]:
    """Those images of a batch that this process computes, micro-batch after micro-batch."""
    own: list[int] = []
    # the order in which loop.Trainer.gradients cuts the loaded batch up again
    for places, _ in micro_batches(len(indices), micro_batch_count):
        own += [indices[place] for place in places]
    return own


def micro_batch_size(batch_size: int, count: int) -> int:
    """How many images one process has of one of `count` micro-batches, at most."""
    images_of_all = math.ceil(batch_size / count)
    # the longest shard is the first process's, see processes.shard
    return math.ceil(images_of_all / processes.world_size())
