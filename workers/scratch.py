"""For commands that train in this process: a place for what nobody keeps, and an end as by Ctrl-C.

Knows no command. Laws: the place is gone when the command has ended, and of one that was killed when the next such
command, or a launch, begins. Who is told to end twice in a moment (`timeout` tells a process, and then its group) ends
once; who goes on all the same may be told again.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bus import address

ENDS = (signal.SIGTERM, signal.SIGHUP)
MOMENT_S = 1.0
"""Signals within so many seconds of one that was heard are the same one."""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise a KeyboardInterrupt, the first in every MOMENT_S seconds: where that hits a finaliser
    Python drops it. A SIGHUP that is ignored, as by `nohup`, stays so.
    """
    earlier = {number: signal.getsignal(number) for number in ENDS}
    heard = {number for number in ENDS if number != signal.SIGHUP or earlier[number] != signal.SIG_IGN}
    told: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not told or now - told[-1] >= MOMENT_S:
            told.append(now)
            raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in () if told else heard:
            signal.signal(number, earlier[number])


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder. In the temporary directory, not where sockets lie: that may be small."""
    address.sweep()
    folder = address.make_directory(address.temporary())
    try:
        yield folder
    finally:
        address.remove(folder)
