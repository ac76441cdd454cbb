"""One conformance suite for every mailbox: virtual time, ipc, tcp, CURVE, shared memory. What trainers may rely on."""

import pytest
import torch

from bus import sockets as sockets_of_bus
from bus.mailbox import Mailbox
from mach.messages import Activation, Gradient, Target
from worlds import DEADLINE_S, W, World, X, spoiling, view

pytestmark = pytest.mark.usefixtures("leaks")


def test_a_mailbox_is_what_the_protocol_says(world: World) -> None:
    box: Mailbox = world.mailbox("c0", children="c1")
    assert box.receive() == []
    assert not box.room("c1")
    assert view(box, "c1").state == "knocking"
    assert not box.parents_left()


def test_hello_opens_the_edge_whoever_comes_first(world: World) -> None:
    parent = world.mailbox("c0", children="c1")
    assert parent.receive(0.1) == []
    child = world.mailbox("c1", parents="c0")
    world.until(lambda: parent.room("c1"), parent, child)
    assert view(parent, "c1").state == view(child, "c0").state == "open"
    assert view(parent, "c1").incarnation == view(child, "c0").incarnation == 1
    assert view(child, "c0").window == W
    assert child.parents_left()


def test_ask_answer_pay(world: World) -> None:
    parent, child = world.pair()
    assert parent.send("c1", Activation(7, 3, X))
    (asked,) = world.take(child)
    assert isinstance(asked.message, Activation)
    assert (asked.sender, asked.message.id, asked.message.version, asked.age) == ("c0", 7, 3, None)
    assert torch.equal(asked.message.inputs, X)
    assert child.send("c0", Target(7, 11, X + 1))
    (answer,) = world.take(parent)
    assert isinstance(answer.message, Target)
    assert torch.equal(answer.message.embedding, X + 1)
    assert answer.age is not None
    assert answer.age.versions == 0
    assert answer.age.seconds > 0
    assert parent.send("c1", Gradient(7, 11, X + 2))
    (paid,) = world.take(child)
    assert isinstance(paid.message, Gradient)
    assert (paid.message.of_version, paid.message.gradient.tolist()) == (11, (X + 2).tolist())
    assert parent.counts.sent == {"activation": 1, "gradient": 1} == child.counts.received
    assert child.counts.sent == {"target": 1} == parent.counts.received
    for counts, peer, messages in ((parent.counts, "c1", 2), (child.counts, "c0", 1)):
        assert set(counts.bytes) == {peer}
        assert 0 < counts.bytes[peer] - messages * X.nbytes < messages * 500, "the tensors, and a header each"
    assert not parent.counts.dropped
    assert not child.counts.dropped
    assert not parent.send("c1", Gradient(7, 11, X)), "paid twice"
    assert not child.send("c0", Target(7, 11, X)), "answered twice"
    assert parent.counts.dropped == child.counts.dropped == {"forgotten": 1}


def test_tensors_of_every_size_travel(world: World) -> None:
    parent, child = world.pair()
    for id, inputs in enumerate((torch.randn(512, 1024), torch.empty(0, 4), torch.randn(()), torch.randn(130, 130))):
        parent.send("c1", Activation(id, 0, inputs, torch.arange(id)))
        (letter,) = world.take(child)
        assert isinstance(letter.message, Activation)
        assert torch.equal(letter.message.inputs, inputs)
        assert letter.message.labels is not None
        assert letter.message.labels.tolist() == list(range(id))
        child.send("c0", Target(id, 0, inputs))
        world.take(parent)


def test_the_window_bounds_what_is_unanswered(world: World) -> None:
    parent, child = world.pair()
    for id in range(W):
        assert parent.room("c1")
        assert parent.send("c1", Activation(id, 0, X))
    assert not parent.room("c1")
    assert view(parent, "c1").in_flight == W
    with pytest.raises(ValueError, match=r"no room \(2 of 2 in flight\): child c1 is open; its story"):
        parent.send("c1", Activation(9, 0, X))
    world.take(child, W)
    child.send("c0", Target(0, 0, X))
    world.take(parent)
    assert parent.room("c1")


def test_letters_keep_the_order_in_which_they_left(world: World) -> None:
    parent, child = world.pair(window=50)
    for id in range(50):
        parent.send("c1", Activation(id, 0, X))
    letters = world.take(child, 50)
    assert [letter.message.id for letter in letters] == list(range(50))
    for id in range(50):
        child.send("c0", Target(id, id, X))
    answers = world.take(parent, 50)
    assert [letter.message.id for letter in answers] == list(range(50))


def test_a_time_out_gives_places_back_and_a_late_answer_is_dropped(world: World) -> None:
    parent, child = world.pair()
    for id in range(W):
        parent.send("c1", Activation(id, 0, X))
    world.until(lambda: view(parent, "c1").in_flight == 0, parent)
    assert parent.counts.dropped == {"timeout": W}
    assert view(parent, "c1").state == "silent"
    assert not parent.room("c1")
    world.take(child, W)
    child.send("c0", Target(0, 0, X))
    world.until(lambda: parent.room("c1"), parent)
    assert parent.counts.dropped["late"] == 1
    assert "target" not in parent.counts.received


def test_a_child_that_reads_nothing_is_sent_a_window_and_few_knocks(world: World) -> None:
    parent, child, relay = spoiling(world)
    before = relay.sent
    end = parent.now() + 2.0
    while parent.now() < end:
        if parent.room("c1"):
            parent.send("c1", Activation(relay.sent, 0, X))
        parent.receive(0.02)
    assert relay.sent - before <= W + 8
    world.until(lambda: parent.room("c1"), parent, child)


def test_a_processor_that_changes_the_order_of_writes_gets_no_lane(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets_of_bus, "ORDERED", False)
    parent, child = world.pair()
    for id in range(4):
        assert parent.send("c1", Activation(id, 0, X))
        world.take(child)
        assert child.send("c0", Target(id, 0, X))
        world.take(parent)
    assert world.entries == 0


def test_only_the_lane_carries_messages_in_shared_memory_and_all_but_the_first(world: World) -> None:
    parent, child = world.pair()
    for id in range(20):
        assert parent.send("c1", Activation(id, 0, X + id))
        (asked,) = world.take(child)
        assert torch.equal(asked.message.inputs, X + id)
        assert child.send("c0", Target(id, 0, X - id))
        (answer,) = world.take(parent)
        assert torch.equal(answer.message.embedding, X - id)
        assert parent.send("c1", Gradient(id, 0, X * id))
        (paid,) = world.take(child)
        assert torch.equal(paid.message.gradient, X * id)
    # the first each way shows the receiver where the memory is, and the next may find that it has not said so yet
    assert 60 - 2 * 2 <= world.entries <= 60 - 2 if world.kind == "lane" else not world.entries
    assert not parent.counts.dropped
    assert not child.counts.dropped


def test_whatever_a_child_that_falls_behind_leaves_unread_has_room_in_the_lane(world: World) -> None:
    """A window of activations and one more gradient than that: the next activation leaves before one that is due."""
    parent, child = world.pair()
    for id in range(2 * W):  # until both know the memory
        parent.send("c1", Activation(id, 0, X))
        world.take(child)
        child.send("c0", Target(id, 0, X))
        world.take(parent)
    first = 100
    for id in range(first, first + W):
        assert parent.send("c1", Activation(id, 0, X))
    world.take(child, W)
    assert child.send("c0", Target(first, 0, X))
    world.take(parent)
    assert parent.send("c1", Activation(first + W, 0, X))
    world.take(child)
    for id in range(first + 1, first + W + 1):
        assert child.send("c0", Target(id, 0, X))
    world.take(parent, W)
    before = world.entries
    assert parent.send("c1", Gradient(first, 0, X))
    for id in range(first + 1, first + W + 1):
        assert parent.send("c1", Activation(id + W, 0, X))
        assert parent.send("c1", Gradient(id, 0, X))
    assert world.entries - before == (2 * W + 1 if world.kind == "lane" else 0)
    assert len(world.take(child, 2 * W + 1)) == 2 * W + 1
    assert not child.counts.dropped


def test_a_peer_can_be_child_and_parent_at_once(world: World) -> None:
    one, two = world.mailbox("c0", "c1", "c1"), world.mailbox("c1", "c0", "c0")
    world.until(lambda: one.room("c1") and two.room("c0"), one, two)
    assert sorted(edge.role for edge in one.edges()["c1"]) == ["child", "parent"]
    one.send("c1", Activation(0, 0, X))
    two.send("c0", Activation(0, 0, X + 1))
    (at_two,), (at_one,) = world.take(two), world.take(one)
    assert isinstance(at_one.message, Activation)
    assert torch.equal(at_one.message.inputs, X + 1)
    assert isinstance(at_two.message, Activation)
    assert torch.equal(at_two.message.inputs, X)


def test_a_child_with_many_parents_answers_each_its_own(world: World) -> None:
    child = world.mailbox("c9", parents="c0 c1 c2")
    parents = [world.mailbox(f"c{i}", children="c9") for i in range(3)]
    world.until(lambda: all(parent.room("c9") for parent in parents), child, *parents)
    for i, parent in enumerate(parents):
        parent.send("c9", Activation(i, 0, X * i))
    for letter in world.take(child, 3):
        assert isinstance(letter.message, Activation)
        child.send(letter.sender, Target(letter.message.id, 0, letter.message.inputs))
    for i, parent in enumerate(parents):
        (answer,) = world.take(parent)
        assert isinstance(answer.message, Target)
        assert torch.equal(answer.message.embedding, X * i)


def test_waiting_returns_with_the_first_letter(world: World) -> None:
    parent, child = world.pair()
    parent.send("c1", Activation(0, 0, X))
    assert len(child.receive(DEADLINE_S)) == 1
