"""The launcher's clock, by which silence, deadlines and restarts are judged. Knows no process."""

import time
from collections.abc import Callable

AWAY_S = 1.0
"""A longer time between two looks: the launcher itself was stopped or starved, and nobody was silent meanwhile."""


class Clock:
    """Seconds since the launch that this launcher was there to see. Monotonic: nobody sets it back."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._began = self._looked = monotonic()
        self.now = 0.0

    def look(self) -> float:
        """Move on; by AWAY_S at most."""
        looked = self._monotonic()
        self.now += min(looked - self._looked, AWAY_S)
        self._looked = looked
        return self.now

    def elapsed_s(self) -> float:
        """All of it since the launch."""
        return self._monotonic() - self._began
