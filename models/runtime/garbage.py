"""Python's collector of cyclic garbage, kept from objects that stay.

It looks through all objects again and again as they come to be hundreds of thousands: a fifth of the time that making
them takes, be they the entries of a record or what a library's import leaves.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """The collector rests meanwhile. Also a decorator."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """The collector rests meanwhile, and never looks at what was made. For imports of large libraries, which stay."""
    with without_collection():
        yield
        gc.freeze()
