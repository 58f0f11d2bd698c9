"""Whose a training's folder is: one training's at a time, and none's that would overwrite a result.

Two trainings in one folder would mix their logs and states, and the first one's result would be lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..runtime import processes
from ..runtime.files import UserError

try:
    import fcntl
except ImportError:  # Windows has another kind of locks
    fcntl = None

LOCK = ".lock"  # empty file that carries the lock; it stays in the folder, as only the lock counts
# What a training writes before its first state, and how each of these files begins.
RECORDS = {"config.yaml": b"runs:", "log.csv": b"epoch,step,"}
RESULTS = ("weights.safetensors", "best.safetensors")  # what a fresh start would overwrite


@contextmanager
def owned(folder: Path, start_key: str) -> Iterator[None]:
    """Own a training's folder until the block ends; the first process does it for all.

    start_key: the setting that names the weights a training starts from, for the message.
    Raises UserError if another training is at work in the folder, if the folder cannot be written, or if it holds
    weights without a state to go on from, or somebody else's file where a training's would be.
    """
    # the processes of one training share the folder, so only one may ask for the lock
    if processes.rank() > 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a")  # to append: the file of a running training is not touched
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None

    # locked first, so that no running training writes what the other checks look at
    with file:
        lock(file, folder)
        refuse_leftovers(folder, start_key)
        refuse_foreign(folder)
        yield


def refuse_foreign(folder: Path) -> None:
    """Raise UserError if a record that a new training would write over is none of a training's."""
    if any(folder.glob("state_*.pt")):
        return
    for name, beginning in RECORDS.items():
        path = folder / name
        if path.exists() and not (path.is_file() and path.read_bytes()[: len(beginning)] == beginning):
            raise UserError(
                f"{path} is there already and no training wrote it; move it away, or train into another folder "
                "(runs=...)"
            )


def lock(file: IO, folder: Path) -> None:
    """Lock an open file until it is closed or the process ends, however it ends.

    The lock is POSIX's, which belongs to the process: forked processes that load images do not keep it when this one is
    killed, as they would one of flock. Where there are no locks (Windows, some network file systems), that is said, and
    training goes on.
    """
    if fcntl is None:
        processes.say(f"note: no file locks on this system; let no other training run in {folder}")
        return
    try:
        # LOCK_NB: a second training is refused at once, it does not wait its turn
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        raise UserError(
            f"another training is at work in {folder}; wait for it to end, or train into another folder (runs=...)"
        ) from None
    except OSError as error:
        processes.say(f"note: no file locks here ({error.strerror}); let no other training run in {folder}")


def refuse_leftovers(folder: Path, start_key: str) -> None:
    """Raise UserError if there are weights but no state: a fresh start would overwrite them."""
    # weights never lie there without a state, unless somebody put or left them there (see loop.end_epoch)
    weights = [folder / name for name in RESULTS if (folder / name).is_file()]
    if weights and not any(folder.glob("state_*.pt")):
        raise UserError(
            f"{weights[0]} is a training's result, but no state_*.pt is there to go on from; "
            f"remove {folder} to start afresh, or train into another folder (runs=...), "
            f"from these weights with {start_key}={weights[0]}"
        )
