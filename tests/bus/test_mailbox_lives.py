"""Every mailbox when a neighbour begins anew, dies or leaves."""

import itertools
import threading

import pytest
import torch

from mach.messages import Activation, Target
from worlds import W, World, X, view

pytestmark = pytest.mark.usefixtures("leaks")


def test_bye_ends_the_asking_and_not_the_answering(world: World) -> None:
    one, two = world.mailbox("c0", "c1", "c1"), world.mailbox("c1", "c0", "c0")
    world.until(lambda: one.room("c1") and two.room("c0"), one, two)
    one.send("c1", Activation(0, 0, X))
    one.bye()
    world.until(lambda: not two.parents_left(), one, two)
    assert one.counts.dropped == {"bye": 1}
    assert not one.room("c1")
    assert not two.send("c0", Target(0, 0, X))
    assert two.counts.dropped == {"closed": 1}
    assert one.parents_left()
    two.send("c0", Activation(0, 0, X))
    (asked,) = world.take(one)
    assert one.send("c1", Target(asked.message.id, 0, X))
    assert len(world.take(two)) == 1


def test_a_restarted_child_is_asked_again(world: World) -> None:
    parent, child = world.pair(timeout_ms=60_000)
    for id in range(W):
        parent.send("c1", Activation(id, 0, X))
    world.take(child, W)
    world.kill(child)
    child = world.mailbox("c1", parents="c0", incarnation=2)
    world.until(lambda: parent.room("c1"), parent, child)
    assert parent.counts.dropped["reset"] == W
    assert view(parent, "c1").incarnation == 2
    assert view(parent, "c1").in_flight == 0
    parent.send("c1", Activation(5, 0, X))
    assert [letter.message.id for letter in world.take(child)] == [5]


def test_a_question_whose_answer_could_not_leave_can_be_put_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a child finds no connection for a moment: whoever answers does not try again, and nobody else would."""
    parent, child = world.pair()
    parent.send("c1", Activation(0, 0, X))
    world.take(child)
    with monkeypatch.context() as patched:
        patched.setattr(child._transport, "send", lambda peer, frames: False)
        assert not child.send("c0", Target(0, 0, X))
    assert list(parent.in_flight("c1")) == [0]
    world.until(lambda: not parent.in_flight("c1") and parent.room("c1"), parent, child)
    parent.send("c1", Activation(0, 0, X))
    world.take(child)
    assert child.send("c0", Target(0, 1, X))
    assert [letter.message.id for letter in world.take(parent)] == [0]
    assert "duplicate" not in child.counts.dropped


def test_a_restarted_parent_is_answered_again(world: World) -> None:
    parent, child = world.pair()
    parent.send("c1", Activation(0, 0, X))
    world.take(child)
    world.kill(parent)
    parent = world.mailbox("c0", children="c1", incarnation=2)
    world.until(lambda: parent.room("c1"), parent, child)
    assert view(child, "c0").incarnation == 2
    assert not child.send("c0", Target(0, 0, X)), "that was asked in another life"
    assert child.counts.dropped == {"forgotten": 1}
    parent.send("c1", Activation(0, 0, X))
    world.take(child)
    assert child.send("c0", Target(0, 0, X))
    assert len(world.take(parent)) == 1


def test_what_is_sent_to_a_dead_child_is_refused_and_counted(world: World) -> None:
    parent, child = world.pair(window=100, timeout_ms=60_000)
    world.kill(child)
    ids = itertools.count()

    def refused() -> bool:
        return parent.room("c1") and not parent.send("c1", Activation(next(ids), 0, X))

    world.until(refused, parent)
    assert parent.counts.dropped["unreachable"] == 1
    assert view(parent, "c1").state == "silent"
    assert not parent.room("c1")


def test_what_is_sent_to_a_dead_parent_is_refused_and_counted(world: World) -> None:
    parent, child = world.pair(window=100)
    for id in range(100):
        parent.send("c1", Activation(id, 0, X))
    ids = iter(world.take(child, 100))
    world.kill(parent)
    world.until(lambda: not child.send("c0", Target(next(ids).message.id, 0, X)), child)
    assert child.counts.dropped == {"unreachable": 1}
    assert view(child, "c0").state == "silent"


def test_close_says_bye_and_can_be_called_twice(world: World) -> None:
    parent, child = world.pair()
    parent.bye()
    world.until(lambda: not child.parents_left(), child)
    parent.close()
    parent.close()
    child.close()


def test_who_leaves_without_a_farewell_is_expected_back(world: World) -> None:
    parent, child = world.pair()
    parent.close(farewell=False)
    again = world.mailbox("c0", "c1", "", 2)
    world.until(lambda: again.room("c1"), again, child)
    assert child.parents_left()
    child.close(farewell=False)
    back = world.mailbox("c1", "", "c0", 2)
    world.until(lambda: view(again, "c1").incarnation == 2 and again.room("c1"), again, back)
    assert "bye" not in again.counts.dropped


def test_close_does_not_hang_on_a_peer_that_reads_nothing(world: World) -> None:
    parent, child = world.pair()
    parent.send("c1", Activation(0, 0, torch.zeros(1 << 20)))
    parent.close()
    assert parent.counts.dropped == {"bye": 1}
    world.until(lambda: not child.parents_left(), child)


def test_a_child_that_closes_tells_its_parents(world: World) -> None:
    parent, child = world.pair(timeout_ms=60_000)
    parent.send("c1", Activation(0, 0, X))
    world.take(child)
    closing = threading.Thread(target=child.close)
    closing.start()
    world.until(lambda: view(parent, "c1").state == "closed", parent)
    closing.join()
    assert parent.counts.dropped == {"bye": 1}
    assert not parent.room("c1")
    parent.close()  # nobody is left to wait for
