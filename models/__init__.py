"""What the scripts share (README, "The tree")."""

import os
import sys


def _say_stopped(kind, error, trace) -> None:
    """Ctrl-C as one line; any other exception as Python shows it."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{os.path.basename(sys.argv[0])}: stopped; the same command goes on", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# The import of the settings takes a moment, in which runtime.entry has not yet taken over. Nothing of this is for
# notebooks or for programs that import the package: only for a script of the project that was started as such.
if sys.argv and sys.argv[0] in sys.orig_argv:
    _SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.dirname(os.path.abspath(sys.argv[0])) == _SCRIPTS:
        sys.excepthook = _say_stopped

from .runtime.files import UserError as UserError  # noqa: E402, after the hook, since it imports more
