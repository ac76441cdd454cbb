"""Long frames through shared memory, between two transports that are lists: no socket, no process, no clock."""

import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import lane
from bus.lane import LaneTransport
from bus.mailbox import Parcel, Peer
from bus.wire import TENSORS_CAP, Frames, Reason, Rejected

FIRST = b"MACHhead"
LONG = bytes(range(256)) * 400
CHILD, PARENT = Peer("child", "c1", 1), Peer("parent", "c0", 1)


class List:
    """A transport whose wire is a list, and whose clock stands where it is put."""

    farewell_s = 0.0
    inline_cap = 0

    def __init__(self, sees: Peer) -> None:
        self.sees = sees
        """How the other end sees us."""
        self.other: List
        self.inbox: list[Parcel] = []
        self.connected = True
        self.at = 0.0
        self.closed = False

    def now(self) -> float:
        return self.at

    def send(self, peer: Peer, frames: Frames) -> bool:
        if self.connected:
            self.other.inbox.append((self.sees, [bytes(frame) for frame in frames]))
        return self.connected

    def receive(self) -> list[Parcel]:
        come, self.inbox = self.inbox, []
        return come

    def wait(self, seconds: float) -> bool:
        return False

    def reach(self, child: str, *, anew: bool = False) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Ends:
    """A parent c0 and a child c1 with lanes over lists."""

    def __init__(self, directory: Path, window: int = 1) -> None:
        self.directory, self.window = directory, window
        self.wires = List(Peer("parent", "c0", 1)), List(Peer("child", "c1"))
        self.wires[0].other, self.wires[1].other = self.wires[1], self.wires[0]
        self.parent = self.end(0, 1)
        self.child = self.end(1, 1)

    def end(self, side: int, incarnation: int) -> LaneTransport:
        self.wires[side].closed = False
        terms = {"incarnation": incarnation, "window": self.window}
        return LaneTransport(self.wires[side], f"c{side}", directory=self.directory, timeout_s=1.0, **terms)

    def carried(self) -> list[bytes]:
        """The newest message on the wire to the child."""
        frames = self.wires[1].inbox[-1][1]
        assert not isinstance(frames, Rejected)
        return [bytes(frame) for frame in frames]

    def ticketed(self) -> bool:
        """Whether that is a ticket and frame 0, and no long frame."""
        (first, *rest) = self.carried()
        return not rest and len(first) == lane._TICKET.size + len(FIRST)

    def open(self) -> None:
        """One message, after which the lane is in use."""
        assert self.parent.send(CHILD, [FIRST, LONG])
        assert self.took() == [FIRST, LONG]

    def took(self) -> list[bytes]:
        """The one message that the child receives."""
        (frames,) = self.all()
        return frames

    def all(self) -> list[list[bytes]]:
        """The messages that the child receives."""
        taken = []
        for _, frames in self.child.receive():
            assert not isinstance(frames, Rejected), frames
            taken.append([bytes(frame) for frame in frames])
        return taken

    def refused(self) -> Reason:
        """Why the one message that came is none."""
        ((_, rejected),) = self.child.receive()
        assert isinstance(rejected, Rejected)
        return rejected.reason


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.parent.close()
    made.child.close()
    assert list(tmp_path.iterdir()) == []


def test_the_first_long_message_goes_inline_and_the_rest_through_memory(ends: Ends) -> None:
    ends.open()
    assert ends.parent.send(CHILD, [FIRST, LONG[:500], LONG[1000:]])
    assert ends.ticketed()
    ((_, taken),) = ends.child.receive()
    assert not isinstance(taken, Rejected)
    assert [bytes(frame) for frame in taken] == [FIRST, LONG[:500], LONG[1000:]]
    assert all(isinstance(frame, bytearray) for frame in taken[1:])  # ours: nobody copies them again


def test_short_messages_are_left_alone(ends: Ends) -> None:
    assert ends.parent.send(CHILD, [FIRST])
    assert ends.carried() == [FIRST]
    assert list(ends.directory.iterdir()) == []


def test_both_directions_have_their_own_memory(ends: Ends) -> None:
    ends.open()
    for _ in range(2):
        assert ends.child.send(PARENT, [FIRST, LONG])
        ((_, frames),) = ends.parent.receive()
        assert not isinstance(frames, Rejected)
        assert [bytes(frame) for frame in frames] == [FIRST, LONG]
    assert len(list(ends.directory.iterdir())) == 2


def test_without_a_free_slot_a_message_goes_inline(ends: Ends) -> None:
    ends.open()
    for _ in range(2):
        assert ends.parent.send(CHILD, [FIRST, LONG])
        assert ends.ticketed()
    assert ends.parent.send(CHILD, [FIRST, LONG])
    assert ends.carried() == [FIRST, LONG]
    assert ends.all() == 3 * [[FIRST, LONG]]
    assert ends.parent.send(CHILD, [FIRST, LONG])
    assert ends.ticketed()  # the slots are free again


def test_a_message_that_did_not_leave_keeps_no_slot(ends: Ends) -> None:
    ends.open()
    ends.wires[0].connected = False
    for _ in range(5):
        assert not ends.parent.send(CHILD, [FIRST, LONG])
    ends.wires[0].connected = True
    assert ends.parent.send(CHILD, [FIRST, LONG])
    assert ends.ticketed()


def test_the_slot_of_a_lost_ticket_comes_back_and_the_ticket_is_stale(ends: Ends) -> None:
    ends.open()
    for _ in range(2):
        ends.parent.send(CHILD, [FIRST, LONG])
    lost = ends.wires[1].receive()
    ends.wires[0].at = 3.0
    assert ends.parent.send(CHILD, [FIRST, LONG])
    assert ends.ticketed()
    ends.wires[1].inbox.insert(0, lost[0])
    (_, stale), (_, fresh) = ends.child.receive()
    assert stale == Rejected(Reason.STALE_SLOT)
    assert not isinstance(fresh, Rejected)
    assert bytes(fresh[1]) == LONG


def test_a_slot_written_anew_during_the_copy_is_noticed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.open()
    ends.parent.send(CHILD, [FIRST, LONG])
    copy = ends.child._pool.copy

    def slowly(frame: bytes | memoryview) -> bytearray:
        taken = copy(frame)
        ends.wires[0].at += 3.0  # longer than any slot is kept for a reader
        for _ in range(2):
            ends.parent.send(CHILD, [FIRST, LONG[::-1]])
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(ends.child._pool, "copy", slowly)
        assert ends.refused() == Reason.STALE_SLOT
    assert ends.all() == 2 * [[FIRST, LONG[::-1]]]


def test_a_ticket_shown_twice_is_read_only_while_its_slot_holds_it(ends: Ends) -> None:
    ends.open()
    ends.parent.send(CHILD, [FIRST, LONG])
    ends.wires[1].inbox *= 2
    assert ends.all() == 2 * [[FIRST, LONG]]  # the edge knows that it had it


def test_larger_messages_get_larger_memory(ends: Ends) -> None:
    ends.open()
    for ticketed in (False, True):
        assert ends.parent.send(CHILD, [FIRST, 3 * LONG])
        assert ends.ticketed() == ticketed
        assert ends.took() == [FIRST, 3 * LONG]
    assert len(list(ends.directory.iterdir())) == 1


def test_a_new_life_of_the_receiver_maps_anew(ends: Ends) -> None:
    ends.open()
    ends.parent.send(CHILD, [FIRST, LONG])
    ends.child = ends.end(1, 2)
    assert ends.refused() == Reason.TICKET  # for its earlier life
    for ticketed in (False, True):
        assert ends.parent.send(CHILD._replace(incarnation=2), [FIRST, LONG])
        assert ends.ticketed() == ticketed
        assert ends.took() == [FIRST, LONG]


def test_a_new_life_of_the_sender_is_mapped_anew(ends: Ends) -> None:
    ends.open()
    ends.parent.close()
    ends.parent = ends.end(0, 2)
    ends.wires[0].sees = PARENT._replace(incarnation=2)
    ends.open()
    assert ends.parent.send(CHILD, [FIRST, LONG])
    assert ends.ticketed()
    assert ends.took() == [FIRST, LONG]


@given(st.binary(max_size=80), st.lists(st.binary(max_size=16), max_size=3), st.booleans())
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ticket_or_notice_is_refused_or_read(ends: Ends, tail: bytes, more: list[bytes], ticket: bool) -> None:
    if not ends.child._in:
        ends.open()
    mark = lane._TAKE if ticket else lane._SEE
    ends.wires[1].inbox.append((PARENT, [mark + tail, *more]))
    ((_, frames),) = ends.child.receive()
    if more:
        assert frames == (Rejected(Reason.TICKET) if ticket else more)


@pytest.mark.parametrize(
    "claim",
    [
        {"index": 2},
        {"index": 65535},
        {"number": 1},
        {"generation": 2**63},
        {"generation": 1},
        {"lengths": [1 << 60, 0]},
        {"count": 2, "lengths": [len(LONG), 1 << 63]},
        {"count": 2, "lengths": [len(LONG), len(LONG)]},
    ],
)
def test_a_false_claim_costs_nothing(ends: Ends, claim: dict[str, object]) -> None:
    ends.open()
    ends.parent.send(CHILD, [FIRST, LONG])
    names = ("index", "count", "number", "generation")
    mark, *words = lane._TICKET.unpack_from(ends.carried()[0])
    said = dict(zip(names, words, strict=False)) | {"lengths": words[4:]} | claim
    lengths = [*said["lengths"], *[0] * TENSORS_CAP][:TENSORS_CAP]
    ticket = lane._TICKET.pack(mark, *(said[name] for name in names), *lengths)
    ends.wires[1].inbox = [(PARENT, [ticket + FIRST])]
    assert ends.refused() == (Reason.STALE_SLOT if "generation" in claim else Reason.TICKET)


@pytest.mark.parametrize("word", [(1 << 64) - 1, (1 << 64) - 2, 12345])
def test_whatever_the_receiver_writes_into_the_memory_the_sender_goes_on(ends: Ends, word: int) -> None:
    ends.open()
    ((segment, *_),) = [[out.segment] for out in ends.parent._out.values()]
    for index in range(len(segment.generation)):
        segment.generation[index] = segment.released[index] = word
    for _ in range(4):
        assert ends.parent.send(CHILD, [FIRST, LONG])
        assert ends.took() == [FIRST, LONG]


def test_a_door_to_anything_else_is_not_opened(ends: Ends, tmp_path: Path) -> None:
    """A file that could be cut short under us, nothing at all, a device."""
    plain, door = tmp_path / "plain", tmp_path / "c0-1-c1-child.lane"
    plain.write_bytes(bytes(1 << 16))
    for target in (plain, tmp_path / "nothing", Path("/dev/zero")):
        door.symlink_to(target)
        ends.wires[1].inbox.append((PARENT, [lane._NOTICE.pack(lane._SEE, 1, 7), FIRST]))
        assert ends.took() == [FIRST]
        assert ends.child._in == {}
        door.unlink()
    plain.unlink()


def test_without_memory_everything_goes_inline_and_says_so_once(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with caplog.at_level(logging.WARNING, "mach.bus"):
            for _ in range(5):
                assert ends.parent.send(CHILD, [FIRST, LONG])
                assert ends.carried() == [FIRST, LONG]
                assert ends.took() == [FIRST, LONG]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.message.partition(" (")[0] for record in caplog.records] == ["c0: no shared memory"]


def test_more_than_a_share_of_the_free_memory_is_not_taken(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "SPARE", 1 << 40)
    ends.open()
    assert ends.parent._out == {}


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ends = Ends(tmp_path)
        ends.open()
        ends.parent.send(CHILD, [FIRST, LONG])
        ends.parent.close()
        assert ends.took() == [FIRST, LONG]  # what was sent before can still be read
        ends.child.close()
        assert ends.wires[0].closed
        assert list(tmp_path.iterdir()) == []
    assert set(os.listdir("/proc/self/fd")) == before
    assert "mach-lane" not in Path("/proc/self/maps").read_text(encoding="utf-8")
