"""What a training draws beside its weights: sample pictures and the curves of its losses."""

from pathlib import Path

import numpy as np
import torch

from .. import images
from ..runtime.files import replacing

NOT_CURVES = {"epoch", "step", "learning_rate", "skipped"}  # columns of log.csv that are no losses
COUNTED_BY_EYE = 30  # epochs up to which each point of a curve gets a dot


def grid(*columns: torch.Tensor) -> np.ndarray:
    """Images (B, 1, H, W) in [-1, 1] side by side, one row per image of the batch -> (B H, columns W) in [0, 1]."""
    wide = torch.cat([column.float().cpu() for column in columns], 3)  # (B, 1, H, columns W)
    stacked = wide.flatten(0, 2)  # (B H, columns W)
    return images.to_unit(stacked).clamp(0, 1).numpy()


def draw_curves(rows: list[dict], path: Path) -> None:
    """Each logged loss against the epoch, training and validation together. rows: those of log.csv."""
    # Figure itself, not pyplot: no window, no state that outlives the picture. Imported here, since it takes a second.
    from matplotlib.figure import Figure

    names = loss_names(rows)
    if not names:  # every batch so far was skipped
        return

    # one panel beside the other for each loss; sizes in inches
    figure = Figure(figsize=(4 * len(names), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names)))
    for axes, name in zip(panels, names):
        for column, label in ((name, "training"), (f"validation_{name}", "validation")):
            # a row lacks what was not validated in its epoch, or where every batch was skipped
            known = [row for row in rows if column in row]
            if known:
                epochs = [row["epoch"] for row in known]
                values = [row[column] for row in known]
                axes.plot(epochs, values, label=label, marker="." if len(known) < COUNTED_BY_EYE else None)
        # losses fall over decades, which a logarithm shows; it has no place for one that has reached 0
        positive = all(row.get(name, 1) > 0 for row in rows)
        axes.set(title=name.replace("_", " "), xlabel="epoch", yscale="log" if positive else "linear")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def loss_names(rows: list[dict]) -> list[str]:
    """The columns that hold training losses, in the order in which they first appear."""
    names: list[str] = []
    for row in rows:
        for name in row:
            if name not in names and name not in NOT_CURVES and not name.startswith("validation_"):
                names.append(name)
    return names
