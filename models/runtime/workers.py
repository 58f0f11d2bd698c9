"""One function on many items, in processes beside each other."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context

import cv2
import torch

from .files import UserError
from .progress import Bar

WAITING = 64  # items for each process that are handed out ahead
FEW = 8  # up to this many items are done in this process, because starting the others takes seconds


def parallel(function: Callable, items: list, label: str, at_once: int | None = None) -> list:
    """[function(item), ...], as `stream` gives them."""
    return list(stream(function, items, label, at_once))


def stream(function: Callable, items: list, label: str, at_once: int | None = None) -> Iterator:
    """function(item) of each item, in their order, with a progress bar, from as many processes as there are cores.

    function and items are pickled. at_once: items in work at a time, where each takes much memory; None: so many that
    the processes are never idle. Memory does not grow with the number of items. Raises what function raises, and
    UserError where the system kills a process.
    """
    with Bar(total=len(items), desc=label, disable=not items) as bar:
        # few items: here
        if len(items) <= FEW:
            for item in items:
                yield function(item)
                bar.update()
            return

        # many items: a further one is handed out when the oldest is done
        room = at_once or WAITING * cores()
        waiting: deque[Future] = deque()
        try:
            for item in items:
                with _interrupts_ignored():  # the first calls start the processes, which inherit this
                    waiting.append(_pool().submit(function, item))
                if len(waiting) >= room:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        # the pool only knows that a process has gone; what ends one without an error is mostly a shortage of memory
        except BrokenProcessPool:
            raise UserError(f"{label}: a process was killed; most likely the memory does not suffice") from None
        finally:
            # after an error too: what has not begun is dropped
            for future in waiting:
                future.cancel()


@cache
def _pool() -> ProcessPoolExecutor:
    """The processes of a run, which all its calls share, because starting them takes seconds."""
    # spawned, not forked: a fork copies the locks of threads that it does not copy
    return ProcessPoolExecutor(cores(), get_context("spawn"), _prepare_process)


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # those that a cluster's scheduler gave to this job
    return os.cpu_count() or 1


@contextmanager
def _interrupts_ignored():
    """Ctrl-C reaches all processes and is for the first one alone; the others ignore it from their birth.

    While they import, seconds long, each would otherwise print a traceback.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_process() -> None:
    """One thread for each process; and Ctrl-C is for the first process alone, however the others were started."""
    # there is a process for each core already
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
