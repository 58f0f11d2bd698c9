"""Training states (state_<step>.pt): written so that a stop at any moment leaves a whole one, and read.

Nothing that a file contains is ever executed.
"""

import pickle
import zipfile
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from .files import UserError, replacing
from .weights_file import READ_ERRORS, disk_errors, first_line, refuse_bomb


def save_state(folder: str | Path, step: int, state: dict, keep: int = 2) -> Path:
    """Write <folder>/state_<step>.pt and remove old states. Returns its path.

    The newest `keep` states stay. States of later steps are removed too: they were damaged when this run began, or it
    would have gone on from them.
    """
    folder = Path(folder)
    # digits enough that sorting by name is sorting by step
    path = folder / f"state_{step:08d}.pt"
    with replacing(path) as temporary, disk_errors(), open(temporary, "wb") as file:
        torch.save(state, file)

    # old states go only when the new one is whole
    states = sorted(folder.glob("state_*.pt"))
    kept = [other for other in states if other <= path][-keep:]
    for other in states:
        if other not in kept:
            other.unlink()
    return path


def newest_state(folder: str | Path, warn=print) -> tuple[dict, Path] | None:
    """The newest undamaged training state of a folder and its path, or None if there is no state at all.

    A damaged file is reported through `warn` and the one before it is taken. Raises UserError if all are damaged: a
    training never starts afresh without saying so. Raises it too for an undamaged file that holds something else.
    """
    paths = sorted(Path(folder).glob("state_*.pt"), reverse=True)
    for path in paths:
        try:
            refuse_bomb(path)
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # every entry against its checksum
            if damaged:
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
            foreign = get_unsafe_globals_in_checkpoint(path)
            if foreign:
                raise UserError(
                    f"{path} asks for {foreign[0]}, which no training state needs; it was not opened, remove it"
                )
            # on the CPU: `Trainer.load` copies to where the networks are
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(f"{path} is not a training state of this project; remove it") from None
        except READ_ERRORS as error:
            warn(f"passing over {path}, which is damaged: {first_line(error)}")
            continue
        if not isinstance(state, dict):
            raise UserError(f"{path} is not a training state, but holds one {type(state).__name__}; remove it")
        return state, path
    # starting afresh here would overwrite what is left of a long training
    if paths:
        raise UserError(f"no training state in {folder} is whole; remove {folder} to start afresh")
    return None
