"""What the scripts share. Each file may import only from lower floors (README, "The tree")."""
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

if not sys.stderr.isatty():  # progress bars in a log file: a line now and then
    os.environ.setdefault("TQDM_MININTERVAL", "20")


class UserError(Exception):
    """A mistake of the person at the keyboard: one line that names the thing and the remedy, exit status 2."""


@contextmanager
def replacing(path: str | Path):
    """A temporary file beside `path` that takes its place when the block ends without an error: the way every file is written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
