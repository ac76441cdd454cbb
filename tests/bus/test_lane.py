"""Messages through shared memory, between two transports that are lists: no socket, no process, no clock."""

import os
import select
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import lane, segment
from bus.mailbox import Peer
from bus.segment import ENTRIES, ENTRY_CAP
from bus.wire import TENSORS_CAP, Reason, Rejected
from lanes import CHILD, FIRST, LONG, PARENT, Ends, Waits


def lanes(directory: Path) -> list[str]:
    """Doors to memory."""
    return [path.name for path in directory.glob("*.lane")]


def test_the_first_long_message_goes_inline_and_everything_after_it_through_memory(ends: Ends) -> None:
    ends.open()
    assert ends.tells(FIRST, LONG[:500], LONG[1000:])
    ((peer, taken),) = ends.child.receive()
    assert peer == PARENT
    assert not isinstance(taken, Rejected)
    assert [bytes(frame) for frame in taken] == [FIRST, LONG[:500], LONG[1000:]]
    assert all(isinstance(frame, bytearray) for frame in taken[1:])  # ours: nobody copies them again
    assert ends.tells(FIRST)
    assert ends.took() == [FIRST]


def test_short_messages_alone_take_no_memory(ends: Ends) -> None:
    assert not ends.tells(FIRST)
    assert ends.carried() == [[FIRST]]
    assert lanes(ends.directory) == []


def test_both_directions_have_their_own_memory(ends: Ends) -> None:
    ends.open()
    for _ in range(2):
        assert ends.child.send(PARENT, [FIRST, LONG])
        ((_, frames),) = ends.parent.receive()
        assert not isinstance(frames, Rejected)
        assert [bytes(frame) for frame in frames] == [FIRST, LONG]
    assert len(lanes(ends.directory)) == 2


def test_the_ring_goes_round(ends: Ends) -> None:
    ends.open()
    for number in range(3 * ENTRIES):
        message = [number.to_bytes(8, "little"), *([LONG[number:]] if number % 3 else [])]
        assert ends.tells(*message)
        assert ends.took() == message
    assert ends.ring().written[0] == ends.ring().read[0] == 3 * ENTRIES


def test_without_a_free_slot_messages_go_past_the_ring_and_stay_in_order(ends: Ends) -> None:
    ends.open()
    sent = [[bytes([number]) * 8, LONG[number:]] for number in range(4)] + [[b"short", b""][:1]]
    through = [ends.tells(*message) for message in sent]
    assert through == [True, True, False, False, True]
    assert ends.all() == sent
    assert ends.tells(FIRST, LONG)  # the slots are free again


def test_a_full_ring_is_passed_by(ends: Ends) -> None:
    ends.open()
    sent = [[number.to_bytes(8, "little")] for number in range(ENTRIES + 5)]
    assert [ends.tells(*message) for message in sent] == ENTRIES * [True] + 5 * [False]
    assert ends.all() == sent


def test_a_frame_that_an_entry_cannot_hold_goes_past_the_ring(ends: Ends) -> None:
    ends.open()
    assert ends.tells(bytes(ENTRY_CAP))
    assert not ends.tells(bytes(ENTRY_CAP + 1))
    assert [len(first) for (first,) in ends.all()] == [ENTRY_CAP, ENTRY_CAP + 1]


def test_an_entry_waits_for_what_went_past_the_ring_before_it(ends: Ends) -> None:
    ends.open()
    for number in range(3):
        ends.tells(bytes([number]) * 8, LONG)
    ends.tells(b"last")
    held, ends.wires[1].inbox = ends.wires[1].inbox, []
    assert [first for first, *_ in ends.all()] == [bytes(8), b"\x01" * 8]
    assert ends.all() == []
    ends.wires[1].inbox = held
    assert [first for first, *_ in ends.all()] == [b"\x02" * 8, b"last"]


def test_an_entry_does_not_wait_for_ever_for_one_that_is_lost(ends: Ends) -> None:
    ends.open()
    for _ in range(3):
        ends.tells(FIRST, LONG)
    ends.tells(b"last")
    ends.wires[1].inbox = []
    assert len(ends.all()) == 2
    ends.wires[1].at = 0.99 * lane.HOLD_S
    assert ends.all() == []
    ends.wires[1].at = lane.HOLD_S
    assert ends.all() == [[b"last"]]


def test_a_message_that_did_not_leave_is_not_waited_for(ends: Ends) -> None:
    ends.open()
    ends.tells(FIRST, LONG)
    ends.tells(FIRST, LONG)
    ends.wires[0].connected = False
    for _ in range(5):
        assert not ends.parent.send(CHILD, [FIRST, LONG])
    ends.wires[0].connected = True
    assert ends.tells(b"last")
    assert [first for first, *_ in ends.all()] == [FIRST, FIRST, b"last"]


def test_the_slot_of_a_message_nobody_read_comes_back_and_the_entry_is_stale(ends: Ends) -> None:
    ends.open()
    for _ in range(2):
        assert ends.tells(FIRST, LONG)
    ends.wires[0].at = 3.0
    assert ends.tells(FIRST, LONG[::-1])
    (_, stale), (_, whole), (_, fresh) = ends.child.receive()
    assert stale == Rejected(Reason.STALE_SLOT)
    assert not isinstance(whole, Rejected)
    assert bytes(whole[1]) == LONG
    assert not isinstance(fresh, Rejected)
    assert bytes(fresh[1]) == LONG[::-1]


def test_a_slot_written_anew_during_the_copy_is_noticed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.open()
    ends.tells(FIRST, LONG)
    copy = ends.child._pool.copy

    def slowly(frame: bytes | memoryview) -> bytearray:
        taken = copy(frame)
        ends.wires[0].at += 3.0  # longer than any slot is kept for a reader
        for _ in range(2):
            assert ends.tells(FIRST, LONG[::-1])
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(ends.child._pool, "copy", slowly)
        assert ends.refused() == Reason.STALE_SLOT
    assert ends.all() == 2 * [[FIRST, LONG[::-1]]]


def test_a_reader_that_waits_is_woken_once_and_one_that_does_not_never(ends: Ends) -> None:
    ends.open()
    waits = Waits(PARENT)
    ends.child.inner = waits

    def rung() -> bytes:
        return (
            os.read(ends.child.bell.descriptor, 64)
            if select.select([ends.child.bell.descriptor], [], [], 0)[0]
            else b""
        )

    ends.tells(FIRST)
    assert rung() == b""
    ends.child.wait(9.0)
    assert waits.waited == 0.0  # it lies there already
    ends.child.receive()
    waits.meanwhile = lambda: (ends.tells(FIRST), ends.tells(FIRST, LONG))
    ends.child.wait(9.0)
    assert waits.waited == 9.0
    assert rung() == b"."
    ends.tells(FIRST)
    assert rung() == b""
    assert len(ends.all()) == 3


def test_a_reader_that_waits_for_what_went_past_the_ring_does_not_spin(ends: Ends) -> None:
    ends.open()
    for _ in range(3):
        ends.tells(FIRST, LONG)
    ends.tells(b"last")
    waits = Waits(PARENT)
    ends.child.inner = waits
    assert len(ends.all()) == 2
    ends.child.wait(9.0)
    assert waits.waited == 9.0


def test_a_quiet_socket_is_looked_at_now_and_then(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "QUIET_S", 0.5)
    monkeypatch.setattr(lane, "SPOKEN_S", 0.1)
    ends.open()
    ends.wires[1].at = 0.1
    assert ends.all() == []
    ends.wires[1].inbox = [(PARENT, [FIRST])]
    assert ends.all() == []
    ends.wires[1].at = 0.6
    assert ends.all() == [[FIRST]]
    ends.wires[1].inbox = [(PARENT, [FIRST])]
    assert ends.all() == [[FIRST]]  # at once: it was not quiet
    ends.wires[1].at = 0.7
    assert ends.all() == []
    ends.child.wait(0.0)
    ends.wires[1].inbox = [(PARENT, [FIRST])]
    assert ends.all() == [[FIRST]]  # as after every wait


def test_who_gets_no_ring_is_heard_at_once_beside_one_who_has_one(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "QUIET_S", 0.5)
    ends.open()
    for step in range(20):  # a message every 0.5 s from another peer, through the socket alone
        ends.wires[1].at = step / 2
        assert ends.all() == []
        ends.wires[1].inbox = [(Peer("parent", "c7", 1), [FIRST])]
        assert ends.all() == [[FIRST]]


def test_a_socket_is_looked_at_for_what_an_entry_waits_for(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "QUIET_S", 0.5)
    monkeypatch.setattr(lane, "SPOKEN_S", 0.0)
    ends.open()
    for _ in range(2):
        ends.tells(FIRST, LONG)
    assert len(ends.all()) == 2
    for _ in range(3):
        ends.tells(FIRST, LONG)
    ends.tells(b"last")
    assert [len(ends.all()), len(ends.all())] == [2, 2]


def test_nothing_more_is_written_into_the_ring_of_one_that_is_dead(ends: Ends) -> None:
    ends.open()
    ends.tells(FIRST)
    ends.took()
    ends.child.bell.close()
    assert not ends.tells(FIRST)  # as a hello is, to whoever comes next
    assert ends.tells(FIRST, LONG)  # the ring was empty: nobody asked
    assert not ends.tells(FIRST, LONG)
    ends.child.bell = segment.Bell(ends.child.bell.door)


def test_whether_one_that_has_fallen_behind_lives_is_asked_now_and_then(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "QUIET_S", 0.5)
    ends.open()
    assert ends.tells(FIRST, LONG)  # asked, since its rope is new
    ends.child.bell.close()
    assert ends.tells(FIRST, LONG)  # not asked again so soon
    ends.child.receive()
    assert ends.tells(FIRST, LONG)
    ends.wires[0].at = 0.5
    assert not ends.tells(FIRST, LONG)
    ends.child.bell = segment.Bell(ends.child.bell.door)


def test_more_frames_than_an_entry_tells_of_go_past_the_ring(ends: Ends) -> None:
    ends.open()
    message = [FIRST, *[LONG[:8]] * (TENSORS_CAP + 1)]
    assert not ends.tells(*message)
    assert ends.took() == message


def test_larger_messages_get_larger_memory_in_order(ends: Ends) -> None:
    ends.open()
    assert ends.tells(b"small", LONG)
    assert not ends.tells(b"large", 3 * LONG)
    assert not ends.tells(b"after")  # nobody has mapped the new one yet
    assert [first for first, *_ in ends.all()] == [b"small", b"large", b"after"]
    assert ends.tells(FIRST, 3 * LONG)
    assert ends.took() == [FIRST, 3 * LONG]
    assert len(lanes(ends.directory)) == 1


def test_a_new_life_of_the_receiver_maps_anew(ends: Ends) -> None:
    ends.open()
    ends.tells(FIRST, LONG)
    ends.child.close()
    ends.child = ends.end(1, 2)
    assert ends.all() == []  # what its earlier life did not read
    again = CHILD._replace(incarnation=2)
    for through in (False, True):
        assert ends.parent.send(again, [FIRST, LONG])
        assert bool(ends.wires[1].inbox) != through
        assert ends.took() == [FIRST, LONG]


def test_a_new_life_of_the_sender_is_mapped_anew(ends: Ends) -> None:
    ends.open()
    ends.parent.close()
    ends.parent = ends.end(0, 2)
    ends.wires[0].sees = PARENT._replace(incarnation=2)
    ends.open()
    assert ends.tells(FIRST, LONG)
    ((peer, _),) = ends.child.receive()
    assert peer.incarnation == 2


@given(st.binary(max_size=80), st.lists(st.binary(max_size=16), max_size=3))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_notice_is_read_or_passed_over(ends: Ends, tail: bytes, more: list[bytes]) -> None:
    if not ends.child._in:
        ends.open()
    ends.wires[1].inbox.append((PARENT, [lane._SEE + tail, *more]))
    assert ends.all() == [more]


@given(st.binary(min_size=segment._ENTRY.size, max_size=segment.ENTRY))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_entry_is_refused_or_read(ends: Ends, words: bytes) -> None:
    if not ends.child._in:
        ends.open()
    ring = ends.ring()
    ends.wires[1].at += 2 * lane.HOLD_S  # an entry may claim that something went past before it
    ends.tells(FIRST)
    at = segment.PAGE + (ring.written[0] - 1) % ENTRIES * segment.ENTRY
    ring._memory[at : at + len(words)] = words
    ends.child.receive()
    ends.wires[1].at += 2 * lane.HOLD_S
    ends.child.receive()
    assert ring.read[0] == ring.written[0]


@pytest.mark.parametrize(
    "claim",
    [
        {"slot": 2},
        {"slot": 65535},
        {"generation": 2**63},
        {"generation": 1},
        {"lengths": [1 << 60, 0]},
        {"count": 2, "lengths": [len(LONG), 1 << 63]},
        {"count": 2, "lengths": [len(LONG), len(LONG)]},
    ],
)
def test_a_false_claim_costs_nothing(ends: Ends, claim: dict[str, object]) -> None:
    ends.open()
    assert ends.tells(FIRST, LONG)
    names = ("length", "slot", "count", "past", "generation")
    words = segment._ENTRY.unpack_from(ends.ring()._memory, segment.PAGE)
    said = dict(zip(names, words, strict=False)) | {"lengths": [*words[5:]]} | claim
    lengths = [*said["lengths"], *[0] * TENSORS_CAP][:TENSORS_CAP]
    segment._ENTRY.pack_into(ends.ring()._memory, segment.PAGE, *(said[name] for name in names), *lengths)
    assert ends.refused() == (Reason.STALE_SLOT if "generation" in claim else Reason.TICKET)


@pytest.mark.parametrize("word", [(1 << 64) - 1, (1 << 64) - 2, 12345])
def test_whatever_the_receiver_writes_into_the_memory_the_sender_goes_on(ends: Ends, word: int) -> None:
    ends.open()
    ring = ends.ring()
    for index in range(len(ring.generation)):
        ring.generation[index] = ring.released[index] = word
    for _ in range(4):
        assert ends.tells(FIRST, LONG)
        assert ends.took() == [FIRST, LONG]
    ring.read[0] = ring.written[0] = word  # a reader that claims to have read this much, or more than there is
    for _ in range(4):
        assert ends.parent.send(CHILD, [FIRST, LONG])


@pytest.mark.parametrize("word", [(1 << 64) - 1, 1 << 63, 12345])
def test_a_ring_that_claims_more_than_it_holds_is_read_a_round_at_a_time(ends: Ends, word: int) -> None:
    ends.open()
    ends.ring().written[0] = word
    assert len(ends.child.receive()) <= ENTRIES


def test_a_door_to_anything_else_is_not_opened(ends: Ends, tmp_path: Path) -> None:
    """A file that could be cut short under us, nothing at all, a device."""
    plain, door = tmp_path / "plain", tmp_path / "c0-1-c1-child.lane"
    plain.write_bytes(bytes(1 << 16))
    for target in (plain, tmp_path / "nothing", Path("/dev/zero")):
        door.symlink_to(target)
        ends.wires[1].inbox.append((PARENT, [lane._NOTICE.pack(lane._SEE, 1, 7, 1), FIRST]))
        assert ends.took() == [FIRST]
        assert ends.child._in == {}
        door.unlink()
    plain.unlink()


def test_a_notice_that_came_late_holds_nothing_back(ends: Ends) -> None:
    ends.open()
    for _ in range(3):
        ends.tells(FIRST, LONG)
    assert len(ends.all()) == 3
    ends.wires[1].inbox = [(PARENT, [lane._NOTICE.pack(lane._SEE, 1, ends.ring().number, 1), FIRST])]
    assert ends.all() == [[FIRST]]
    assert ends.tells(b"last")
    assert ends.all() == [[b"last"]]


def test_a_new_life_that_is_shown_the_ring_of_an_earlier_one_reads_nothing_of_it(ends: Ends) -> None:
    """As by a message that its sender's socket had kept for whoever comes."""
    ends.open()
    for _ in range(5):
        assert ends.tells(FIRST, LONG)
        ends.took()
    ends.child.close()
    ends.child = ends.end(1, 2)
    ends.wires[1].inbox = [(PARENT, [lane._NOTICE.pack(lane._SEE, 1, ends.ring().number, 1), FIRST])]
    assert ends.all() == [[FIRST]]
