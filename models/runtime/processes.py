"""The processes that torchrun started, working as one. In a run of one process, everything here is the identity.

Image i of a batch belongs to process i % world_size(). Any batch size on any number of processes gives what one process
gives with it, up to the rounding of sums. This is kept by choice, since a paper's batch size then holds on any machine;
it costs `shard`, `set_batch_weight` and the filling in `all_gather_batch`, which a batch size that the processes must
divide would save.

Gradients are summed here, in buckets after the backward pass, and not by torch's DistributedDataParallel, which would
overlap the two. That expects one forward and one whole backward pass a step, and averages over processes. Our
adversarial step runs the discriminator three times and goes backward twice, each time to the weights of one network
only (`backward(inputs=...)`); micro-batches and processes weigh what they hold of the batch. Wrappers, `no_sync` and a
factor against the averaging would be added, and the sums below would stay for the codebook, the batch normalisation and
the logged values. What overlapping would hide, by arithmetic: the 1.5 GB of the U-Net's gradients take some 7 ms over
NVLink (400 GB/s), a quarter of a second over a network of 100 Gbit/s.
"""

import os
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from .entry import alone
from .files import MachineError, sweep

TIMEOUT = timedelta(days=1)  # of an exchange; long, as torchrun itself ends all processes when one fails
BUCKET_NUMBERS = 1 << 24  # summed in one exchange
BACKENDS = ("gloo", "nccl")  # names by which an exchange's error is told from other RuntimeErrors


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def say(text: str) -> None:
    """Print a line to stderr, from the first process only, without tearing a progress bar."""
    if rank() == 0:
        tqdm.write(text, file=sys.stderr)


@contextmanager
def joined():
    """The process group, if torchrun started several processes: nccl for tensors on GPUs, gloo for those on the CPU.

    Raises MachineError where another process has gone.
    """
    if alone():
        yield
        return

    # each process to its GPU, so that nccl uses that one; with more processes than GPUs some share one
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)

    try:
        yield
        # nobody leaves while another still saves: torchrun kills the rest 30 seconds after the first exit status
        barrier()
    except RuntimeError as error:
        if not any(name in str(error).lower() for name in BACKENDS):
            raise
        raise MachineError("another process has failed or was stopped (see its message)") from error
    dist.destroy_process_group()  # not after an error, where it might wait for the others for ever


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        # through gloo, which holds up the program; nccl's own barrier may hold up only the GPU
        dist.all_reduce(torch.zeros(1))


# --- A batch and its shards ----------------------------------------------------------------------------------------


def shard(size: int) -> tuple[list[int], float]:
    """(this process's places in a batch of `size` images, the weight of these images: 1 or 0).

    If a batch has fewer images than there are processes, each surplus process computes one image again, with weight 0,
    because every process must take part in every exchange.
    """
    # interleaved, so that shards differ by one image at most
    places = list(range(rank(), size, world_size()))
    if places:
        return places, 1.0
    return [rank() % size], 0.0


def set_batch_weight(networks: Iterable[nn.Module], weight: float) -> None:
    """Tell the layers that sum over the whole batch what this process's images weigh in it, as `shard` says.

    These layers, batch normalisation and codebook, have an attribute `batch_weight` and hand it to the sums below.
    """
    for network in networks:
        for module in network.modules():
            if hasattr(module, "batch_weight"):
                module.batch_weight = weight  # pyright: ignore[reportArgumentType]  (nn.Module's stubs know no floats)


def all_gather_batch(images: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """The whole batch (B, ...), in its order, from every process's shard (b, ...) of it. weight: as `shard` says."""
    if world_size() == 1:
        return images
    # a surplus process counts as 0 here: the image that it repeats is another's
    size = int(all_reduce_sum(torch.tensor(len(images), device=images.device), weight))

    # all shards filled up to the length of the longest, the first one: all_gather wants equal shapes
    longest = -(-size // world_size())  # rounded up
    filled = images.new_zeros(longest, *images.shape[1:])  # (longest, ...)
    filled[: len(images)] = images
    shards = [torch.empty_like(filled) for _ in range(world_size())]
    dist.all_gather(shards, filled)

    # image i of the batch is image i // world_size() of shard i % world_size(); what was filled in comes last
    interleaved = torch.stack(shards, 1).flatten(0, 1)  # (longest * world_size, ...)
    return interleaved[:size]


# --- Exchanges -----------------------------------------------------------------------------------------------------


class _AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, tensor):
        # all_reduce writes in place, and only into contiguous memory
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _AllReduceSum.forward(ctx, gradient)


def all_reduce_sum(tensor: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """The sum over processes of tensor * weight, the same to the bit on all of them; differentiable."""
    if world_size() == 1:
        return tensor
    if weight != 1.0:
        tensor = (tensor * weight).to(tensor.dtype)  # integers stay integers, as they are in the other processes
    return _AllReduceSum.apply(tensor)


def all_reduce_tensors(tensors: list[torch.Tensor]) -> None:
    """Replace tensors of one type, in place, by their sums over all processes; many small ones share an exchange."""
    if world_size() == 1:
        return

    # consecutive tensors share a bucket until it is full
    buckets: list[list[torch.Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or tensor.numel() > room:
            buckets.append([])
            room = BUCKET_NUMBERS
        buckets[-1].append(tensor)
        room -= tensor.numel()

    # one exchange a bucket: for small tensors the wait costs more than the transfer
    for bucket in buckets:
        numbers = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(numbers)
        sums = numbers.split([tensor.numel() for tensor in bucket])
        for tensor, total in zip(bucket, sums):
            tensor.copy_(total.view_as(tensor))


def all_reduce_max(*numbers: float) -> list[float]:
    """Each number's maximum over all processes."""
    if world_size() == 1:
        return list(numbers)
    # on the CPU, so by gloo: no process waits for its GPU
    maxima = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def all_gather_objects(value: Any) -> list:
    """Every process's value, by rank; pickled, so for small things."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite every process's tensors with the first process's."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor, 0)


def tidy(*folders: Path) -> None:
    """Remove what killed processes left in these folders, before any process of this run writes there."""
    if rank() == 0:
        for folder in folders:
            sweep(folder)
    barrier()
