"""What the scripts share (README, "The tree")."""
import os
import sys

from .runtime.files import UserError as UserError

if not sys.stderr.isatty():  # progress bars in a log file: a line now and then
    os.environ.setdefault("TQDM_MININTERVAL", "20")
