"""Straight-line code in virtual time: a body that waits in the middle of itself, as a process does, takes turns.

    fibre = Fibre(bus, "c0", body)      # body() runs in a thread of its own, and only while it has its turn
    bus.run([fibre, ...])               # waits in body's mailbox, and fibre.spend(seconds), are virtual

So what a process does (a life of training, a lock-step that waits for every letter, an examination at the end) runs
unchanged, and exactly one thread runs at any moment: the order of things is that of `VirtualBus.run`, never the
operating system's. Laws: an error in a body comes out of `VirtualBus.run`, noting whose it is; after `close` no thread
is left.
"""

import math
import threading
from collections.abc import Callable

from bus.virtual import VirtualBus


class Closed(BaseException):
    """Ends a body that is closed before its end. No `Exception`: a body that catches those must not catch this."""


class Fibre:
    """An actor whose turns are the stretches of `body` between two waits. Its mailbox must exist already."""

    def __init__(self, bus: VirtualBus, name: str, body: Callable[[], None]) -> None:
        self.name = name
        self.ended = False
        """Whether the body has come to its end."""
        self._bus = bus
        self._body = body
        self._busy_until = -math.inf
        self._wait = math.inf
        self._closing = False
        self._error: BaseException | None = None
        self._go, self._rested = threading.Lock(), threading.Lock()  # two batons, both taken: nobody runs yet
        self._go.acquire()
        self._rested.acquire()
        self._thread: threading.Thread | None = None
        life = bus.living(name)
        if life is None:
            raise ValueError(f"{name}: a fibre needs a mailbox on the bus before its first turn")
        life.rest = self._rest

    def turn(self, now: float) -> float:
        """Run the body on to its next wait; seconds until it can go on, infinite at its end."""
        if self.ended:
            return math.inf
        if now < self._busy_until:  # a new `run` began while it computes
            return self._busy_until - now
        self._switch()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._wait

    def spend(self, seconds: float) -> None:
        """Called by the body: it computes for so long, and reads no mail meanwhile."""
        if seconds > 0.0:
            self._busy_until = self._bus.clock.now + seconds
            self._rest(seconds)

    def pause(self) -> None:
        """Called by the body: it takes no more turns in this `VirtualBus.run`."""
        self._rest(math.inf)

    def close(self) -> None:
        """End the body where it waits, and its thread."""
        self._closing = True
        if self._thread is not None and not self.ended:
            self._switch()
        if self._thread is not None:
            self._thread.join()

    def _switch(self) -> None:
        """Give the body its turn and wait until it rests."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"fibre {self.name}", daemon=True)
            self._thread.start()
        self._go.release()
        self._rested.acquire()

    def _run(self) -> None:
        """The thread."""
        self._go.acquire()
        try:
            self._body()
        except Closed:
            self._closing = True
        except BaseException as error:
            error.add_note(self.name)
            self._error = error
        finally:
            self.ended = True
            self._wait = math.inf
            self._rested.release()

    def _rest(self, seconds: float) -> None:
        """Called in the body's thread: others have their turns now."""
        if self._closing:
            raise Closed
        if seconds <= 0.0:
            return
        self._wait = seconds
        self._rested.release()
        self._go.acquire()
        if self._closing:
            raise Closed
