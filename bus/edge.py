"""One edge without I/O, from either end: headers and the time in, verdicts and due control frames out.

Knows no socket, no clock and no tensor; `now` is an argument, in seconds. States, events and fates are tables
in `bus/rules.py`. Laws: at most W activations are in flight, and every one that left is answered, dropped for
exactly one counted reason, or still in flight. Memory is bounded by W, whatever the peer does. A stopped peer
gets at most W messages and their gradients, then knocks that grow rarer.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from typing import TypeVar

from bus.end import End
from bus.mailbox import Role
from bus.rules import CHILD_RULES, PARENT_RULES, Event, Fate, State, Taken, Terms
from bus.wire import Header, Kind
from configs.tree import LARGEST_WINDOW
from mach.messages import Age

V = TypeVar("V")

KNOCK_CAP_S = 5.0
"""A peer that does not answer is knocked at ever more rarely, at last this often."""
STUCK_S = 5.0
"""A peer unheard for this long gets a new connection: the stream of the old one may be broken, and nobody can tell."""
MEMORY = 4
"""Answered activations remembered for a gradient or against a duplicate, in windows (at least 16)."""

_OPEN, _CLOSED = State.OPEN, State.CLOSED
_MESSAGES = _ACTIVATION, _TARGET, _GRADIENT = Kind.ACTIVATION, Kind.TARGET, Kind.GRADIENT
"""What every message is asked for: to look a member of an enum up costs as much as two calls."""


class ParentEnd(End):
    """The end that asks, greets, and pays gradients."""

    role: Role = "child"  # what the peer is to us
    rules = PARENT_RULES

    def __init__(self, peer: str, terms: Terms, dropped: Counter[str]) -> None:
        super().__init__(peer, terms, dropped)
        self.asked = 0  # activations that left, ever
        self.answered = 0
        self._flying: OrderedDict[int, tuple[float, bool]] = OrderedDict()  # id → when it left, owes; oldest first
        self._past: OrderedDict[int, Fate | None] = OrderedDict()  # id → how it ended; None: answered
        self._debts: OrderedDict[int, int] = OrderedDict()  # id → version of a target to be paid for
        self._knock_at = float("-inf")
        self._knock_s = terms.hello_s
        self._connected_at = float("-inf")

    def in_flight(self) -> int:
        """Activations that left and are unanswered."""
        return len(self._flying)

    def flying(self) -> Collection[int]:
        """Ids of those."""
        return self._flying.keys()

    def room(self) -> bool:
        """Whether one more activation fits into the window of an open edge."""
        return self.state is _OPEN and len(self._flying) < self.window

    def check_ask(self, id: int, now: float) -> None:
        """Raise a ValueError if activation `id` may not leave: no room, or in flight already."""
        if self.state is not _OPEN or len(self._flying) >= self.window or id in self._flying:
            places = f"{len(self._flying)} of {self.window} in flight"
            raise ValueError(f"activation {id} has no room ({places}): {self.tell(now)}")

    def ask(self, id: int, owes: bool, now: float) -> None:
        """An activation has left."""
        self.story.append((now, "asked", id))
        self.asked += 1
        self._flying[id] = now, owes

    def owe(self, id: int, version: int) -> Fate | None:
        """Why a gradient may not leave, if it may not."""
        if self.state is _CLOSED:
            return Fate.CLOSED
        return None if self._debts.get(id) == version else Fate.FORGOTTEN

    def pay(self, id: int, now: float) -> None:
        """A gradient has left."""
        self.story.append((now, "paid", id))
        del self._debts[id]

    def age(self, taken: Taken, now: float) -> Age:
        """Of a target: a lower bound in versions, and the exact time since its activation left."""
        version, newest = taken.version, self.version
        left_s = now if taken.left_s is None else taken.left_s
        return Age(0 if newest is None else newest - version, now - left_s)

    def expire(self, now: float) -> int:
        """Give back the places of activations that nobody answered in time; how many."""
        freed = 0
        while self._flying and now - next(iter(self._flying.values()))[0] >= self.terms.timeout_s:
            self._end(next(iter(self._flying)), Fate.TIMEOUT)
            freed += 1
        if freed:
            self.note(now, "timed-out", freed)
            if self.heard_at is None or now - self.heard_at >= self.terms.timeout_s:
                self._fall_silent(now)
        return freed

    def unreachable(self, now: float) -> None:
        """There was no connection to send on."""
        self.note(now, "unreachable")
        self._fall_silent(now)

    def stuck(self, now: float) -> bool:
        """Whether the peer has been silent for so long on this connection that another is worth a try."""
        since = max(self._connected_at, self._connected_at if self.heard_at is None else self.heard_at)
        quiet = self.state in (State.KNOCKING, State.SILENT) and not self.left
        return quiet and now - since >= max(STUCK_S, 2 * self.terms.timeout_s)

    def reconnected(self, now: float) -> None:
        """A new connection was made, so the peer may be new, and what was on its way, either way, is lost: greet it at
        once, at the first pace.
        """
        self.note(now, "reconnected")
        self._empty(Fate.RESET)
        self._connected_at = now
        self._knock_at, self._knock_s = now, self.terms.hello_s
        self._step(Event.RECONNECTED)

    def leave(self, now: float) -> None:
        """We say bye: nothing more will be asked. What is in flight counts as dropped."""
        if not self.left:
            self.note(now, "left")
            self.left = True
            self._step(Event.LEFT)
            self._empty(Fate.BYE)
            self._knock_at, self._knock_s = now, self.terms.hello_s

    def due(self, now: float) -> Kind | None:
        """The control frame to send now, if any: a hello until greeted, a bye until it is acknowledged."""
        if now < self._knock_at:
            return None
        if self.left:
            return None if self.acknowledged else Kind.BYE
        return Kind.HELLO if self.state in (State.KNOCKING, State.SILENT) else None

    def knocked(self, now: float, *, sent: bool) -> None:
        """`due` was acted on. A knock that left backs off, so that they do not pile up at a stopped peer."""
        self.told = self.left and sent
        if sent:
            self.note(now, "bye" if self.left else "hello")
            self._knock_at = now + self._knock_s
            self._knock_s = min(2 * self._knock_s, max(KNOCK_CAP_S, self.terms.hello_s))

    def _take(self, header: Header, now: float) -> Taken | Fate | None:
        if header.preamble.kind is _TARGET:
            return self._target(header)
        match header.preamble.kind:
            case Kind.HELLO:
                self._greeted(header, now)
                return None
            case Kind.BYE:
                self._step(Event.BYE)
                self._empty(Fate.BYE)
                self.acknowledged = True  # nobody is left there to acknowledge ours
                self._replies.append(Kind.BYE_ACK)
                return None
            case Kind.BYE_ACK:
                self.acknowledged = self.left
                return None
            case _:
                return Fate.UNASKED

    def _greeted(self, header: Header, now: float) -> None:
        self._knock_s = self.terms.hello_s
        if header.preamble.heard == self.terms.incarnation:
            self._step(Event.GREETED)
            return
        # it knows nothing of us: what is in flight will not be answered, and it waits for our hello
        self._born()
        self._step(Event.STRANGER)
        self._knock_at = now

    def _target(self, header: Header) -> Taken | Fate:
        if self.state is not _OPEN:
            if self.state is _CLOSED:
                return Fate.CLOSED
            self._step(Event.HEARD)
        id, version = header.id, header.version
        if self.version is None or version > self.version:
            self.version = version
        if id not in self._flying:
            if id not in self._past:
                return Fate.UNASKED
            return Fate.DUPLICATE if self._past[id] is None else Fate.LATE
        left_s, owes = self._end(id, None)
        self.answered += 1
        if owes:
            _remember(self._debts, id, version, self.window)
        return Taken(version, left_s)

    def _born(self) -> None:
        self._empty(Fate.RESET)
        self._debts.clear()

    def _empty(self, fate: Fate) -> None:
        for id in tuple(self._flying):
            self._end(id, fate)

    def _end(self, id: int, fate: Fate | None) -> tuple[float, bool]:
        """Activation `id` comes out of flight: answered (None) or dropped."""
        _remember(self._past, id, fate, self.window)
        if fate is not None:
            self._drop(fate)
        return self._flying.pop(id)

    def _fall_silent(self, now: float) -> None:
        if self.state is State.OPEN:
            self._knock_at, self._knock_s = now, self.terms.hello_s
        self._step(Event.UNHEARD)


class ChildEnd(End):
    """The end that answers and is paid."""

    role: Role = "parent"
    rules = CHILD_RULES

    def __init__(self, peer: str, terms: Terms, dropped: Counter[str]) -> None:
        super().__init__(peer, terms, dropped)
        self._asked: OrderedDict[int, bool] = OrderedDict()  # id → owes; unanswered, at most W
        self._loans: OrderedDict[int, int] = OrderedDict()  # id → version of an answer not yet paid for
        self._asked_back_at = float("-inf")

    def waits(self, id: int) -> Fate | None:
        """Why the answer to activation `id` may not leave, if it may not."""
        if self.state is _CLOSED or self.left:
            return Fate.CLOSED
        return None if id in self._asked else Fate.FORGOTTEN

    def answer(self, id: int, version: int, now: float) -> None:
        """A target has left."""
        self.story.append((now, "answered", id))
        if self._asked.pop(id):
            _remember(self._loans, id, version, self.window)

    def forgo(self, id: int) -> None:
        """An answer could not leave, and will not be given again: who asks anew is answered anew."""
        self._asked.pop(id, None)

    def unreachable(self, now: float) -> None:
        """There was no connection to send on."""
        self.note(now, "unreachable")
        self._step(Event.UNHEARD)

    def expire(self, now: float) -> None:
        """A parent that says nothing for a time-out is shown as silent; answers go on."""
        if self.heard_at is not None and now - self.heard_at >= self.terms.timeout_s:
            self._step(Event.UNHEARD)

    def leave(self, now: float) -> bool:
        """We are about to close. Whether the parent is there to be told."""
        there = self.state in (State.OPEN, State.SILENT)
        self.note(now, "left")
        self.left = True
        self._step(Event.LEFT)
        return there

    def _take(self, header: Header, now: float) -> Taken | Fate | None:
        kind = header.preamble.kind
        if kind in _MESSAGES:
            fate = None if self.state is _OPEN else self._opened(now)
            return fate or (self._ask(header) if kind is _ACTIVATION else self._gradient(header))
        match kind:
            case Kind.HELLO:
                self.window = max(1, min(header.preamble.window, LARGEST_WINDOW))
                self._step(Event.GREETED)
                self._replies.append(Kind.HELLO)
                return None
            case Kind.BYE:
                self._step(Event.BYE)
                self.acknowledged = True
                self._replies.append(Kind.BYE_ACK)
                return None
            case Kind.BYE_ACK:
                self.acknowledged = self.left
                return None
            case _:
                return Fate.UNASKED

    def _opened(self, now: float) -> Fate | None:
        """A message opens an edge that was silent; why it does not count on one that is not open otherwise."""
        if self.state is _CLOSED:
            return Fate.CLOSED
        if self.state is State.KNOCKING:
            if now - self._asked_back_at >= self.terms.hello_s:
                self._asked_back_at = now
                self._replies.append(Kind.HELLO)
            return Fate.UNANNOUNCED
        self._step(Event.HEARD)
        return None

    def _ask(self, header: Header) -> Taken | Fate:
        if self.version is None or header.version > self.version:
            self.version = header.version
        if header.id in self._asked:
            return Fate.DUPLICATE
        while len(self._asked) >= self.window:  # more than W asked: the parent has given up on the oldest
            self._asked.popitem(last=False)
        self._asked[header.id] = header.preamble.owes
        return Taken(header.version)

    def _gradient(self, header: Header) -> Taken | Fate:
        if header.preamble.kind is not _GRADIENT or self._loans.get(header.id) != header.version:
            return Fate.UNASKED
        del self._loans[header.id]
        return Taken(header.version)

    def _born(self) -> None:
        self._asked.clear()
        self._loans.clear()


Edge = ParentEnd | ChildEnd


def _remember(memory: "OrderedDict[int, V]", id: int, what: V, window: int) -> None:
    """Keep the newest few."""
    memory[id] = what
    memory.move_to_end(id)
    kept = MEMORY * window
    while len(memory) > kept and len(memory) > 16:
        memory.popitem(last=False)
