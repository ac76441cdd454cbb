"""A component's door to its neighbours: the one interface that trainer, stub, simulator and tests drive.

Nothing here blocks but `receive` with a wait. A mailbox belongs to one thread.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mach.messages import Letter, Message


@dataclass(slots=True)
class Counts:
    """What went through a mailbox since it was opened. Keys of `sent` and `received` are message kinds
    (`activation`, `target`, `gradient`), keys of `dropped` are reasons (`bus/wire.py`, `bus/edge.py`)."""

    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class EdgeView:
    """One edge as its own end sees it, for status and logs."""

    peer: str
    role: str
    """`child` or `parent`: what the peer is to us."""
    state: str
    """`knocking` (no answer yet), `open`, `silent` (unanswered past the time-out), `closed` (after a BYE)."""
    incarnation: int | None
    """The peer's, once heard."""
    in_flight: int
    """Activations unanswered (0 on the child's end)."""
    window: int
    version: int | None
    """Newest version heard from the peer."""
    heard_s: float | None
    """Seconds since the peer was last heard, None if never."""


class Mailbox(Protocol):
    """What a component sees of the bus.

    The loop that drives it: `for letter in mailbox.receive(): …; if mailbox.room(child): mailbox.send(child, …)`.
    """

    counts: Counts

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        """Letters that have come, in order per sender; waits up to `wait_s` for a first one. Also knocks at
        silent children and gives timed-out places in windows back, so call it every turn."""
        ...

    def room(self, child: str) -> bool:
        """Whether an activation sent to `child` now would fit into the window of an open edge."""
        ...

    def send(self, peer: str, message: Message) -> bool:
        """Send without blocking. False: not sent and counted in `counts.dropped`, since the peer is gone or slow.

        Raises:
            ValueError: an activation without `room`, or a peer that is no neighbour: the caller's mistake.
        """
        ...

    def edges(self) -> Mapping[str, list[EdgeView]]:
        """Every edge, by peer; a peer may be child and parent at once."""
        ...

    def bye(self) -> None:
        """Tell every child that nothing more will be asked. Answers to parents go on."""
        ...

    def parents_left(self) -> bool:
        """Whether some parent has been heard of and has not said BYE."""
        ...

    def now(self) -> float:
        """Seconds on the clock that stamps ages: monotonic, or virtual."""
        ...

    def close(self) -> None:
        """Say BYE where it was not said, wait up to a second for its acknowledgement, release everything."""
        ...
