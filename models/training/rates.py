"""Learning rates as functions of the epoch and of the log, so that no scheduler's state has to be stored."""

import math


def learning_rate(start: float, epoch: int, milestones: tuple[int, ...], gamma: float) -> float:
    """start * gamma ** (number of milestones that the epoch has reached)."""
    # torch's MultiStepLR, computed instead of counted: no scheduler's state to save, no way to step it too often
    reached = sum(epoch >= milestone for milestone in milestones)
    return start * gamma**reached


def plateaus(rows: list[dict], patience: int) -> int:
    """How often the validation loss has gone `patience` epochs without gain, by the rows of log.csv.

    Each such plateau begins anew after `patience` epochs, as with torch's ReduceLROnPlateau. Without validation losses
    the training loss counts.
    """
    # computed from the log, which every state holds, so that a resumed training falls when an unbroken one would
    key = "validation_loss" if any("validation_loss" in row for row in rows) else "loss"
    best = math.inf
    since = 0
    found = 0
    for row in rows:
        if row.get(key, math.inf) < best:
            best = row[key]
            since = row["epoch"]
        elif row["epoch"] - since >= patience:
            since = row["epoch"]
            found += 1
    return found
