"""How a script starts and ends: its place among the processes of torchrun, signals, exit status."""
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from .files import UserError

RANK = int(os.environ.get("RANK", 0))  # which of torchrun's processes this is


def alone() -> bool:
    """Whether torchrun started no other processes beside this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing finishes a step first."""


def run(main) -> None:
    """Run a script's main() and exit: 2 after a user's mistake, 1 where the machine fails, 130 / 143 after Ctrl-C / SIGTERM.

    Each of them in one line on stderr. One of several processes leaves without Python's own end, in which a thread that a library
    left running there now and then aborts the process, and torchrun reports that instead of the status.
    """
    def terminated(number, frame):
        raise Terminated

    def complain(text) -> None:
        process = f" (process {RANK})" if RANK else ""
        print(f"{Path(sys.argv[0]).name}{process}: {text}", file=sys.stderr)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        status = main()
    except UserError as error:
        complain(error)
        status = error.status
    except KeyboardInterrupt as error:
        complain("stopped; the same command goes on")
        status = 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        status = 1
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        complain("out of GPU memory; lower the batch_size that this script reads (--help), raise train.accumulate, or set "
                 "train.checkpointing=true")
        status = 1
    finally:
        signal.signal(signal.SIGTERM, before if alone() else signal.SIG_IGN)  # a notebook or a test goes on after this
    if alone():
        raise SystemExit(status or 0)
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status or 0)
