"""How a script starts and ends: its place among the processes of torchrun, threads, signals, exit status."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .files import UserError

RANK = int(os.environ.get("RANK", 0))  # which of torchrun's processes this is
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
# Rounds that an idle thread of GNU OpenMP waits busily for the next piece of work, instead of 300,000. Where a core is
# shared with another program, threads that wait hold up the one they wait for: 19 s an X-ray with its 300,000, 5 s so.
SPIN_COUNT = "20000"
WAIT_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # by which a user says it
BAR_INTERVAL = "20"  # seconds between a progress bar's lines in a log file
# How torch, its allocator for the CPU, and OpenCV say that memory has run out; NumPy raises MemoryError.
OUT_OF_GPU_MEMORY = "out of memory"
OUT_OF_MEMORY = ("can't allocate memory", "Insufficient memory", "Cannot allocate memory")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def alone() -> bool:
    """Whether torchrun started no other processes beside this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


def limit_threads(count: int) -> None:
    """Give the libraries that compute so many threads in this process; 0: as many as they choose.

    They read these variables when they are imported, which happens after the settings are known.
    """
    if count == 0:
        return
    for name in THREAD_VARIABLES:
        os.environ[name] = str(count)
    if "torch" in sys.modules:  # in a notebook
        sys.modules["torch"].set_num_threads(count)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing finishes a step first."""


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main() and exit with its status: 2 after a user's mistake, 1 if the machine fails.

    Ctrl-C gives 130, SIGTERM 143. Each of them is explained in one line on stderr. Any other exception is a fault of
    the project and keeps its traceback.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", BAR_INTERVAL)  # tqdm reads it when it is imported, which main does
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT  # likewise read when torch is imported

    # an exception, so that every `finally` on the way out is run and no temporary file stays
    def terminated(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        status = _run_and_explain(main)
    finally:
        # a notebook or a test goes on after this; one of several processes is about to leave
        signal.signal(signal.SIGTERM, before if alone() else signal.SIG_IGN)
    if alone():
        raise SystemExit(status)
    # Under torchrun Python's own end is left out: now and then a thread that a library left running aborts the process
    # there, and torchrun would report that instead of our status.
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _run_and_explain(main: Callable[[], int | None]) -> int:
    """main()'s exit status, or that of the error which ended it, which is explained in one line."""
    try:
        return _run_to_the_last_word(main)
    except UserError as error:
        _complain(str(error))
        return error.status
    except KeyboardInterrupt as error:
        _complain("stopped; the same command goes on")
        # a shell's convention for a command that a signal ended
        return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    except Exception as error:
        # only the machine's failures become one line; a fault of the project keeps its traceback
        explanation = _explain_machine(error)
        if explanation is None:
            raise
        _complain(explanation)
        return 1


def _run_to_the_last_word(main: Callable[[], int | None]) -> int:
    """main()'s exit status, when all that it printed has been written; that a disk is full shows only then."""
    try:
        status = main() or 0
    except SystemExit as stop:  # --help
        status = stop.code if isinstance(stop.code, int) else 0
    sys.stdout.flush()
    return status


def _explain_machine(error: Exception) -> str | None:
    """What to say of an error of the machine, '' if nobody reads the output any more; None if it is no such error."""
    text = str(error)

    # nobody reads any more (`| head`), or the disk is full: what is left in the buffer has no place to go
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return ""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        _drop_output()
        return f"cannot write {error.filename or 'the output'}: {error.strerror}"

    # memory: PyTorch has one type for the GPU's, a plain RuntimeError for the CPU's, hence the words
    if OUT_OF_GPU_MEMORY in text and isinstance(error, RuntimeError):
        return (
            "out of GPU memory; lower the batch_size that this script reads (--help), raise train.accumulate, "
            "or set train.checkpointing=true"
        )
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return (
            "out of memory; lower the batch_size that this script reads (--help), the size of the images "
            "or that of the networks"
        )
    return None


def _drop_output() -> None:
    """Let what is still to be written to stdout vanish, or Python would try again at its end and fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    """One line on stderr, with the script's name and, of several processes, this one's number."""
    if not text:
        return
    process = f" (process {RANK})" if RANK else ""
    with suppress(OSError):  # stderr may be what has failed
        print(f"{Path(sys.argv[0]).name}{process}: {text}", file=sys.stderr, flush=True)
