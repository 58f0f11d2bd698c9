"""What a simulated patient, drawn or from a CT, may have that most have not; without any a pair is what its seed alone
makes it."""

from dataclasses import dataclass

from .shoulder_ct import Shoulders


@dataclass(frozen=True, eq=False)
class Extras:
    """devices: devices of many kinds at their rates (devices.py), instead of a port or a letter in some. shoulders:
    those of a CT of neck and shoulders (girdle.py), instead of drawn ones. cartilage: calcified cartilage before drawn
    ribs (cartilage.py)."""

    devices: bool = False
    shoulders: Shoulders | None = None
    cartilage: bool = False


NOTHING = Extras()
