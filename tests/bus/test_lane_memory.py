"""Memory of the lane: who gets none, and that none is left."""

import contextlib
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import lane, segment
from lanes import CHILD, FIRST, LONG, Ends


@contextlib.contextmanager
def memory_of(size: int) -> Iterator[None]:
    """No segment can be larger than this."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_memory_everything_goes_inline_and_says_so_once(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    with memory_of(1 << 16), caplog.at_level(logging.WARNING, "mach.bus"):
        for _ in range(5):
            assert not ends.tells(FIRST, LONG)
            assert ends.took() == [FIRST, LONG]
    assert [record.message.partition(" (")[0] for record in caplog.records] == ["c0: no shared memory for c1"]


def test_what_one_peer_is_refused_costs_no_other_and_not_its_next_life(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def out(door: Path, bell: Path, slots: int, size: int) -> lane.Out:
        asked.append(door.name)
        return made(door, bell, slots, size)

    made = lane.Out
    monkeypatch.setattr(lane, "Out", out)
    sibling, heir = CHILD._replace(name="c2"), CHILD._replace(incarnation=2)
    with memory_of(1 << 20):
        for peer in (CHILD, heir):
            for _ in range(lane.TRIES + 2):
                assert ends.parent.send(peer, [FIRST, 20 * LONG])
        assert asked == 2 * lane.TRIES * ["c0-1-c1-child.lane"]
        assert ends.parent.send(sibling, [FIRST, LONG])
        assert ends.parent.send(heir._replace(incarnation=3), [FIRST, LONG])
    assert sorted((peer.name, peer.incarnation) for peer in ends.parent._out) == [("c1", 3), ("c2", 1)]
    assert ends.parent._refused == {heir: lane.TRIES}, "nothing is remembered of lives that are over"


def test_more_than_a_share_of_the_free_memory_is_not_taken(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SPARE", 1 << 40)
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
