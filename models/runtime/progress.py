"""Progress bars that show a count within seconds, also where their lines go into a log file and are far apart."""

from collections.abc import Iterator

from tqdm import tqdm

FIRST = 2.0  # seconds to the first line that counts; the later ones keep tqdm's interval, see entry.py


class Bar(tqdm):
    """As tqdm."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        # a bar that is not shown has no interval
        if not self.disable:
            self.later = self.mininterval
            self.mininterval = min(FIRST, self.mininterval)

    def __iter__(self) -> Iterator:
        # By `update`, which tqdm's own loop leaves out where its first interval is not over.
        try:
            for item in self.iterable or ():
                yield item
                self.update()
        finally:
            self.close()

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        if shown:
            self.mininterval = self.later
        return shown
