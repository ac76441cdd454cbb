"""A private directory that somebody removes is there again, and so is who lives in it."""

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import address
from bus.likeness import Likeness
from configs.errors import RunError


@pytest.fixture
def likeness(directory: Path) -> Iterator[Likeness]:
    likeness = Likeness(directory, frozenset({"desk.sock"}))
    yield likeness
    likeness.close()


@pytest.fixture
def listener(directory: Path) -> Iterator[socket.socket]:
    """Of c1, which has published where it listens, and announced its life."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "c1-1.sock"))
        listener.listen()
        address.publish(directory, "c1", f"ipc://{directory}/c1-1.sock")
        address.announce(directory, "c1", 1)
        (directory / "c1-1.bell").symlink_to("/proc/1/fd/1")
        yield listener


def reached(directory: Path, listener: socket.socket) -> bool:
    """Whether who connects to c1 where it says is heard by it."""
    endpoint = address.endpoint_of(directory, "c1") or ""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(endpoint.removeprefix("ipc://"))
        accepted, _ = listener.accept()
        accepted.close()
    return True


@pytest.mark.parametrize("above", [False, True])
def test_who_lives_in_it_is_found_again(
    directory: Path, likeness: Likeness, listener: socket.socket, leaks: None, *, above: bool
) -> None:
    for _ in range(2):  # and once more
        assert not likeness.look()
        shutil.rmtree(directory.parent if above else directory)
        assert likeness.look()
        assert directory.stat().st_mode & 0o777 == 0o700
        assert address.kept(directory)
        assert address.life_of(directory, "c1") == 1
        assert os.readlink(directory / "c1-1.bell") == "/proc/1/fd/1"
        assert reached(directory, listener)
    likeness.close()
    assert not likeness.look(), "and is remembered anew"


def test_what_is_removed_by_its_age_alone_is_there_again(
    directory: Path, likeness: Likeness, listener: socket.socket
) -> None:
    """As tmpreaper does, which passes over sockets and directories."""
    likeness.look()
    for entry in directory.iterdir():
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
    assert likeness.look()
    assert reached(directory, listener)


def test_what_lies_there_is_not_replaced(directory: Path, likeness: Likeness, listener: socket.socket) -> None:
    likeness.look()
    shutil.rmtree(directory)
    directory.mkdir(0o700)
    address.announce(directory, "c1", 2)
    assert likeness.look()
    assert address.life_of(directory, "c1") == 2
    assert reached(directory, listener)


def test_what_has_left_is_forgotten(directory: Path, likeness: Likeness, listener: socket.socket) -> None:
    likeness.look()
    address.depart(directory, "c1", 1)
    for name in ("c1.at", "c1-1.sock", "c1-1.bell"):
        (directory / name).unlink()
    likeness.look()
    shutil.rmtree(directory)
    likeness.look()
    assert [entry.name for entry in directory.iterdir()] == ["place"]


def test_a_place_that_is_anothers_by_now_is_left_to_him(directory: Path, likeness: Likeness) -> None:
    likeness.look()
    shutil.rmtree(directory)
    directory.mkdir(0o755)
    with pytest.raises(RunError, match="no private directory of this user"):
        likeness.look()
    assert not list(directory.iterdir())


def test_a_place_that_cannot_be_made_is_told_of_each_time(directory: Path, likeness: Likeness) -> None:
    likeness.look()
    shutil.rmtree(directory.parent)
    directory.parent.write_text("in the way")
    for _ in range(2):
        with pytest.raises(OSError, match=r"Not a directory|File exists"):
            likeness.look()
    directory.parent.unlink()
    assert likeness.look()


def test_descriptors_are_left_to_the_run(directory: Path, likeness: Likeness, listener: socket.socket) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (listener.fileno() + 2, hard))
    try:
        likeness.look()
        assert not likeness._sockets
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
