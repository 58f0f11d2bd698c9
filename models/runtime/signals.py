"""SIGINT and SIGTERM noted instead of obeyed, so that a program ends where it can go on again."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from . import processes


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGINT or SIGTERM arrives and then holds its number; a second Ctrl-C stops at once.

    Under torchrun a second one does not: there each Ctrl-C arrives twice, from the terminal and from torchrun, which
    kills after 30 seconds.
    """
    received: list[int] = []

    # noted only: run_epoch finishes the step, saves and returns
    def note(number, frame):
        received.append(number)
        if processes.world_size() == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        # a notebook's or a test's own handlers go on after this
        for number, handler in before.items():
            signal.signal(number, handler)
