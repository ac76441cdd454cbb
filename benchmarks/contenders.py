"""Ways of moving tensors between two processes of one host: MACH's mailbox, and what it is measured against.

A contender has a peer in a process of its own and two verbs: `stream` tensors to it, at most `W` unacknowledged,
and `echo` one there and back. Every contender gets the same tensors in the same order, and whoever receives a
tensor reads one byte of every page of it. None is tuned down: plain ZeroMQ sends long payloads without a copy and
hands out views; `torch.multiprocessing` and Ray get tensors that were made for the message, as users' are.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
import zmq
from torch import Tensor

from bus import address
from bus.sockets import ZmqMailbox
from configs.tree import Bus
from mach.messages import Activation, Target
from workers.process import die_with

W = 4
"""Most messages that are not acknowledged."""
PAGE = 4096
COPY_CAP = 1 << 16
"""Plain ZeroMQ copies payloads up to this size: below it, that is faster."""
WAIT_S = 60.0
"""Longest wait for a peer."""
SPAWN = multiprocessing.get_context("spawn")


class Contender(Protocol):
    """One way."""

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Send `count` tensors, `sources` in turn; returns when all were received."""
        ...

    def echo(self, source: Tensor) -> None:
        """Send a tensor, receive it back."""
        ...

    def close(self) -> None:
        """End the peer."""
        ...


def touch(tensor: Tensor) -> int:
    """Read one byte a page."""
    return int(tensor.reshape(-1).view(torch.uint8)[::PAGE].sum())


class Peer:
    """The other process; it dies with this one."""

    def __init__(self, body: Callable[..., None], *words: Any) -> None:
        self.process = SPAWN.Process(target=_enter, args=(body, os.getpid(), *words), daemon=True)
        self.process.start()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.join()


def _enter(body: Callable[..., None], parent: int, *words: Any) -> None:
    die_with(parent)
    torch.set_num_threads(1)
    body(*words)


class Mach:
    """MACH messages through a mailbox. An activation that owes asks for its inputs back, another for a word."""

    def __init__(self, transport: str, lane: str) -> None:
        self.bus = Bus(transport=transport, lane=lane, window=W, timeout_ms=60_000)  # type: ignore[arg-type]
        self.directory = address.make_directory()
        self.peer = Peer(mach_peer, self.bus, self.directory)
        self.mailbox = mach_mailbox("c0", self.bus, self.directory)
        self.id = 0
        end = self.mailbox.now() + WAIT_S
        while not self.mailbox.room("c1"):
            if self.mailbox.now() > end:
                raise TimeoutError(f"benchmarks.bus: no peer over {transport}; run mach doctor")
            self.mailbox.receive(0.1)

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Activations one way, words back."""
        got = 0
        for i in range(count):
            while not self.mailbox.room("c1"):
                got += len(self.mailbox.receive(WAIT_S))
            self._ask(sources[i % len(sources)], owes=False)
        while got < count:
            got += len(self.mailbox.receive(WAIT_S))

    def echo(self, source: Tensor) -> None:
        """An activation there, a target of the same content back."""
        self._ask(source, owes=True)
        for letter in self.mailbox.receive(WAIT_S):
            assert isinstance(letter.message, Target)
            touch(letter.message.embedding)

    def close(self) -> None:
        """End the peer and release the mailbox."""
        self.peer.close()
        self.mailbox._transport.close()
        address.remove(self.directory)

    def _ask(self, source: Tensor, *, owes: bool) -> None:
        self.mailbox.send("c1", Activation(self.id, 0, source, owes=owes))
        self.id += 1


def mach_mailbox(name: str, bus: Bus, directory: Path) -> ZmqMailbox:
    """c0 asks c1."""
    children, parents = (("c1",), ()) if name == "c0" else ((), ("c0",))
    return ZmqMailbox(
        name, run_id="bench", incarnation=1, children=children, parents=parents, bus=bus, directory=directory
    )


def mach_peer(bus: Bus, directory: Path) -> None:
    """Answer."""
    mailbox = mach_mailbox("c1", bus, directory)
    word = torch.zeros(1)
    while True:
        for letter in mailbox.receive(WAIT_S):
            assert isinstance(letter.message, Activation)
            touch(letter.message.inputs)
            answer = letter.message.inputs if letter.message.owes else word
            mailbox.send("c0", Target(letter.message.id, 0, answer))


class Raw:
    """Plain pyzmq: the payload as one multipart message, DEALER to ROUTER, no header but one byte."""

    def __init__(self, transport: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mach-")
        at = f"ipc://{self.folder.name}/raw" if transport == "ipc" else "tcp://127.0.0.1:*"
        ours, theirs = SPAWN.Pipe()
        self.peer = Peer(raw_peer, at, theirs)
        self.context = zmq.Context()
        self.socket = raw_socket(self.context, zmq.DEALER)
        self.socket.connect(ours.recv())

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Payloads one way, one byte back."""
        flying = 0
        for i in range(count):
            if flying == W:
                self.socket.recv()
                flying -= 1
            self._send(b"s", sources[i % len(sources)])
            flying += 1
        for _ in range(flying):
            self.socket.recv()

    def echo(self, source: Tensor) -> None:
        """The payload there and back."""
        self._send(b"e", source)
        touch(torch.frombuffer(self.socket.recv(copy=False).buffer, dtype=torch.uint8))

    def close(self) -> None:
        """End the peer."""
        self.peer.close()
        self.socket.close(linger=0)
        self.context.term()
        self.folder.cleanup()

    def _send(self, mode: bytes, source: Tensor) -> None:
        data: memoryview = source.view(torch.uint8).numpy().data
        self.socket.send(mode, zmq.SNDMORE)
        self.socket.send(data, 0, copy=len(data) <= COPY_CAP)


def raw_socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    """Without high-water marks."""
    made = context.socket(kind)
    made.setsockopt(zmq.SNDHWM, 0)
    made.setsockopt(zmq.RCVHWM, 0)
    return made


def raw_peer(at: str, ready: Connection) -> None:
    """Acknowledge or echo."""
    router = raw_socket(zmq.Context(), zmq.ROUTER)
    router.bind(at)
    ready.send(router.get_string(zmq.LAST_ENDPOINT).rstrip("\0"))
    while True:
        identity, mode, payload = router.recv_multipart(copy=False)
        touch(torch.frombuffer(payload.buffer, dtype=torch.uint8))
        router.send(identity, zmq.SNDMORE)
        if mode.bytes == b"e":
            router.send(payload.buffer, 0, copy=len(payload) <= COPY_CAP)
        else:
            router.send(b"k")
