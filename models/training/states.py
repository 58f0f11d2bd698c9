"""What a training's states hold, and whether a state belongs to the training that is to go on from it.

loop.Trainer saves and loads them; runtime/checkpoint.py writes and reads the files state_<step>.pt.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.files import UserError
from ..runtime.processes import say

STATE_ENTRIES = {"settings", "facts", "progress", "networks", "ema", "optimizers"}  # what a state_<step>.pt holds
# settings that states of earlier versions do not name, with what those versions did
EARLIER = {
    "unet.condition": "plain",
    "ldm.condition": "plain",
    "lcm.condition": "plain",
    "distill.path": "teacher",
}


@dataclass
class Progress:
    """Where a training stands. All of it is stored in its states."""

    step: int = 0  # updates done or skipped
    epoch: int = 0  # epochs finished
    offset: int = 0  # images of the running epoch already seen
    skipped: int = 0  # batches that were not finite
    best: float = math.inf  # lowest validation loss
    sums: dict = field(default_factory=dict)  # name -> sum over this epoch of the batch's loss times its images
    counted: int = 0  # images in those sums
    rows: list = field(default_factory=list)  # of log.csv, one per epoch


def check(
    state: dict, path: Path, settings: dict[str, object], facts: dict[str, object], fixed: tuple[str, ...]
) -> None:
    """Raise UserError if a state is not of this training; report the settings that have changed since, and may.

    state: read from `path`. settings, facts, fixed: those of loop.Trainer, as they are now.
    """
    # first whether it is a state of this version at all
    if isinstance(state, dict) and "identity" in state:
        raise UserError(
            f"{path} was written by an earlier version, which this one does not go on from; finish it "
            f"there, or train into another folder (runs=...), "
            f"with {path.parent / 'weights.safetensors'} as its start"
        )
    if not isinstance(state, dict) or STATE_ENTRIES - state.keys():
        raise UserError(
            f"{path} is not a state of these trainings; move it away, or train into another folder (runs=...)"
        )

    # settings and facts are compared alike; every refusal comes before the first report of a change
    before = {**state["settings"], **state["facts"]}
    now = {**settings, **facts}
    for key, value in EARLIER.items():
        if key in now:
            before.setdefault(key, value)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    for key in changed:
        if _is_fixed(key, fixed) or key in state["facts"] or key in facts:
            raise UserError(
                f"{path} was trained with {key}={shown(before.get(key))}, now it is "
                f"{shown(now.get(key))}; set it back, or train into another folder (runs=...)"
            )
    for key in changed:
        say(f"{key} changed from {shown(before.get(key))} to {shown(now.get(key))}")


def _is_fixed(key: str, fixed: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `fixed`, or lies below one."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in fixed)


def shown(value: object) -> str:
    """A setting's value as it is typed: null, true, [1, 2]."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown(item) for item in value)}]"
    return str(value)
