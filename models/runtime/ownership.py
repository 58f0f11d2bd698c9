"""What a script writes never takes the place of a file that somebody else made.

A script knows its own files by the record that it leaves beside them. Everything here is asked before the work begins.
"""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .files import WRONG_PLACE, MachineError, UserError


def refuse_foreign(results: Iterable[Path], inputs: Iterable[Path], own: Iterable[Path], setting: str) -> None:
    """Raise UserError if a file that is about to be written is one that the run reads, or one that nobody knows to be
    its own.

    results: the files to be written. inputs: the files that the run reads, which are refused by whatever name or link
    they are reached. own: the files that earlier runs of the script have written by their own record; they may be
    replaced. setting: the setting that names the place of the results, for the remedy.
    """
    # a link that leads nowhere is a file of somebody's too
    existing = {path: _identity(path) for path in results if os.path.lexists(path)}
    if not existing:
        return

    # Inputs by the file itself, whatever it is called here. Of a hundred thousand only those that are in the way are
    # kept. Own files by the path that the record gives.
    in_the_way = set(existing.values())
    read = {identity for identity in map(_identity, inputs) if identity in in_the_way}
    known = {os.path.abspath(path) for path in own}
    for path, identity in existing.items():
        if identity in read:
            raise UserError(
                f"{path} is an input of this run, and its result would take that place; "
                f"give the results another folder with {setting}="
            )
        if os.path.abspath(path) not in known:
            raise UserError(
                f"{path} is there already and no record says that this script wrote it; "
                f"give the results another folder with {setting}=, or move that file away"
            )


def require_writable(folder: str | Path) -> None:
    """Raise UserError if nothing can be written into a folder, or if it cannot be made. Nothing is left behind."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]  # the deepest first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # asked by doing: permission bits tell little about read-only mounts and network file systems
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error_type = UserError if error.errno in WRONG_PLACE else MachineError
        raise error_type(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            # only the folders made here; one that somebody has filled meanwhile does not go
            for path in missing:
                path.rmdir()


def _identity(path: str | Path) -> tuple:
    """The same for two paths of one file, whatever links, letter cases or dots lie between them."""
    try:
        status = os.stat(path)
    except OSError:  # a link that leads nowhere
        return (os.path.abspath(path),)
    return status.st_dev, status.st_ino  # device and file number
