"""What each rule and fate of an edge is for, one by one, on a fake clock. Every word of mishaps: test_edge_words.py."""

import pytest

from badline import HELLO_S, TIMEOUT_S, Line, W, full, healed, opened
from bus.edge import KNOCK_CAP_S, STUCK_S
from bus.rules import CHILD_RULES, PARENT_RULES, Event, Fate, State, Taken
from bus.wire import Kind


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
