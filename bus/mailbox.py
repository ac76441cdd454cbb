"""A component's door to its neighbours: the one interface that trainer, stub, simulator and tests drive.

Nothing here blocks but `receive` with a wait. A mailbox belongs to one thread.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from bus.wire import Frames, Rejected
from mach.messages import Letter, Message

Role = Literal["child", "parent"]
"""What a peer is to us."""


@dataclass(slots=True)
class Counts:
    """What went through a mailbox since it was opened. Keys of `sent` and `received` are message kinds
    (`activation`, `target`, `gradient`), keys of `dropped` are reasons (`bus/wire.py`, `bus/edge.py`).
    """

    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """Of a mailbox whose messages meet faults on purpose (`bus/faults.py`): those that fired, by kind."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Of the messages sent, by peer: header and tensors as the codec left them, whichever lane they took."""


@dataclass(frozen=True, slots=True)
class EdgeView:
    """One edge as its own end sees it, for status and logs."""

    peer: str
    role: Role
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

    The loop that drives it:
    `for letter in mailbox.receive(): …; if mailbox.room(child): mailbox.send(child, …)`.
    """

    counts: Counts

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        """Letters that have come, in order per sender; waits up to `wait_s` for a first one. Also knocks at
        silent children and gives timed-out places in windows back, so call it every turn.
        """
        ...

    def room(self, child: str) -> bool:
        """Whether an activation sent to `child` now would fit into the window of an open edge."""
        ...

    def in_flight(self, child: str) -> Collection[int]:
        """Ids of the activations that `child` was sent and that may still be answered."""
        ...

    def send(self, peer: str, message: Message) -> bool:
        """Send without blocking. False: not sent, and counted in `counts.dropped` by reason: the peer is gone
        (`unreachable`, `closed`), no longer waits for it (`forgotten`), or it is `too-large`.

        Raises:
            ValueError: an activation without `room` or already in flight, a peer that is no such neighbour,
                a tensor that cannot travel: the caller's mistake.
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

    def close(self, *, farewell: bool = True) -> None:
        """Say BYE where it was not said, wait up to a second for its acknowledgement, release everything.

        Without `farewell` at once and without a word, as by SIGKILL: for a life that failed and is expected back.
        """
        ...


class Peer(NamedTuple):
    """Where frames go to or come from. A connection of a parent belongs to one incarnation of it."""

    role: Role
    name: str
    incarnation: int = 0


Parcel = tuple[Peer, Frames | Rejected]
"""What has come from whom."""


class Transport(Protocol):
    """What carries frames between mailboxes: sockets, or virtual time. Knows nothing of what they say.

    The seam for faults: a `Relay` around it drops, delays, doubles or spoils what is sent.
    """

    farewell_s: float
    """How long a closing mailbox may wait for acknowledgements."""
    inline_cap: int
    """Tensors of more bytes than this travel in frames of their own."""

    def now(self) -> float:
        """Seconds on this transport's clock."""
        ...

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Send without blocking; False if there is no connection to the peer."""
        ...

    def receive(self) -> list[Parcel]:
        """What has come, at most a few hundred at a time, in order per peer. Never blocks."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait until something comes, at most this long. False: time does not pass by waiting here."""
        ...

    def reach(self, child: str, *, anew: bool = False) -> bool:
        """Look for the child's address; True if a new connection to it was begun just now.

        `anew`: the connection there is may be broken without knowing it; replace it if it can be.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Relay:
    """A transport around another one that passes everything on. Faults override `send`; delays `receive`, too."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.farewell_s = inner.farewell_s
        self.inline_cap = inner.inline_cap
        self.now = inner.now
        """Seconds on the inner clock."""

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Pass on."""
        return self.inner.send(peer, frames)

    def receive(self) -> list[Parcel]:
        """Pass on."""
        return self.inner.receive()

    def wait(self, seconds: float) -> bool:
        """Pass on."""
        return self.inner.wait(seconds)

    def reach(self, child: str, *, anew: bool = False) -> bool:
        """Pass on."""
        return self.inner.reach(child, anew=anew)

    def close(self) -> None:
        """Pass on."""
        self.inner.close()


class MailboxRelay:
    """A mailbox around another one that passes everything on; tests and benchmarks override what they watch."""

    def __init__(self, inner: Mailbox) -> None:
        self.inner = inner
        self.counts = inner.counts

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        """Pass on."""
        return self.inner.receive(wait_s)

    def room(self, child: str) -> bool:
        """Pass on."""
        return self.inner.room(child)

    def in_flight(self, child: str) -> Collection[int]:
        """Pass on."""
        return self.inner.in_flight(child)

    def send(self, peer: str, message: Message) -> bool:
        """Pass on."""
        return self.inner.send(peer, message)

    def edges(self) -> Mapping[str, list[EdgeView]]:
        """Pass on."""
        return self.inner.edges()

    def bye(self) -> None:
        """Pass on."""
        self.inner.bye()

    def parents_left(self) -> bool:
        """Pass on."""
        return self.inner.parents_left()

    def now(self) -> float:
        """Pass on."""
        return self.inner.now()

    def close(self, *, farewell: bool = True) -> None:
        """Pass on."""
        self.inner.close(farewell=farewell)
