"""Both ends of an edge joined by a bad line on a fake clock, the mishaps that can befall it, and its books.

Knows no mailbox and no socket. `Line.check` holds after every event: see there for what "accounted for" means.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from bus import wire
from bus.edge import MEMORY, ChildEnd, ParentEnd
from bus.rules import Fate, State, Taken, Terms
from bus.wire import Header, Kind, Preamble

W = 2
TIMEOUT_S = 2.0
HELLO_S = 0.2


class Book:
    """What came to one life of an end, counted from outside. `life`: the peer's newest that it has heard."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.life = 0
        self.first = 0
        self.come: set[int] = set()  # sequences of that life, each once
        self.spoilt = 0
        self.lost_before = 0

    def note(self, header: Header, verdict: Taken | Fate | None) -> None:
        """One frame, and what the end said of it."""
        self.verdicts[verdict.value if isinstance(verdict, Fate) else "used"] += 1
        if header.preamble.incarnation > self.life:
            self.lost_before += self.lost()
            self.life, self.first, self.come = header.preamble.incarnation, header.sequence, set()
        if header.preamble.incarnation == self.life > 0 and header.sequence >= self.first:
            self.come.add(header.sequence)

    def lost(self) -> int:
        """Sequences before the newest that came, of the peer's present life, that never came."""
        return max(self.come) - self.first + 1 - len(self.come) if self.come else 0

    def check(self, end: ParentEnd | ChildEnd) -> None:
        """Whatever came was used, or dropped for one reason; whatever was sent and did not come was counted once."""
        own = {Fate.TIMEOUT, Fate.RESET, Fate.BYE} if isinstance(end, ParentEnd) else set()  # of what it sent itself
        counted = {name: count for name, count in end.dropped.items() if name not in own and name != Fate.LOST}
        refused = {name: count for name, count in self.verdicts.items() if name != "used"}
        assert counted == refused, "a frame was not dropped for exactly one reason"
        assert end.dropped[Fate.LOST.value] == self.lost_before + self.lost(), "what never came is not counted once"


class Line:
    """Two ends, the frames under way between them, and the mishaps that can befall all of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lives = {"parent": 0, "child": 0}
        self.ids = itertools.count()
        self.foreign = itertools.count(10_000)  # ids of what was never asked
        self.down: deque[Header] = deque()
        self.up: deque[Header] = deque()
        self.restart_parent()
        self.restart_child()

    def open(self) -> "Line":
        self.knock()
        self.deliver_all()
        assert self.parent.room()
        return self

    def frame(self, end: ParentEnd | ChildEnd, kind: Kind, **fields: Any) -> Header:
        end.sequence += 1
        who = "parent" if isinstance(end, ParentEnd) else "child"
        id, version = fields.pop("id", 0), fields.pop("version", 0)
        return Header(Preamble(kind, 1, wire.tag(who), self.lives[who], **fields), end.sequence, id, version)

    def control(self, end: ParentEnd | ChildEnd, kind: Kind) -> Header:
        return self.frame(end, kind, window=end.window, heard=end.greeted())

    # what ends do

    def ask(self) -> None:
        if self.parent.room():
            id = next(self.ids)
            self.down.append(self.frame(self.parent, Kind.ACTIVATION, id=id, owes=True))
            self.parent.ask(id, True, self.now)

    def answer(self) -> None:
        if self.asked:
            id = self.asked.popleft()
            if self.child.waits(id) is None:
                self.up.append(self.frame(self.child, Kind.TARGET, id=id, version=id + 10))
                self.child.answer(id, id + 10, self.now)

    def pay(self) -> None:
        if self.targets:
            target = self.targets.popleft()
            if self.parent.owe(target.id, target.version) is None:
                self.down.append(self.frame(self.parent, Kind.GRADIENT, id=target.id, version=target.version))
                self.parent.pay(target.id, self.now)

    def knock(self) -> None:
        kind = self.parent.due(self.now)
        if kind is not None:
            self.down.append(self.control(self.parent, kind))
            self.parent.knocked(self.now, sent=True)

    # what the line does

    def deliver_down(self) -> Taken | Fate | None:
        if not self.down:
            return None
        header = self.down.popleft()
        verdict = self.child.hear(header, self.now)
        self.below.note(header, verdict)
        self.up.extend(self.control(self.child, kind) for kind in self.child.replies())
        if isinstance(verdict, Taken):
            key = header.kind, header.id
            assert key not in self.taken_below, f"{key} taken twice"
            self.taken_below.add(key)
            if header.kind == Kind.ACTIVATION:
                self.asked.append(header.id)
        return verdict

    def deliver_up(self) -> Taken | Fate | None:
        if not self.up:
            return None
        header = self.up.popleft()
        verdict = self.parent.hear(header, self.now)
        self.above.note(header, verdict)
        self.down.extend(self.control(self.parent, kind) for kind in self.parent.replies())
        if isinstance(verdict, Taken):
            assert header.id not in self.taken_above, f"target {header.id} taken twice"
            self.taken_above.add(header.id)
            self.targets.append(header)
        return verdict

    def deliver_all(self) -> None:
        while self.down or self.up:
            self.deliver_down()
            self.deliver_up()

    # mishaps

    def lose_down(self) -> None:
        if self.down:
            self.down.popleft()

    def lose_up(self) -> None:
        if self.up:
            self.up.popleft()

    def double_down(self) -> None:
        if self.down:
            self.down.append(self.down[0])

    def double_up(self) -> None:
        if self.up:
            self.up.append(self.up[0])

    def swap_down(self) -> None:
        self.down.rotate(1)

    def swap_up(self) -> None:
        self.up.rotate(1)

    def forge_down(self) -> None:
        """Of no life: the first is 1."""
        self.down.appendleft(Header(Preamble(Kind.HELLO, 0, 0, 0, window=7, heard=self.lives["child"]), 1000))

    def forge_up(self) -> None:
        self.up.appendleft(Header(Preamble(Kind.TARGET, 0, 0, 0), 1000))

    def babble_down(self) -> None:
        """The peer itself says what it may not: an answer, a gradient of nothing, a question beyond its window."""
        self.down.append(self.frame(self.parent, Kind.TARGET, id=0))
        self.down.append(self.frame(self.parent, Kind.GRADIENT, id=next(self.foreign)))
        self.down.append(self.frame(self.parent, Kind.ACTIVATION, id=next(self.foreign), owes=True))

    def babble_up(self) -> None:
        self.up.append(self.frame(self.child, Kind.ACTIVATION, id=0))
        self.up.append(self.frame(self.child, Kind.GRADIENT, id=0))
        self.up.append(self.frame(self.child, Kind.TARGET, id=next(self.foreign)))
        self.up.append(self.frame(self.child, Kind.BYE_ACK))

    def wait(self) -> None:
        self.now += TIMEOUT_S
        self.parent.expire(self.now)
        self.child.expire(self.now)

    def cut(self) -> None:
        self.parent.unreachable(self.now)
        self.child.unreachable(self.now)

    def reconnect(self) -> None:
        self.parent.reconnected(self.now)

    def restart_parent(self) -> None:
        """A new life. What the old one sent may still come."""
        self.lives["parent"] += 1
        self.parent = ParentEnd("child", Terms(self.lives["parent"], W, TIMEOUT_S, HELLO_S), Counter())
        self.targets: deque[Header] = deque()
        self.taken_above: set[int] = set()
        self.above = Book()

    def restart_child(self) -> None:
        self.lives["child"] += 1
        self.child = ChildEnd("parent", Terms(self.lives["child"], 7, TIMEOUT_S, HELLO_S), Counter())
        self.asked: deque[int] = deque()
        self.taken_below: set[tuple[str, int]] = set()
        self.below = Book()

    def leave_parent(self) -> None:
        self.parent.leave(self.now)

    def leave_child(self) -> None:
        self.child.told = self.child.leave(self.now)
        if self.child.told:
            self.up.append(self.control(self.child, Kind.BYE))

    # what always holds

    def check(self) -> None:
        parent, child = self.parent, self.child
        drops = sum(parent.dropped[fate.value] for fate in (Fate.TIMEOUT, Fate.RESET, Fate.BYE))
        assert parent.asked == parent.answered + drops + parent.in_flight(), "an activation is unaccounted for"
        assert parent.in_flight() <= W
        assert parent.asked >= parent.answered == len(self.taken_above)
        self.above.check(parent)
        self.below.check(child)
        assert not parent.room() or parent.state is State.OPEN
        bound = max(16, MEMORY * W)
        assert len(parent._past) <= bound
        assert len(parent._debts) <= bound
        assert len(child._loans) <= bound
        assert len(child._asked) <= max(child.window, W)
        assert len(parent._gaps) <= 64
        assert len(parent.story) <= 16
        assert all(isinstance(key, str) and type(key) is str for key in (*parent.dropped, *child.dropped))

    def calm(self) -> None:
        """No more mishaps, and life goes on."""
        for _ in range(80):
            self.now += HELLO_S
            self.parent.expire(self.now)
            self.child.expire(self.now)
            self.knock()
            self.deliver_all()
            while self.asked:
                self.answer()
            self.deliver_all()
            self.check()
            if self.parent.state is State.OPEN and not self.parent.in_flight():
                break


MISHAPS: list[Callable[[Line], object]] = [
    *(Line.ask, Line.answer, Line.pay, Line.knock, Line.deliver_down, Line.deliver_up),
    *(Line.lose_down, Line.lose_up, Line.double_down, Line.double_up, Line.swap_down, Line.swap_up),
    *(Line.forge_down, Line.forge_up, Line.babble_down, Line.babble_up),
    *(Line.wait, Line.cut, Line.reconnect, Line.restart_parent, Line.restart_child),
]
ORDINARY = MISHAPS[:-5]
"""Those after which nobody has to be greeted anew."""
LEAVES: list[Callable[[Line], object]] = [Line.leave_parent, Line.leave_child]


def fresh() -> Line:
    return Line()


def opened() -> Line:
    return Line().open()


def full() -> Line:
    """W in flight, one of them heard, answered and on its way back."""
    line = opened()
    line.ask()
    line.ask()
    line.deliver_down()
    line.answer()
    return line


EXCHANGE: list[Callable[[Line], object]] = [
    *(Line.knock, Line.deliver_down, Line.deliver_up),  # hello, hello
    *(Line.ask, Line.ask, Line.deliver_down, Line.answer, Line.deliver_up),  # one answered, one under way
    *(Line.pay, Line.deliver_down, Line.deliver_down, Line.answer, Line.deliver_up, Line.pay, Line.deliver_down),
]
"""From the first knock to the last gradient, with nothing left on the line."""


def healed(line: Line) -> bool:
    """After a calm, an edge that nobody left is open, empty, and carries an answer and its gradient."""
    line.calm()
    line.ask()  # only this tells a parent of a child that started anew behind its back
    line.deliver_all()
    line.calm()
    before = line.parent.answered
    line.targets.clear()
    line.ask()
    line.deliver_all()
    line.answer()
    line.deliver_all()
    (target,) = line.targets
    line.pay()
    assert line.deliver_down() == Taken(target.version), "its gradient does not count"
    return line.parent.room() and line.parent.in_flight() == 0 and line.parent.answered == before + 1
