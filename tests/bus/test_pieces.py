"""Very long frames in pieces, over real sockets."""

import tracemalloc
from collections.abc import Iterator

import msgspec
import pytest
import torch
import zmq

from bus import address, pieces
from bus.sockets import ZmqMailbox
from bus.wire import TENSORS_CAP
from configs.tree import Bus
from mach.messages import Activation, Target

BUS = Bus(lane="inline", hello_ms=40, max_message_mb=1)
DEADLINE_S = 30.0


@pytest.fixture
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ZmqMailbox, ZmqMailbox]]:
    """c0 asks c1; pieces of 1000 bytes from 70,000 bytes up. A test may say through which lane."""
    bus = msgspec.structs.replace(BUS, lane=getattr(request, "param", BUS.lane))
    monkeypatch.setattr(pieces, "PIECE", 1000)
    monkeypatch.setattr(pieces, "PIECES_FROM", 70_000)
    directory = address.make_directory()
    parent = ZmqMailbox("c0", run_id="r", incarnation=1, children=("c1",), parents=(), bus=bus, directory=directory)
    child = ZmqMailbox("c1", run_id="r", incarnation=1, children=(), parents=("c0",), bus=bus, directory=directory)
    end = parent.now() + DEADLINE_S
    while not parent.room("c1"):
        assert parent.now() < end
        parent.receive(0.005)
        child.receive(0.005)
    yield parent, child
    parent._transport.close()
    child._transport.close()
    address.remove(directory)


def marker(count: int, *lengths: int) -> bytes:
    """The announcement of pieces."""
    return pieces._PIECES.pack(pieces._MAGIC, count, *[*lengths, *[0] * TENSORS_CAP][:TENSORS_CAP])


def test_pieces_become_the_tensor_again_in_both_directions(pair: tuple[ZmqMailbox, ZmqMailbox]) -> None:
    parent, child = pair
    for id, (rows, few) in enumerate(((17_500, 3), (17_501, 1), (30_000, 0), (2, 20_000))):
        inputs, labels = torch.randn(rows), torch.arange(few)
        assert parent.send("c1", Activation(id, 0, inputs, labels))
        (letter,) = child.receive(DEADLINE_S)
        asked = letter.message
        assert isinstance(asked, Activation)
        assert asked.labels is not None
        assert torch.equal(asked.inputs, inputs)
        assert torch.equal(asked.labels, labels)
        assert child.send("c0", Target(id, 0, inputs + 1))
        (letter,) = parent.receive(DEADLINE_S)
        assert isinstance(letter.message, Target)
        assert torch.equal(letter.message.embedding, inputs + 1)
    assert not parent.counts.dropped
    assert not child.counts.dropped


@pytest.mark.parametrize("pair", ["inline", "auto"], indirect=True)
def test_pieces_that_are_too_many_together_are_not_sent_and_nobody_misses_them(
    pair: tuple[ZmqMailbox, ZmqMailbox],
) -> None:
    parent, child = pair
    for id, rows in ((0, 1 << 17), (1, 3 << 16), (2, 1 << 17)):
        sent = parent.send("c1", Activation(id, 0, torch.ones(rows), torch.zeros(1 << 16, dtype=torch.int64)))
        assert sent == (id != 1)
        assert [letter.message.id for letter in child.receive(DEADLINE_S if sent else 0.0)] == [id] * sent
    assert parent.counts.dropped == {"too-large": 1}
    assert not child.counts.dropped


@pytest.mark.parametrize(
    ("lengths", "pieces"),
    [
        ((3000, 0), [1000, 1000]),
        ((3000, 0), [1000, 1000, 1000, 1000]),
        ((3000, 0), [1000, 1001, 1000]),
        ((3000, 0), [1000, 999, 1000]),
        ((1 << 60, 1 << 60), [1000]),
        ((2**64 - 1, 1), [1000]),
        ((3000, 0), []),
    ],
)
def test_pieces_that_are_not_as_announced_are_refused(
    pair: tuple[ZmqMailbox, ZmqMailbox], lengths: tuple[int, int], pieces: list[int]
) -> None:
    parent, child = pair
    dealer = parent._transport._dealers["c1"].socket  # type: ignore[attr-defined]
    dealer.send_multipart([marker(2, *lengths), b"first", *map(bytes, pieces)])
    assert parent.send("c1", Activation(0, 0, torch.ones(3)))
    (letter,) = child.receive(DEADLINE_S)
    assert isinstance(letter.message, Activation)
    assert sum(child.counts.dropped.values()) == 1


def test_an_announcement_alone_costs_nothing(pair: tuple[ZmqMailbox, ZmqMailbox]) -> None:
    """Each says that a frame of the largest legal length follows; a byte does."""
    parent, child = pair
    dealer = parent._transport._dealers["c1"].socket  # type: ignore[attr-defined]
    tracemalloc.start()
    for shorter in range(20):
        announced = pieces._PIECES.pack(pieces._MAGIC, 1, (1 << 20) - shorter, *[0] * (TENSORS_CAP - 1))
        dealer.send_multipart([announced, b"first", b"x"])
    assert parent.send("c1", Activation(0, 0, torch.ones(3)))
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    (letter,) = child.receive(DEADLINE_S)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(letter.message, Activation)
    assert child.counts.dropped == {"bad-frames": 20}
    assert peak - before < 1 << 18


def test_a_stranger_that_calls_itself_a_marker_is_harmless(pair: tuple[ZmqMailbox, ZmqMailbox]) -> None:
    parent, child = pair
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.IDENTITY, marker(1, 5))
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(child._transport._endpoint)  # type: ignore[attr-defined]
        stranger.send_multipart([b"x", b"12345"])
        end = child.now() + DEADLINE_S
        while not child.counts.dropped:
            assert child.now() < end
            child.receive(0.01)
    assert parent.send("c1", Activation(0, 0, torch.ones(3)))
    assert len(child.receive(DEADLINE_S)) == 1
