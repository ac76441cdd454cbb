"""Who has a run: the launcher that took its lock, and from then on stands in the lock's file.

    PID STARTED BOOT SINCE HOST     its number, when it began in ticks since the boot, which boot, when it took the
                                    lock, what its host or container calls itself
    CLOCK                           in a second line, which older versions do not read: the time namespace of SINCE

status.json tells it as well, but seconds later, when processes have been started, and until then it is an earlier
launcher's, or nobody's. Whether it has the run still is told by the lock, not by its number, which means nothing in
another container, and another process after a while. Knows no process but by number.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bus import address


@dataclass(frozen=True, slots=True)
class Holder:
    """A launcher, alive or not."""

    pid: int
    started: str
    boot: str
    since_s: float = field(default=0.0, compare=False)
    """When it took the lock, on the monotonic clock of the boot."""
    noted_at: float = field(default=0.0, compare=False)
    """The same in seconds since 1970, by the clock on the wall."""
    host: str = field(default="", compare=False)
    """What its host or container calls itself; empty: an older version has not noted it."""
    clock: str = field(default="", compare=False)
    """Which time namespace `since_s` is of; empty: the same."""

    @property
    def alive(self) -> bool:
        """Whether it still runs and can be seen from here, and is not another process with its number. One of another
        container cannot: that a launcher is gone is told by the lock alone.
        """
        return self.boot == address.boot() and address.started(self.pid) == self.started

    @property
    def where(self) -> str:
        """On HOST, where it cannot be seen from here, or that is another than this one; else nothing."""
        here = self.host == os.uname().nodename and self.alive
        return f" on {self.host}" if self.host and not here else ""

    @property
    def away(self) -> str:
        """Where it lives if it cannot be seen from here."""
        return f"on {self.host}, or in a container of it" if self.host else "in another container or on another host"


def note(lock: int) -> None:
    """Write into the open file of a lock that this process has it."""
    ours = os.getpid(), address.started(os.getpid()), address.boot(), f"{time.monotonic():.3f}", os.uname().nodename
    words = f"{' '.join(map(str, ours))}\n{address.clock()}\n".encode("ascii", errors="replace")
    with suppress(OSError):  # a full disk: the run itself will tell of it
        os.pwrite(lock, words, 0)
        os.ftruncate(lock, len(words))  # after the lines, not before: a reader takes the first two


def noted(lock: Path) -> Holder | None:
    """Who took a lock last; None if nobody did, or that cannot be read."""
    try:
        with lock.open(encoding="ascii") as file:
            pid, started, boot, since_s, *host = file.readline().split()
            at, clock = os.fstat(file.fileno()).st_mtime, file.readline().strip()
            return Holder(int(pid), started, boot, float(since_s), at, "".join(host), clock)
    except (OSError, ValueError):
        return None
