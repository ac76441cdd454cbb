"""Messages that go through the ring and past it stay in order, whatever comes when; no life reads another one's."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import lane
from lanes import CHILD, FIRST, LONG, PARENT, Ends

DOINGS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from([0, 1000, 100_000, 300_000])),
    st.tuples(st.just("receive"), st.integers(0, 3)),
)
"""A message of so many bytes, and a turn of its receiver after so many more have arrived from the socket."""


def firsts(ends: Ends) -> list[bytes]:
    """First frames of the messages that the child receives."""
    return [first for first, *_ in ends.all()]


@pytest.mark.parametrize("refuses", [False, True])
@given(doings=st.lists(DOINGS, min_size=8, max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_is_sent_and_whenever_it_arrives_it_stays_in_order(
    tmp_path_factory: pytest.TempPathFactory, refuses: bool, doings: list[tuple[str, int]]
) -> None:
    """Slots run out, segments grow or (`refuses`) cannot grow any more, and the socket is slower than the ring."""
    ends = Ends(tmp_path_factory.mktemp("run"))
    sent: list[bytes] = []
    came: list[bytes] = []
    wire = ends.wires[1]
    ends.open()
    ends.parent._look_at = ends.child._look_at = -1.0
    for what, number in doings:
        if refuses:
            ends.parent._refused[CHILD] = lane.TRIES
        if what == "send":
            sent.append(len(sent).to_bytes(8, "little"))
            ends.tells(sent[-1], *([bytes(number)] if number else []))
        else:
            wire.inbox, later = wire.inbox[:number], wire.inbox[number:]
            ends.child._look_at = 0.0
            came += firsts(ends)
            wire.inbox += later
            assert came == sent[: len(came)]
    ends.child._look_at = 0.0
    assert came + firsts(ends) == sent
    ends.parent.close()
    ends.child.close()


def test_an_entry_between_two_that_went_past_the_ring_comes_between_them(ends: Ends) -> None:
    ends.open()
    sent = [b"1", b"2", b"3", b"4", b"5", b"6"]
    through = [ends.tells(first, *([] if first in b"46" else [LONG])) for first in sent]
    assert through == [True, True, False, True, False, True]
    assert firsts(ends) == sent


def test_what_was_held_back_in_memory_that_is_replaced_comes_first(ends: Ends) -> None:
    ends.open()
    for number in (b"1", b"2", b"3"):
        ends.tells(number, LONG)
    assert ends.tells(b"4")
    assert not ends.tells(b"5", 3 * LONG)
    assert firsts(ends) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_lost_message_is_waited_for_once(ends: Ends) -> None:
    ends.open()
    for _ in range(3):
        ends.tells(FIRST, LONG)
    for number in (b"1", b"2", b"3"):
        assert ends.tells(number)
    ends.wires[1].inbox = []
    assert len(ends.all()) == 2
    assert ends.all() == []
    ends.wires[1].at = lane.HOLD_S
    assert firsts(ends) == [b"1", b"2", b"3"]
    assert ends.tells(b"4")
    assert firsts(ends) == [b"4"]


def test_what_does_not_fit_and_cannot_be_given_more_memory_is_waited_for(ends: Ends) -> None:
    ends.open()
    ends.parent._refused[CHILD] = lane.TRIES
    assert ends.tells(b"1", LONG)
    assert not ends.tells(b"2", 3 * LONG)
    assert ends.tells(b"3")
    late, ends.wires[1].inbox = ends.wires[1].inbox, []
    assert firsts(ends) == [b"1"]
    ends.wires[1].inbox = late
    assert firsts(ends) == [b"2", b"3"]


def test_a_new_life_reads_nothing_that_was_written_for_an_earlier_one(ends: Ends) -> None:
    ends.open()
    for number in (b"1", b"2", b"3"):
        assert ends.tells(number, LONG)
        assert firsts(ends) == [number]
    assert ends.tells(b"4", LONG)
    ends.child.close()
    ends.child = ends.end(1, 2)
    assert not ends.tells(b"hello")  # to the life that its sender knows
    assert firsts(ends) == [b"hello"]
    assert firsts(ends) == []


def test_last_words_of_an_earlier_life_do_not_bring_its_memory_back(ends: Ends) -> None:
    ends.open()
    earlier, number = ends.parent, ends.ring().number
    ends.parent = ends.end(0, 2)
    ends.wires[0].sees = PARENT._replace(incarnation=2)
    ends.open()
    ends.wires[1].inbox = [(PARENT, [lane._NOTICE.pack(lane._SEE, 1, number, 2), b"late"])]
    assert firsts(ends) == [b"late"]
    assert ends.tells(b"1", LONG)
    assert firsts(ends) == [b"1"]
    earlier.close()


def test_fifty_lives_of_a_neighbour_leave_no_descriptor_and_no_memory(ends: Ends) -> None:
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return len(os.listdir("/proc/self/fd")), maps.count("mach-lane")

    counts = set()
    for life in range(1, 51):
        if life > 1:
            ends.child.close()
            ends.child = ends.end(1, life)
        to = CHILD._replace(incarnation=life)
        for through in (False, True):
            assert ends.parent.send(to, [FIRST, LONG])
            assert bool(ends.wires[1].inbox) != through
            assert ends.took() == [FIRST, LONG]
            assert ends.child.send(PARENT, [FIRST, LONG])
            assert len(ends.parent.receive()) == 1
        counts.add(held())
    assert len(counts) == 1


def test_a_door_that_leads_to_no_bell_is_not_written_to(ends: Ends, tmp_path: Path) -> None:
    """Its process is gone, and another one has something open under the same numbers."""
    plain = tmp_path / "plain"
    plain.write_bytes(b"content")
    door = ends.child.bell.door
    door.unlink()
    door.symlink_to(plain)
    ends.open()
    ends.ring().asleep[0] = 1
    assert not ends.tells(FIRST, LONG)
    assert plain.read_bytes() == b"content"
    plain.unlink()
