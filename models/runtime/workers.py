"""One function on many items, in processes beside each other."""
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import get_context

import cv2
import torch
from tqdm import tqdm

from .files import UserError

ALONE = 8           # up to so many items are done in this process: others take seconds to start


def parallel(function, items: list, label: str, most: int | None = None) -> list:
    """[function(item), ...] with a progress bar, in as many processes as there are cores; few items in this one.

    most: items at a time, where each takes much memory.
    """
    bar = partial(tqdm, total=len(items), desc=label, disable=not items)
    if len(items) <= ALONE:
        return [function(item) for item in bar(items)]
    try:
        parts = [items[start:start + (most or len(items))] for start in range(0, len(items), most or len(items))]
        return list(bar(result for part in parts for result in _pool().map(function, part)))
    except BrokenProcessPool:
        raise UserError(f"{label}: a process was killed; most likely the memory does not suffice") from None


@cache
def _pool() -> ProcessPoolExecutor:
    """The run's processes; to start them takes seconds, so all steps share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(cores, get_context("spawn"), _prepare_process)


def _prepare_process() -> None:
    """One thread each, and Ctrl-C is for the first process alone."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
