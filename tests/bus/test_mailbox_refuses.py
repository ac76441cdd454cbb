"""What no mailbox sends or believes: mistakes of its owner, spoiled messages, strangers, garbage."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
import torch
import zmq

from bus import address, wire
from bus.wire import Frames, Kind, Stamp
from mach.messages import Activation, Target
from worlds import RUN, World, X, spoiling, view

pytestmark = pytest.mark.usefixtures("leaks")


def test_mistakes_of_the_caller_are_errors(world: World) -> None:
    parent, child = world.pair()
    with pytest.raises(ValueError, match="'c7' is no such neighbour of c0; there are: c1"):
        parent.room("c7")
    with pytest.raises(ValueError, match="no such neighbour of c1; there are: none"):
        child.send("c0", Activation(0, 0, X))
    with pytest.raises(ValueError, match="cannot travel"):
        parent.send("c1", Activation(0, 0, torch.zeros(2, dtype=torch.complex64)))
    assert parent.send("c1", Activation(0, 0, X))
    with pytest.raises(ValueError, match="activation 0 has no room"):
        parent.send("c1", Activation(0, 0, X))


def test_more_than_the_largest_message_is_not_sent(world: World) -> None:
    parent, child = world.pair(max_message_mb=1)
    assert not parent.send("c1", Activation(0, 0, torch.zeros(1 << 18, 2)))
    assert parent.counts.dropped == {"too-large": 1}
    assert parent.send("c1", Activation(1, 0, torch.zeros(1 << 18)))
    assert [letter.message.id for letter in world.take(child)] == [1]


def test_tensors_that_are_too_much_together_are_not_sent_and_as_much_as_may_be_is(world: World) -> None:
    parent, child = world.pair(max_message_mb=1)
    half = torch.zeros(1 << 16, dtype=torch.int64)
    assert not parent.send("c1", Activation(0, 0, torch.zeros((1 << 17) + 1), half))
    assert parent.counts.dropped == {"too-large": 1}
    for id in (1, 2):
        assert parent.send("c1", Activation(id, 0, torch.ones(1 << 17), half))  # to the byte: heads are not counted
    letters = world.take(child, 2)
    assert [letter.message.id for letter in letters] == [1, 2]
    assert not child.send("c0", Target(1, 0, torch.zeros((1 << 17) + 1), torch.zeros(1 << 17)))
    assert child.send("c0", Target(2, 0, torch.zeros(1 << 17), torch.zeros(1 << 17)))
    assert [letter.message.id for letter in world.take(parent)] == [2]
    assert child.counts.dropped == {"too-large": 1}
    assert parent.counts.dropped == {"too-large": 1}


def test_who_sends_too_much_all_the_same_is_refused(sockets: World) -> None:
    parent = sockets.mailbox("c0", children="c1", max_message_mb=2)
    child = sockets.mailbox("c1", parents="c0", max_message_mb=1)
    sockets.until(lambda: parent.room("c1"), parent, child)
    assert parent.send("c1", Activation(0, 0, torch.zeros(3 << 16), torch.zeros(1 << 16, dtype=torch.int64)))
    assert parent.send("c1", Activation(1, 0, X))
    assert [letter.message.id for letter in sockets.take(child)] == [1]
    assert child.counts.dropped == {"bad-frames": 1}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: [[*f[:-1], f[-1][:-8]]], "bad-size"),
        (lambda f: [[f[0][:-1]]], "bad-header-size"),
        (lambda f: [[f[0][:9] + b"\xff" + f[0][10:]]], "bad-checksum"),
        (lambda f: [[b"JSON" + f[0][4:]]], "bad-header"),
        (lambda f: [[f[0], *[bytes(8)] * 9]], "bad-frames"),
        (lambda f: [[b""]], "bad-header-size"),
        (lambda f: [f, f], "duplicate"),
    ],
)
def test_a_spoiled_message_is_counted_and_harms_nothing(
    world: World, spoil: Callable[[Frames], list[Frames]], reason: str
) -> None:
    parent, child, relay = spoiling(world)
    relay.spoil = spoil
    parent.send("c1", Activation(0, 0, X))
    relay.spoil = None
    parent.send("c1", Activation(1, 0, X))
    letters = world.until(lambda: child.counts.received["activation"] == (2 if reason == "duplicate" else 1), child)
    assert letters[-1].message.id == 1
    assert child.counts.dropped == {reason: 1}, "each is counted once: what was spoilt is not lost as well"


def test_a_message_from_nobody_we_know_is_refused(open_sockets: World) -> None:
    parent, child = open_sockets.pair()
    endpoint = address.endpoint_of(open_sockets.directory, "c1")
    assert endpoint is not None
    context = zmq.Context()
    forged = {
        b"c9:1": wire.encode(Activation(0, 0, X), Stamp(RUN, "c9", 1, 1)),
        b"c0:2": wire.encode(Activation(0, 0, X), Stamp(RUN, "c0", 3, 1)),
        b"c0:9": wire.encode(Activation(0, 0, X), Stamp("other", "c0", 9, 1)),
    }
    for identity, frames in forged.items():
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, identity)
        dealer.connect(endpoint)
        dealer.send_multipart(frames)
        dealer.close(linger=5000)
    open_sockets.until(lambda: child.counts.dropped.total() == 6, child)  # three messages, and each hangs up
    context.term()
    assert child.counts.dropped == {"bad-sender": 2, "other-run": 1, "hung-up": 3}
    parent.send("c1", Activation(0, 0, X))
    assert len(open_sockets.take(child)) == 1


@pytest.mark.parametrize("identity", [b"c0:2", b"c0:99", b"c0:01", b"c0:+1", "c0:١".encode(), b"c0:1 "])
def test_nobody_speaks_for_a_life_that_was_not_announced(open_sockets: World, identity: bytes) -> None:
    """Whoever has read the run's id greets as the next life of a parent, or says bye in its name."""
    parent, child = open_sockets.pair()
    endpoint = address.endpoint_of(open_sockets.directory, "c1")
    assert endpoint is not None
    incarnation = 99 if identity.endswith(b"99") else 2 if identity.endswith(b"2") else 1
    with zmq.Context() as context, context.socket(zmq.DEALER) as heir:
        heir.setsockopt(zmq.IDENTITY, identity)
        heir.setsockopt(zmq.LINGER, 0)
        heir.connect(endpoint)
        for sequence, kind in enumerate((Kind.HELLO, Kind.BYE), start=1000):
            heir.send_multipart(wire.encode_control(kind, Stamp(RUN, "c0", incarnation, sequence), window=2, heard=1))
        open_sockets.until(lambda: child.counts.dropped.total() == 2, child)
    assert child.counts.dropped == {"bad-sender": 2}
    assert view(child, "c0").incarnation == 1
    assert child.parents_left()
    parent.send("c1", Activation(0, 0, X))
    assert len(open_sockets.take(child)) == 1


@pytest.mark.parametrize("garbage", [b"\x01\x00\x06\x00hello", bytes(range(256)) * 64, b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_from_a_raw_socket_harms_nothing(open_sockets: World, garbage: bytes) -> None:
    parent, child = open_sockets.pair()
    with raw_connection(address.endpoint_of(open_sockets.directory, "c1") or "") as raw:
        with contextlib.suppress(OSError):  # hanging up on it is fine
            raw.sendall(garbage)
        if garbage.endswith(b"hello"):  # ZMTP 1.0 without a handshake: it arrives
            open_sockets.until(lambda: child.counts.dropped.total() == 1, child)
        parent.send("c1", Activation(0, 0, X))
        assert len(open_sockets.take(child)) == 1


@contextlib.contextmanager
def raw_connection(endpoint: str) -> Iterator[socket.socket]:
    scheme, _, where = endpoint.partition("://")
    raw = socket.socket(socket.AF_UNIX if scheme == "ipc" else socket.AF_INET)
    with raw:
        host, _, port = where.partition(":")
        raw.connect(where if scheme == "ipc" else (host, int(port)))
        yield raw


def test_a_published_file_that_holds_no_endpoint_is_harmless(sockets: World) -> None:
    if sockets.kind == "far":
        pytest.skip("there nothing is published")
    address.publish(sockets.directory, "c1", "nonsense")
    parent = sockets.mailbox("c0", children="c1")
    assert parent.receive(0.1) == []
    child = sockets.mailbox("c1", parents="c0")
    sockets.until(lambda: parent.room("c1"), parent, child)
