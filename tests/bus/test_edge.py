"""Both ends of an edge joined by a bad line on a fake clock: every word of mishaps, and what always holds."""

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest

from bus import wire
from bus.edge import KNOCK_CAP_S, MEMORY, STUCK_S, ChildEnd, ParentEnd
from bus.rules import CHILD_RULES, PARENT_RULES, Event, Fate, State, Taken, Terms
from bus.wire import Header, Kind, Preamble

W = 2
TIMEOUT_S = 2.0
HELLO_S = 0.2


class Line:
    """Two ends, the frames under way between them, and the mishaps that can befall all of it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lives = {"parent": 0, "child": 0}
        self.ids = itertools.count()
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

    def restart_child(self) -> None:
        self.lives["child"] += 1
        self.child = ChildEnd("parent", Terms(self.lives["child"], 7, TIMEOUT_S, HELLO_S), Counter())
        self.asked: deque[int] = deque()
        self.taken_below: set[tuple[str, int]] = set()

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
    *(Line.wait, Line.cut, Line.reconnect, Line.restart_parent, Line.restart_child),
]
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
    while line.targets:
        line.pay()
    assert line.deliver_down() == Taken(line.parent.version or 0)
    return line.parent.room() and line.parent.in_flight() == 0 and line.parent.answered == before + 1


@pytest.mark.parametrize("start", [fresh, opened, full])
def test_every_short_word_of_mishaps_keeps_the_books_and_heals(start: Callable[[], Line]) -> None:
    for word in itertools.product(MISHAPS, repeat=3):
        line = start()
        for mishap in word:
            mishap(line)
            line.check()
        assert healed(line), [mishap.__name__ for mishap in word]


@pytest.mark.parametrize("seed", range(150))
def test_long_words_of_mishaps_keep_the_books_and_heal(seed: int) -> None:
    rng = random.Random(seed)
    line = opened()
    for _ in range(200):
        rng.choice(MISHAPS)(line)
        line.check()
    assert healed(line)


@pytest.mark.parametrize("leave", LEAVES)
def test_a_bye_at_every_point_ends_the_edge_on_both_sides(leave: Callable[[Line], object]) -> None:
    for word in itertools.product(MISHAPS[:13], repeat=2):
        line = full()
        for mishap in word:
            mishap(line)
        leave(line)
        for _ in range(2):
            line.check()
            line.calm()
        assert line.parent.state is State.CLOSED
        assert line.child.state is State.CLOSED
        assert line.parent.in_flight() == 0
        assert not line.parent.awaits()
        assert line.parent.due(line.now) is None


def test_a_child_that_left_and_came_back_is_asked_again() -> None:
    line = opened()
    line.leave_child()
    line.deliver_all()
    assert line.parent.state is State.CLOSED
    line.restart_child()
    line.reconnect()
    assert healed(line)


def test_a_parent_that_left_and_came_back_is_answered_again() -> None:
    line = opened()
    line.leave_parent()
    line.calm()
    assert line.child.state is State.CLOSED
    line.restart_parent()
    assert healed(line)


def test_rules_only_name_reachable_pairs() -> None:
    assert all(
        after is not State.KNOCKING or event in (Event.STRANGER, Event.RECONNECTED)
        for rules in (PARENT_RULES, CHILD_RULES)
        for (_, event), after in rules.items()
    )
    assert all(
        after is State.CLOSED
        for rules in (PARENT_RULES, CHILD_RULES)
        for (_, event), after in rules.items()
        if event in (Event.BYE, Event.LEFT)
    )


# one by one: what each fate is for


def test_unanswered_activations_give_their_places_back_and_a_late_answer_is_dropped() -> None:
    line = opened()
    line.ask()
    line.ask()
    assert not line.parent.room()
    line.deliver_all()
    assert line.parent.expire(line.now + TIMEOUT_S / 2) == 0
    line.wait()
    assert line.parent.dropped == {"timeout": 2}
    assert line.parent.state is State.SILENT
    assert not line.parent.room()
    line.answer()
    assert line.deliver_up() is Fate.LATE
    assert line.parent.room()  # it was heard, so it lives


def test_a_child_that_answers_one_but_not_the_other_stays_open() -> None:
    line = opened()
    line.ask()
    line.now += TIMEOUT_S / 2
    line.ask()
    line.deliver_all()
    line.asked.popleft()
    line.answer()
    line.now += 0.1
    line.deliver_all()
    line.now += TIMEOUT_S / 2 - 0.1
    assert line.parent.expire(line.now) == 1
    assert line.parent.room()


def test_frames_that_come_twice_late_or_never_are_counted() -> None:
    line = opened()
    line.ask()
    line.ask()
    line.down.rotate(1)
    assert isinstance(line.deliver_down(), Taken)
    assert line.child.dropped == {"lost": 1}
    again = line.down[0]
    assert line.deliver_down() is Fate.REORDERED
    line.down.append(again)
    assert line.deliver_down() is Fate.DUPLICATE


def test_targets_never_asked_for_or_answered_before_are_refused() -> None:
    line = opened()
    line.ask()
    line.deliver_all()
    line.answer()
    line.deliver_all()
    line.up.append(line.frame(line.child, Kind.TARGET, id=0, version=10))
    assert line.deliver_up() is Fate.DUPLICATE
    line.up.append(line.frame(line.child, Kind.TARGET, id=99))
    assert line.deliver_up() is Fate.UNASKED
    line.up.append(line.frame(line.child, Kind.GRADIENT, id=0))
    assert line.deliver_up() is Fate.UNASKED


def test_a_gradient_is_taken_once_and_for_the_version_that_answered() -> None:
    line = full()
    line.deliver_all()
    line.pay()
    gradient = line.down[0]
    wrong = line.frame(line.parent, Kind.GRADIENT, id=gradient.id, version=gradient.version + 1)
    assert isinstance(line.deliver_down(), Taken)
    line.down.append(wrong)
    assert line.deliver_down() is Fate.UNASKED
    line.down.append(line.frame(line.parent, Kind.GRADIENT, id=gradient.id, version=gradient.version))
    assert line.deliver_down() is Fate.UNASKED
    assert line.parent.owe(gradient.id, gradient.version) is Fate.FORGOTTEN


def test_an_answer_that_owes_nothing_is_paid_nothing() -> None:
    line = opened()
    line.down.append(line.frame(line.parent, Kind.ACTIVATION, id=5, owes=False))
    line.parent.ask(5, False, line.now)
    line.deliver_all()
    line.answer()
    line.deliver_all()
    assert line.parent.owe(5, 15) is Fate.FORGOTTEN


def test_an_earlier_life_is_not_listened_to() -> None:
    line = full()
    line.restart_child()
    line.down.clear()
    old = line.up.popleft()
    line.reconnect()
    line.knock()
    line.deliver_all()
    assert line.parent.dropped == {"reset": 2}
    assert line.parent.room()
    line.up.append(old)
    assert line.deliver_up() is Fate.STALE


def test_a_child_that_does_not_know_us_says_so_and_is_greeted_at_once() -> None:
    line = full()
    line.restart_child()
    line.up.clear()
    assert line.deliver_down() is Fate.UNANNOUNCED
    line.deliver_up()
    assert line.parent.dropped == {"reset": 2}
    line.knock()
    line.deliver_all()
    assert line.parent.room()


def test_a_child_asks_who_is_there_only_now_and_then() -> None:
    line = full()
    line.restart_child()
    line.up.clear()
    line.down.extend(line.frame(line.parent, Kind.ACTIVATION, id=i) for i in range(50, 60))
    while line.down:
        line.deliver_down()
    assert [header.kind for header in line.up] == [Kind.HELLO]


def test_a_hello_meant_for_our_earlier_life_opens_nothing() -> None:
    line = Line()
    line.knock()
    line.deliver_down()
    line.restart_parent()
    line.deliver_up()
    assert line.parent.state is State.KNOCKING
    assert healed(line)


def test_knocks_at_a_stopped_child_grow_rarer() -> None:
    line = Line()
    for _ in range(3600 * 5):
        line.now += HELLO_S
        line.knock()
    knocks = len(line.down)
    assert knocks <= 3600 / KNOCK_CAP_S + 10
    assert not [header for header in line.down if header.kind != Kind.HELLO]


def test_a_long_silent_edge_asks_for_a_new_connection_now_and_then() -> None:
    line = opened()
    line.ask()
    assert not line.parent.stuck(line.now + 100.0)  # open: nothing is known to be wrong
    line.wait()
    assert not line.parent.stuck(line.now)
    line.now += STUCK_S
    assert line.parent.stuck(line.now)
    line.reconnect()
    assert not line.parent.stuck(line.now + STUCK_S / 2)
    assert line.parent.stuck(line.now + STUCK_S)
    line.leave_parent()
    assert not line.parent.stuck(line.now + STUCK_S)


def test_a_knock_that_finds_no_connection_is_tried_again_at_once() -> None:
    line = Line()
    assert line.parent.due(0.0) is Kind.HELLO
    line.parent.knocked(0.0, sent=False)
    assert line.parent.due(0.0) is Kind.HELLO


def test_asked_more_than_the_window_the_child_forgets_the_oldest() -> None:
    line = opened()
    line.down.extend(line.frame(line.parent, Kind.ACTIVATION, id=i) for i in range(W + 1))
    line.deliver_all()
    assert line.child.waits(0) is Fate.FORGOTTEN
    assert line.child.waits(W) is None


def test_ages_count_from_the_departure_and_the_newest_version_heard() -> None:
    line = opened()
    line.ask()
    line.now += 0.5
    line.ask()
    line.deliver_all()
    line.answer()
    line.answer()
    line.now += 0.25
    first, second = line.deliver_up(), line.deliver_up()
    assert isinstance(first, Taken)
    assert isinstance(second, Taken)
    age = line.parent.age(first, line.now)
    assert (age.versions, age.seconds) == (1, 0.75)
    assert line.parent.age(second, line.now).versions == 0


def test_an_activation_without_room_is_an_error_that_tells_the_story() -> None:
    line = opened()
    line.ask()
    line.ask()
    with pytest.raises(ValueError, match=r"no room \(2 of 2 in flight\): child child is open; its story: .*asked 1"):
        line.parent.check_ask(9, line.now)


def test_a_view_says_what_status_shows() -> None:
    line = full()
    line.deliver_all()
    line.now += 1.5
    above, below = line.parent.view(line.now), line.child.view(line.now)
    assert (above.peer, above.role, above.state, above.incarnation) == ("child", "child", "open", 1)
    assert (above.in_flight, above.window, above.version, above.heard_s) == (1, W, 10, 1.5)
    assert (below.role, below.in_flight, below.window) == ("parent", 0, W)
    assert Line().parent.view(0.0).heard_s is None
