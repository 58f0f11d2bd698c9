"""The objective's means over the validation images: validation calls the loss that training calls."""

import torch
from torch import nn

from ..runtime import processes
from ..runtime.device import autocast
from .batches import in_order
from .interfaces import Noise, Objective, Source


@torch.no_grad()
def validate(
    networks: dict[str, nn.Module],
    objective: Objective,
    data: Source,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    precision: str,
) -> dict[str, float]:
    """{"validation_<name>": mean over the images}, with noise that stays the same. Leaves the networks in eval mode."""
    for network in networks.values():
        network.eval()

    # whole batches go to the processes in turn: validation has no layer that needs the others' images
    count = len(data.names)
    index_lists = in_order(list(range(count)), batch_size)
    own_lists = index_lists[processes.rank() :: processes.world_size()]

    totals: dict[str, float] = {}
    # The noise goes by an image's place in the whole set: the same in every epoch, for any number of processes.
    # Each batch adds its share of the mean over the set.
    for indices, batch in zip(own_lists, data.batches(own_lists)):
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        noise = Noise(seed, "validation", count, indices, device)
        with autocast(device, precision):
            _, logged = objective(networks, on_device, noise)
        for name, value in logged.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(indices) / count

    gathered = processes.all_gather_objects(totals)  # the first process always has a batch, others may have none
    means = {}
    for name in gathered[0]:
        means[f"validation_{name}"] = sum(shard.get(name, 0.0) for shard in gathered)
    return means
