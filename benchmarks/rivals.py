"""What users would pick instead of MACH's mailbox, and the limits of the machine: contenders of `benchmarks.bus`.

See `benchmarks/contenders.py` for what a contender does. None is tuned down: `torch.multiprocessing` gets tensors
that were made for the message, as users' are; gloo receives in place; the bare socket blocks.
"""

import os
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.contenders import WAIT_S, Peer, W, touch


class Queue:
    """`torch.multiprocessing.Queue` with tensors that were made for the message."""

    def __init__(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.there, self.back = context.Queue(), context.Queue()
        self.peer = Peer(queue_peer, self.there, self.back)

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Tensors one way, None back."""
        flying = 0
        for i in range(count):
            if flying == W:
                self.back.get(timeout=WAIT_S)
                flying -= 1
            self.there.put(("s", sources[i % len(sources)].clone()))
            flying += 1
        for _ in range(flying):
            self.back.get(timeout=WAIT_S)

    def echo(self, source: Tensor) -> None:
        """A tensor there, one like it back."""
        self.there.put(("e", source.clone()))
        touch(self.back.get(timeout=WAIT_S))

    def close(self) -> None:
        """End the peer."""
        self.peer.close()
        for queue in (self.there, self.back):
            queue.cancel_join_thread()
            queue.close()


def queue_peer(there: Any, back: Any) -> None:
    """Acknowledge or echo."""
    while True:
        mode, tensor = there.get()
        touch(tensor)
        back.put(tensor.clone() if mode == "e" else None)


class Gloo:
    """`torch.distributed` send and recv over gloo; the receiver is told sizes in advance and receives in place.

    A send ends when the receiver has begun to receive: nothing needs to be acknowledged but the last.
    """

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mach-")
        store = f"file://{self.folder.name}/store"
        self.peer = Peer(gloo_peer, store)
        gloo_join(store, 0)
        self.word = torch.zeros(1)
        self.into = torch.empty(0)

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Tensors one way, at most W on their way; a word back."""
        self._announce(sources[0], count, echo=False)
        sends: deque[Any] = deque()
        for i in range(count):
            if len(sends) == W:
                sends.popleft().wait()
            sends.append(dist.isend(sources[i % len(sources)].view(torch.uint8), 1))
        for send in sends:
            send.wait()
        dist.recv(self.word, 1)

    def echo(self, source: Tensor) -> None:
        """A tensor there and back."""
        data = source.view(torch.uint8)
        if self.into.shape != data.shape:
            self.into = torch.empty_like(data)
        self._announce(data, 1, echo=True)
        dist.send(data, 1)
        dist.recv(self.into, 1)
        touch(self.into)

    def close(self) -> None:
        """End the peer."""
        self._announce(torch.empty(0), 0, echo=False)
        dist.destroy_process_group()
        self.peer.process.join(WAIT_S)
        self.peer.close()
        self.folder.cleanup()

    def _announce(self, source: Tensor, count: int, *, echo: bool) -> None:
        dist.send(torch.tensor([source.nbytes, count, int(echo)]), 1)


def gloo_join(store: str, rank: int) -> None:
    """Loopback only."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)


def gloo_peer(store: str) -> None:
    """Acknowledge or echo what was announced."""
    gloo_join(store, 1)
    announced, word, into = torch.zeros(3, dtype=torch.int64), torch.zeros(1), torch.empty(0, dtype=torch.uint8)
    while True:
        dist.recv(announced, 0)
        size, count, echo = announced.tolist()
        if count == 0:
            dist.destroy_process_group()
            return
        if len(into) != size:
            into = torch.empty(size, dtype=torch.uint8)
        for _ in range(count):
            dist.recv(into, 0)
            touch(into)
        dist.send(into if echo else word, 0)


class Ray:
    """Calls of a Ray actor."""

    def __init__(self) -> None:
        import ray  # type: ignore[import-not-found, unused-ignore]

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

        class Actor:
            def take(self, array: Any, back: bool) -> Any:
                touch(torch.from_numpy(np.array(array, copy=False)))
                return array if back else None

        self.ray = ray
        self.actor = ray.remote(Actor).remote()

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Calls with at most W results outstanding."""
        flying: list[Any] = []
        for i in range(count):
            if len(flying) == W:
                self.ray.get(flying.pop(0))
            flying.append(self.actor.take.remote(sources[i % len(sources)].view(torch.uint8).numpy(), False))
        self.ray.get(flying)

    def echo(self, source: Tensor) -> None:
        """A call that returns its argument."""
        self.ray.get(self.actor.take.remote(source.view(torch.uint8).numpy(), True))

    def close(self) -> None:
        """End Ray."""
        self.ray.shutdown()


class Copy:
    """The limit of throughput: a copy of the payload into warm memory, in one process."""

    def __init__(self) -> None:
        self.into = torch.empty(0)

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Copy."""
        for i in range(count):
            self._copy(sources[i % len(sources)])

    def echo(self, source: Tensor) -> None:
        """There and back are two copies."""
        self._copy(source)
        self._copy(source)

    def close(self) -> None:
        """Nothing to end."""

    def _copy(self, source: Tensor) -> None:
        if self.into.shape != source.shape or self.into.dtype != source.dtype:
            self.into = torch.empty_like(source)
        self.into.copy_(source)


class Unix:
    """The limit of a round trip: a bare unix stream socket, blocking, received in place."""

    _HEAD = struct.Struct("<Q?")

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.peer = Peer(unix_peer, theirs)
        theirs.close()
        self.into = bytearray()

    def stream(self, sources: Sequence[Tensor], count: int) -> None:
        """Payloads one way, one byte back."""
        flying = 0
        for i in range(count):
            if flying == W:
                self.socket.recv(1)
                flying -= 1
            self._send(sources[i % len(sources)], echo=False)
            flying += 1
        while flying:
            flying -= len(self.socket.recv(flying))

    def echo(self, source: Tensor) -> None:
        """The payload there and back."""
        if len(self.into) != source.nbytes:
            self.into = bytearray(source.nbytes)
        self._send(source, echo=True)
        unix_fill(self.socket, self.into)

    def close(self) -> None:
        """End the peer."""
        self.peer.close()
        self.socket.close()

    def _send(self, source: Tensor, *, echo: bool) -> None:
        self.socket.sendall(self._HEAD.pack(source.nbytes, echo))
        self.socket.sendall(source.view(torch.uint8).numpy().data)


def unix_fill(stream: socket.socket, into: bytearray) -> None:
    """Receive until it is full."""
    view = memoryview(into)
    while len(view):
        view = view[stream.recv_into(view) :]


def unix_peer(stream: socket.socket) -> None:
    """Acknowledge or echo."""
    head, into = bytearray(Unix._HEAD.size), bytearray()
    while True:
        unix_fill(stream, head)
        size, echo = Unix._HEAD.unpack(head)
        if len(into) != size:
            into = bytearray(size)
        unix_fill(stream, into)
        stream.sendall(into if echo else b"k")
