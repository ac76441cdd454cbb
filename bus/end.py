"""What both ends of an edge share: the peer's life, its sequence, ours, the story. See `bus/edge.py`.

Knows no socket, no clock and no tensor; `now` is an argument, in seconds. Laws: nothing is accepted twice, out
of order, or from an earlier life of the peer; every frame that is not accepted is counted under one `Fate`, or as
spoilt by whoever found it so.
"""

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, deque

from bus.mailbox import EdgeView, Peer, Role
from bus.rules import NO_RULES, Event, Fate, Rules, State, Taken, Terms
from bus.wire import Header, Kind, tag
from mach.messages import Age


class End(ABC):
    """What both ends share: state, the peer's life and sequence, our sequence, the story."""

    role: Role
    rules: Rules = NO_RULES

    def __init__(self, peer: str, terms: Terms, dropped: Counter[str]) -> None:
        self.peer = peer
        self.tag = tag(peer)
        self.address = Peer(self.role, peer)
        """Where its frames go: to its present life."""
        self.terms = terms
        self.window = terms.window
        self.dropped = dropped
        self.state = State.KNOCKING
        self.incarnation = 0  # the peer's, 0 before it was heard
        self.sequence = 0  # of the last frame that we sent
        self.version: int | None = None
        self.heard_at: float | None = None
        self.left = False  # we said bye
        self.told = False  # and it found a connection
        self.acknowledged = False  # and was answered, or the peer itself left
        self.story: deque[tuple[float, str, int]] = deque(maxlen=16)
        self._last = 0
        self._gaps: OrderedDict[int, None] = OrderedDict()  # counted as lost, and may still come
        self._spoilt = 0  # frames of the peer, since the last that was fresh, of which nobody can tell the sequence
        self._replies: list[Kind] = []

    def replies(self) -> list[Kind]:
        """Control frames to send now, each once."""
        replies, self._replies = self._replies, []
        return replies

    def awaits(self) -> bool:
        """Whether our bye has left and is not acknowledged."""
        return self.told and not self.acknowledged

    def note(self, now: float, what: str, number: int = 0) -> None:
        """Remember an event for the story."""
        self.story.append((now, what, number))

    def tell(self, now: float) -> str:
        """The last events of the edge, for an error's text."""
        events = ", ".join(f"{what} {number} {now - at:.3f} s ago" for at, what, number in self.story)
        return f"{self.role} {self.peer} is {self.state.value}; its story: {events or 'nothing yet'}"

    def in_flight(self) -> int:
        """Activations that left and are unanswered; 0 at a child's end."""
        return 0

    def greeted(self) -> int:
        """What our hello says that we have heard: the peer's life, 0 if it has not greeted us in it."""
        return 0 if self.state is State.KNOCKING else self.incarnation

    def view(self, now: float) -> EdgeView:
        """For status and logs."""
        heard = None if self.heard_at is None else now - self.heard_at
        incarnation = self.incarnation or None
        return EdgeView(
            self.peer,
            self.role,
            self.state.value,
            incarnation,
            self.in_flight(),
            self.window,
            self.version,
            heard,
        )

    def hear(self, header: Header, now: float) -> Taken | Fate | None:
        """The verdict on an inspected frame: a message that counts, a drop, or None for a control frame.

        Drops are counted here. Whoever calls sends `replies()` afterwards; a message that counts has none.
        """
        self.story.append((now, header.preamble.kind, header.id))
        verdict: Taken | Fate | None = None
        if header.preamble.incarnation == self.incarnation and header.sequence == self._last + 1:
            self._last = header.sequence  # nearly always
        else:
            verdict = self._fresh(header, now)
        if verdict is None:
            self.heard_at = now
            verdict = self._take(header, now)
        if isinstance(verdict, Fate):
            self._drop(verdict)
        return verdict

    def spoilt(self) -> None:
        """A frame has come from the peer that cannot be read, and was counted: its sequence is not lost as well."""
        self._spoilt += 1

    def age(self, taken: Taken, now: float) -> Age | None:
        """How old a message is that counts, if it answers one of ours."""
        return None

    @abstractmethod
    def _take(self, header: Header, now: float) -> Taken | Fate | None:
        """The verdict on a frame that is fresh."""

    @abstractmethod
    def _born(self) -> None:
        """Forget what belonged to the peer's earlier life."""

    def _fresh(self, header: Header, now: float) -> Fate | None:
        """Whether a frame is of the peer's present life, and next in its sequence."""
        if header.preamble.incarnation < max(self.incarnation, 1):  # lives begin with 1: a 0 is none
            return Fate.STALE
        if header.preamble.incarnation > self.incarnation:
            self.note(now, "incarnation", header.preamble.incarnation)
            self._born()
            self.incarnation, self.version = header.preamble.incarnation, None
            self.address = Peer(self.role, self.peer, self.incarnation)
            self._last = header.sequence - 1  # what it said before we listened is not lost
            self._gaps.clear()
            self._spoilt = 0
            self._step(Event.STRANGER)
        return self._next(header.sequence)

    def _next(self, sequence: int) -> Fate | None:
        if sequence <= self._last:
            was_lost = sequence in self._gaps
            self._gaps.pop(sequence, None)
            self._drop(Fate.LOST, -1 if was_lost else 0)  # each is counted once
            return Fate.REORDERED if was_lost else Fate.DUPLICATE
        missing, spoilt = sequence - self._last - 1, self._spoilt
        self._spoilt = 0
        self._drop(Fate.LOST, max(missing - spoilt, 0))
        if missing and not spoilt:
            for gap in range(max(self._last + 1, sequence - 64), sequence):
                self._gaps[gap] = None
            while len(self._gaps) > 64:
                self._gaps.popitem(last=False)
        self._last = sequence
        return None

    def _step(self, event: Event) -> None:
        if not self.left or event is Event.LEFT:
            self.state = self.rules.get((self.state, event), self.state)

    def _drop(self, fate: Fate, times: int = 1) -> None:
        if times:
            self.dropped[fate.value] += times
            if not self.dropped[fate.value]:
                del self.dropped[fate.value]
