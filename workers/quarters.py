"""Where processes of a run find each other while it trains: its private directory, with the launcher's desk in it, and
the socket of the forkserver. Whoever removes them, as a clean-up of temporary files does, has them made again; where
that cannot be, it is said. Knows no member.
"""

from pathlib import Path

from bus.likeness import Likeness
from configs.errors import RunError
from workers import desk, forkserver
from workers.output import in_passing


class Quarters:
    """Those of one run."""

    def __init__(self, directory: Path, door: desk.Desk, called: str) -> None:
        """`called`: the run, as other commands know it."""
        self.trouble = ""
        """Why they cannot be made again, for people, and what to do; empty: they are there."""
        self._directory, self._desk, self._called = directory, door, called
        self._likeness = Likeness(directory, frozenset({desk.NAME}))

    def look(self) -> None:
        """See that they are there."""
        try:
            gone = self._likeness.look()
            self._desk.reopen()
            if forkserver.unheard():
                forkserver.warm()
        except (OSError, RunError) as error:
            why = str(error) if isinstance(error, RunError) else error.strerror
            trouble = (
                f"{self._directory}, the directory of sockets, is gone and cannot be made again ({why}): training goes "
                f"on, but nothing can be restarted; mach stop {self._called}, then mach resume {self._called}, mends it"
            )
            if not self.trouble:
                in_passing(f"mach: {trouble}")
            self.trouble = trouble
            return
        if gone or self.trouble:
            removed = "was removed, as by a clean-up of temporary files, and"
            in_passing(f"mach: {self._directory}, the directory of sockets, {removed} is made again; training goes on")
        self.trouble = ""

    def close(self) -> None:
        """Let go of them."""
        self._likeness.close()
