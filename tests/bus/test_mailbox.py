"""One conformance suite for every mailbox: virtual time, ipc, tcp, CURVE, shared memory. What trainers may rely on."""

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
import zmq

from bus import address, curve, keys, lane, wire
from bus import sockets as sockets_of_bus
from bus.mailbox import EdgeView, Mailbox, Peer, Relay, Transport
from bus.post import EdgeMailbox
from bus.segment import Segment
from bus.sockets import ZmqMailbox
from bus.virtual import VirtualBus
from bus.wire import Frame, Frames, Kind, Stamp
from configs.tree import Bus
from mach.messages import Activation, Gradient, Letter, Target

RUN = "0123456789abcdef"
W = 2
DEADLINE_S = 30.0
"""Generous: reached only by a test that fails."""
X = torch.arange(6.0).view(2, 3)

pytestmark = pytest.mark.usefixtures("leaks")


class World:
    """Mailboxes that are driven from here, whatever carries them."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.virtual = VirtualBus(latency_s=0.002, jitter_s=0.002)
        self.boxes: list[EdgeMailbox] = []
        self.entries = 0
        """Generations of what was written into shared memory."""
        self.settings: dict[str, str | int] = {"window": W, "hello_ms": 40, "timeout_ms": 400}
        self.settings |= {
            "transport": "tcp" if kind in ("tcp", "curve") else "ipc",
            "lane": "shared" if kind == "lane" else "inline",
        }

    def mailbox(
        self,
        name: str,
        children: str = "",
        parents: str = "",
        incarnation: int = 1,
        wrap: Callable[[Transport], Transport] | None = None,
        **settings: int,
    ) -> EdgeMailbox:
        bus = msgspec.convert(self.settings | settings, Bus)
        made: EdgeMailbox
        if self.kind == "virtual":
            made = self.virtual.mailbox(
                name, children=children.split(), parents=parents.split(), bus=bus, incarnation=incarnation, wrap=wrap
            )
        else:
            made = ZmqMailbox(
                name,
                run_id=RUN,
                incarnation=incarnation,
                children=children.split(),
                parents=parents.split(),
                bus=bus,
                directory=self.directory,
                wrap=wrap,
            )
        self.boxes.append(made)
        return made

    def pair(self, **settings: int) -> tuple[EdgeMailbox, EdgeMailbox]:
        """c0 asks c1, and their edge is open."""
        parent = self.mailbox("c0", "c1", "", 1, None, **settings)
        child = self.mailbox("c1", "", "c0", 1, None, **settings)
        self.until(lambda: parent.room("c1"), parent, child)
        return parent, child

    def kill(self, box: EdgeMailbox) -> None:
        """As by SIGKILL: no word to anybody."""
        box._transport.close()

    def until(self, done: Callable[[], bool], *boxes: EdgeMailbox) -> list[Letter]:
        """Let all of them receive until it is so; what they received."""
        letters: list[Letter] = []
        end = boxes[0].now() + DEADLINE_S
        while not done():
            assert boxes[0].now() < end, [box.story(peer) for box in boxes for peer in box.edges()]
            for box in boxes:
                letters += box.receive(0.005)
        return letters

    def take(self, box: EdgeMailbox, count: int = 1) -> list[Letter]:
        """The next letters of a mailbox."""
        letters: list[Letter] = []
        end = box.now() + DEADLINE_S
        while len(letters) < count:
            assert box.now() < end, [box.story(peer) for peer in box.edges()]
            letters += box.receive(0.005)
        return letters


@pytest.fixture(params=["virtual", "ipc", "tcp", "curve", "lane"])
def world(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    if request.param == "lane":  # every tensor is a long one, so that the first message makes the memory
        monkeypatch.setattr(lane, "FROM", -1)
    directory = address.make_directory()
    made = World(request.param, directory)
    written = Segment.write

    def write(segment: Segment, first: Frame, rest: Sequence[Frame], slot: int, past: int) -> None:
        made.entries += 1
        written(segment, first, rest, slot, past)

    monkeypatch.setattr(Segment, "write", write)
    if request.param == "curve":
        held = tmp_path_factory.mktemp("keys")
        keys.save(held, curve.new_keys())
        made.settings["keys"] = str(held)
    yield made
    for box in made.boxes:
        made.kill(box)
    left = sorted(path.name for path in directory.iterdir())
    address.remove(directory)
    assert left == ["owner"]


@pytest.fixture
def sockets(world: World) -> World:
    if world.kind == "virtual":
        pytest.skip("about sockets")
    return world


@pytest.fixture
def open_sockets(sockets: World) -> World:
    if sockets.kind == "curve":
        pytest.skip("strangers do not get this far: tests/bus/test_keys.py")
    return sockets


class Spoiling(Relay):
    """Does to the next messages what a test wants."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.spoil: Callable[[Frames], list[Frames]] | None = None
        self.sent = 0

    def send(self, peer: Peer, frames: Frames) -> bool:
        self.sent += 1
        copies = [frames] if self.spoil is None else self.spoil(frames)
        sent = [self.inner.send(peer, copy) for copy in copies]
        return all(sent)


def view(box: Mailbox, peer: str) -> EdgeView:
    (only,) = box.edges()[peer]
    return only


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
    relays: list[Spoiling] = []

    def wrap(inner: Transport) -> Transport:
        relays.append(Spoiling(inner))
        return relays[-1]

    parent, child = world.mailbox("c0", children="c1", wrap=wrap), world.mailbox("c1", parents="c0")
    world.until(lambda: parent.room("c1"), parent, child)
    before = relays[0].sent
    end = parent.now() + 2.0
    while parent.now() < end:
        if parent.room("c1"):
            parent.send("c1", Activation(relays[0].sent, 0, X))
        parent.receive(0.02)
    assert relays[0].sent - before <= W + 8
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
    relays: list[Spoiling] = []

    def wrap(inner: Transport) -> Transport:
        relays.append(Spoiling(inner))
        return relays[-1]

    parent, child = world.mailbox("c0", children="c1", wrap=wrap), world.mailbox("c1", parents="c0")
    world.until(lambda: parent.room("c1"), parent, child)
    relays[0].spoil = spoil
    parent.send("c1", Activation(0, 0, X))
    relays[0].spoil = None
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
    address.publish(sockets.directory, "c1", "nonsense")
    parent = sockets.mailbox("c0", children="c1")
    assert parent.receive(0.1) == []
    child = sockets.mailbox("c1", parents="c0")
    sockets.until(lambda: parent.room("c1"), parent, child)


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


def test_waiting_returns_with_the_first_letter(world: World) -> None:
    parent, child = world.pair()
    parent.send("c1", Activation(0, 0, X))
    assert len(child.receive(DEADLINE_S)) == 1
