"""Memory of the lane: who gets none, and that none is left."""

import contextlib
import fcntl
import logging
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import address, lane, segment
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


def test_who_is_refused_a_larger_ring_keeps_the_smaller_one(ends: Ends) -> None:
    ends.open()
    smaller = ends.ring().number
    sent = [[FIRST, 20 * LONG], [FIRST, LONG], [FIRST], [FIRST, 20 * LONG], [FIRST]]
    with memory_of(1 << 20):
        assert [ends.tells(*message) for message in sent] == [False, True, True, False, True]
    assert ends.all() == sent
    assert ends.ring().number == smaller
    assert not ends.tells(FIRST, 20 * LONG)  # asked for once more, and had: the first message past it shows it
    assert ends.took() == [FIRST, 20 * LONG]
    assert ends.ring().number != smaller
    assert [ends.tells(*message) for message in sent[1:]] == [True, True, True, True]
    assert ends.all() == sent[1:]


def test_more_than_a_share_of_the_free_memory_is_not_taken(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SPARE", 1 << 40)
    ends.open()
    assert ends.parent._out == {}


def test_while_a_neighbour_takes_memory_nobody_else_does_and_is_not_refused_any(ends: Ends) -> None:
    with segment.alone(ends.directory):
        assert not ends.tells(FIRST, LONG)
        assert ends.carried() == [[FIRST, LONG]]
        with pytest.raises(BlockingIOError), segment.alone(ends.directory):
            pass
    assert not ends.parent._out
    assert not ends.parent._refused
    ends.child.receive()
    ends.open()
    assert ends.tells(FIRST)


def test_memory_is_taken_in_a_directory_that_its_keeper_has_locked() -> None:
    directory = address.make_directory()
    ends = Ends(directory)
    try:
        ends.open()
        assert ends.tells(FIRST, LONG)
    finally:
        ends.parent.close()
        ends.child.close()
        address.remove(directory)


def test_who_died_while_it_took_memory_hinders_nobody(ends: Ends) -> None:
    (ends.directory / "memory.lock").touch()
    ends.open()
    assert ends.tells(FIRST)


def test_a_lock_that_was_removed_meanwhile_is_no_lock(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another may have locked the next one."""

    def late(descriptor: int, operation: int) -> None:
        (ends.directory / "memory.lock").unlink()
        flock(descriptor, operation)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BlockingIOError, match="a moment ago"), segment.alone(ends.directory):
        pass


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


@contextlib.contextmanager
def plain_fork() -> Iterator[None]:
    """Beside a process with all that this one has, which does nothing."""
    ours, its = socket.socketpair()
    process = os.fork()
    if not process:
        ours.close()
        its.send(b"here")
        its.recv(1)  # until the other end is closed, whatever becomes of its process
        os._exit(0)
    with ours, its:
        its.close()
        ours.recv(4)
        yield
    os.waitpid(process, 0)


@contextlib.contextmanager
def executed() -> Iterator[int]:
    """A process of another program, which is given every descriptor that may be passed on."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as process:
        yield process.pid


def held(process: int | str) -> list[str]:
    """What the descriptors of a process lead to."""
    return [os.readlink(each) for each in Path(f"/proc/{process}/fd").iterdir() if os.path.lexists(each)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_of_a_receiver_does_not_keep_its_bell_alive(ends: Ends) -> None:
    ends.open()
    assert ends.tells(FIRST)
    with plain_fork():
        ends.child.bell.close()
        assert not ends.tells(FIRST), "a sender that took it for alive would write what nobody reads"
    ends.child.bell = segment.Bell(ends.child.bell.door)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_that_closes_what_it_inherited_closes_nothing_of_ours_and_no_door(ends: Ends) -> None:
    ends.open()
    doors = sorted(ends.directory.iterdir())
    process = os.fork()
    if not process:
        closed = False
        with contextlib.suppress(BaseException):
            reused = os.pipe()  # the numbers that were free first
            ends.child.close()
            ends.parent.close()
            closed = all(os.fstat(each) for each in reused)
        os._exit(0 if closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert sorted(ends.directory.iterdir()) == doors
    assert ends.tells(FIRST)


def test_a_program_that_a_component_starts_inherits_nothing_of_the_lane(ends: Ends) -> None:
    ends.open()
    bell = os.readlink(f"/proc/self/fd/{ends.child.bell.descriptor}")
    assert {bell, "/memfd:mach-lane (deleted)"} <= set(held("self"))
    with executed() as process:
        assert not {each for each in held(process) if each == bell or "mach-lane" in each}
