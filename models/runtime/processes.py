"""The processes that torchrun started, working as one. Alone, everything here is the identity.

Image i of a batch belongs to process i % world_size(); each is told its places in the batch, so that what they compute together does not
depend on their number.
"""
import os
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from .entry import alone
from .files import MachineError, sweep

PATIENCE = timedelta(days=1)  # with a slower process; torchrun itself ends all when one fails
BUCKET = 1 << 24              # numbers that are sent together
_counted = True               # whether `all_reduce_sum` takes this process's numbers


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def say(text: str) -> None:
    """A line on the screen, from the first process only, without tearing a progress bar."""
    if rank() == 0:
        tqdm.write(text, file=sys.stderr)


@contextmanager
def joined():
    """The group of processes that torchrun started, if it did: nccl for tensors on GPUs, gloo for those on the CPU."""
    if alone():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
        barrier()  # nobody leaves while another still saves: torchrun kills the others 30 seconds after the first one's exit status
    except RuntimeError as error:
        if not any(backend in str(error).lower() for backend in ("gloo", "nccl")):
            raise
        raise MachineError("another process has failed or was stopped (see its message)") from error
    dist.destroy_process_group()  # not after an error, where it might wait for the others for ever


def barrier() -> None:
    """Wait here until every process has come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU: dist.barrier() would take a GPU and its memory where nccl is there


def share(size: int) -> tuple[list[int], bool]:
    """This process's places in a batch, and whether they count.

    Where there are fewer images than processes, the others repeat one, so that all take part in every exchange; it counts nothing.
    """
    mine = list(range(rank(), size, world_size()))
    return mine or [rank() % size], bool(mine)


@contextmanager
def counted(counts: bool):
    """Within, `all_reduce_sum` takes this process's numbers, or leaves them out."""
    global _counted
    _counted, before = counts, _counted
    try:
        yield
    finally:
        _counted = before


class _Total(torch.autograd.Function):
    """The sum over processes of a tensor, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, tensor):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        return _Total.forward(ctx, gradient)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the processes whose images count, the same to the bit on all of them; differentiable."""
    if world_size() == 1:
        return tensor
    return _Total.apply(tensor if _counted else tensor * 0)


def all_reduce_tensors(tensors: list[torch.Tensor]) -> None:
    """Replace tensors of one type by their sums over all processes, many in one exchange."""
    if world_size() == 1:
        return
    buckets: list[list[torch.Tensor]] = [[]]
    for tensor in tensors:
        if sum(other.numel() for other in buckets[-1]) + tensor.numel() > BUCKET and buckets[-1]:
            buckets.append([])
        buckets[-1].append(tensor)
    for bucket in filter(None, buckets):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
            tensor.copy_(part.view_as(tensor))


def all_gather_batch(part: torch.Tensor) -> torch.Tensor:
    """A batch (B, ...) put together again from all processes' shares of it."""
    if world_size() == 1:
        return part
    size = int(all_reduce_sum(torch.tensor(len(part), device=part.device)))
    filled = part.new_zeros(-(-size // world_size()), *part.shape[1:])
    filled[:len(part)] = part
    parts = [torch.empty_like(filled) for _ in range(world_size())]
    dist.all_gather(parts, filled)
    return torch.stack(parts, 1).flatten(0, 1)[:size]


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Give all processes the first one's tensors."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def all_reduce_max(*numbers: float) -> list[float]:
    """Each number's largest value over all processes."""
    if world_size() == 1:
        return list(numbers)
    votes = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return votes.tolist()


def all_gather_objects(value) -> list:
    """Every process's value, by rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def tidy(*folders: Path) -> None:
    """Remove what killed processes left in these folders, before any process of this run writes there."""
    if rank() == 0:
        for folder in folders:
            sweep(folder)
    barrier()
