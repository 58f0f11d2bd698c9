"""How files are written, and the two kinds of errors that end a run in one line."""

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

# A place that cannot be written is a mistake of the person who named it; a disk that is full or fails is not.
WRONG_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
DAY = 24 * 3600  # seconds
READABLE_BYTES = 100  # of a file's name that its temporary file repeats


class UserError(Exception):
    """A mistake of the person at the keyboard: one line that names the thing and the remedy, exit status 2."""

    status = 2

    def __init__(self, message: object):
        super().__init__(printable(str(message)))


class MachineError(UserError):
    """The machine gave up, nobody made a mistake: one line, exit status 1."""

    status = 1


def printable(text: str) -> str:
    """The text with escapes for what no terminal or UTF-8 file takes.

    A file's name may hold any bytes; those that are not UTF-8 reach Python as lone surrogates, which print() refuses.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def replacing(path: str | Path):
    """A temporary file beside `path` that takes its place when the block ends without an error.

    Every file is written so. Missing folders are made. Raises UserError where `path` cannot be written, MachineError
    where the disk fails.
    """
    path = Path(path)
    # in the same folder, because a move between file systems would be a copy
    temporary = path.with_name(_temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.lstat()  # a name that the filesystem does not take is refused before the work, not after it
        temporary.touch()
        mode = temporary.stat().st_mode  # by the user's umask; what some libraries write, only its owner may read
        yield temporary
        temporary.chmod(mode)

        # the content is on the disk before the name stands for it, so that a crash leaves the old file or the new one
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error_type = UserError if error.errno in WRONG_PLACE else MachineError
        raise error_type(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: str | Path, pieces: Iterable[str]) -> None:
    """Write pieces of text as a file in UTF-8, one after the other. It is whole or not there, see `replacing`."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)


def _temporary_name(name: str) -> str:
    """.NAME.PROCESS.part; a long NAME, which may be as long as the filesystem takes, is cut and ends in a digest."""
    encoded = os.fsencode(name)
    if len(encoded) > READABLE_BYTES:
        start = encoded[:READABLE_BYTES].decode("utf-8", "ignore")  # without half a letter at the end
        digest = hashlib.sha256(encoded).hexdigest()[:16]
        name = f"{start}.{digest}"
    # the process's number tells `sweep` whether the writer still runs
    return f".{name}.{os.getpid()}.part"


def sweep(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    The file of a process that runs stays, unless it is a day old: then that number is another process's by now.
    """
    try:
        names = [name for name in os.listdir(folder) if name.startswith(".") and name.endswith(".part")]
    except OSError:  # no folder
        return
    for name in names:
        writer = re.fullmatch(r".+\.(\d+)\.part", name, re.DOTALL)  # a name may hold a line break
        if writer is None:  # somebody else's file
            continue
        path = Path(folder) / name
        with suppress(OSError):
            if not _other_process_runs(int(writer[1])) or time.time() - path.stat().st_mtime > DAY:
                path.unlink()


def _other_process_runs(process: int) -> bool:
    """Whether this is the number of another process that runs on this machine."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and belongs to somebody else
        return True
    return True
