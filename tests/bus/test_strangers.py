"""At a door without keys: what libzmq hangs up on is counted, and nobody of ours ever is."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
import zmq

from bus import address
from bus.sockets import ZmqMailbox
from configs.tree import Bus
from mach.messages import Activation

DEADLINE_S = 30.0
TOO_LONG = b"\xff" + (1 << 50).to_bytes(8, "big") + b"\x00"
"""ZMTP 1.0: a frame that says it has 1 PiB."""
pytestmark = pytest.mark.usefixtures("leaks")


class Door:
    """c1, which answers c0, and whoever else comes."""

    def __init__(self, directory: Path, transport: str) -> None:
        self.directory = directory
        self.bus = msgspec.convert({"transport": transport, "lane": "inline", "hello_ms": 40, "max_message_mb": 1}, Bus)
        self.child = self.mailbox("c1", 1)

    def mailbox(self, name: str, incarnation: int) -> ZmqMailbox:
        children, parents = (("c1",), ()) if name == "c0" else ((), ("c0",))
        return ZmqMailbox(
            name,
            run_id="r",
            incarnation=incarnation,
            children=children,
            parents=parents,
            bus=self.bus,
            directory=self.directory,
        )

    @property
    def endpoint(self) -> str:
        found = address.endpoint_of(self.directory, "c1")
        assert found is not None
        return found

    def until(self, done: Callable[[], bool], *others: ZmqMailbox) -> None:
        end = self.child.now() + DEADLINE_S
        while not done():
            assert self.child.now() < end, dict(self.child.counts.dropped)
            for box in (self.child, *others):
                box.receive(0.005)

    def raw(self, words: bytes, *, until_the_end: bool) -> None:
        """Bytes on a bare connection; without waiting for the other's end, we hang up."""
        scheme, _, where = self.endpoint.partition("://")
        with socket.socket(socket.AF_UNIX if scheme == "ipc" else socket.AF_INET) as bare:
            host, _, port = where.partition(":")
            bare.settimeout(DEADLINE_S)
            bare.connect(where if scheme == "ipc" else (host, int(port)))
            bare.sendall(words)
            with contextlib.suppress(ConnectionResetError):
                while until_the_end and bare.recv(1 << 10):
                    continue

    def hung_up(self) -> int:
        return self.child.counts.dropped["hung-up"]


@pytest.fixture(params=["ipc", "tcp"])
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    directory = address.make_directory()
    found = Door(directory, request.param)
    yield found
    found.child.close(farewell=False)
    address.remove(directory)


def test_a_message_that_is_too_long_is_counted_once(door: Door) -> None:
    for count in range(1, 4):
        door.raw(TOO_LONG, until_the_end=True)
        door.until(lambda least=count: door.hung_up() >= least)
    assert door.child.counts.dropped == {"hung-up": 3}


def test_so_is_one_of_a_stranger_that_speaks_todays_zmtp_and_that_was_heard_before(door: Door) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.RECONNECT_IVL, -1)
        stranger.connect(door.endpoint)
        stranger.send(b"hello")
        door.until(lambda: door.child.counts.dropped.total() == 1)
        assert door.hung_up() == 0
        stranger.send(bytes(8 << 20))
        door.until(lambda: door.hung_up() == 1)
    assert door.child.counts.dropped == {"bad-header-size": 1, "hung-up": 1}


def test_a_parent_that_comes_and_goes_is_no_stranger_and_neither_is_who_says_nothing(door: Door) -> None:
    """Lives that end with and without a word; connections that end before a handshake."""
    for life in range(1, 5):
        parent = door.mailbox("c0", life)
        door.until(lambda parent=parent: parent.room("c1"), parent)
        assert parent.send("c1", Activation(life, 0, torch.ones(3)))
        door.until(lambda life=life: door.child.counts.received["activation"] == life)
        door.raw(b"", until_the_end=False)
        parent.close(farewell=False)
    door.raw(TOO_LONG, until_the_end=True)  # which comes after all of them
    door.until(lambda: door.hung_up() > 0)
    assert door.child.counts.dropped == {"hung-up": 1}


def test_the_parent_is_heard_while_a_stranger_stays(door: Door) -> None:
    """And when it goes, it is still no stranger, though the other one was there before it."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(door.endpoint)
        stranger.send(b"hello")
        door.until(lambda: door.child.counts.dropped.total() == 1)
        parent = door.mailbox("c0", 1)
        door.until(lambda: parent.room("c1"), parent)
        assert parent.send("c1", Activation(0, 0, torch.ones(3)))
        door.until(lambda: door.child.counts.received["activation"] == 1)
        parent.close(farewell=False)
    door.until(lambda: door.hung_up() == 1)  # the stranger, which cannot be told from one that was hung up on
    door.raw(TOO_LONG, until_the_end=True)
    door.until(lambda: door.hung_up() > 1)
    assert door.child.counts.dropped == {"bad-header-size": 1, "hung-up": 2}
