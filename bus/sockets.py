"""ZeroMQ: the only file that imports it. Frames in and out of sockets, nothing about what they say.

    parent  DEALER, one per child, connects     identity `component:incarnation`
    child   ROUTER, one per process, binds      answers go to the identity that asked

Very long frames travel in pieces (`bus/pieces.py`).
Laws: HWM is 0 and the edges' windows do the bounding; no send ever blocks.
A context is made after the process has started, and its sockets belong to the thread that made them. Frames of more
than 64 KiB are sent without a copy, so what they refer to must not change any more. Options measured with pyzmq 27,
libzmq 4.3.5.
"""

import errno
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import zmq
from torch import Tensor

from bus import address, pieces
from bus.curve import Guard
from bus.keys import load
from bus.lane import LaneTransport, slots_of
from bus.mailbox import Parcel, Peer, Transport
from bus.memory import Pool
from bus.post import EdgeMailbox
from bus.segment import ORDERED
from bus.strangers import Strangers
from bus.wire import INLINE_CAP, Frames, Reason, Rejected
from configs.errors import RunError
from configs.tree import Bus

AT_ONCE = 256
"""Messages taken in one go, from all sockets in turn: a flood must not keep a component from training."""
COPY_CAP = 1 << 16
"""Frames of up to this many bytes are copied to be sent: one that is not costs pyzmq a message to its collector."""

STRANGER = Peer("parent", "")
"""Whom nobody knows."""
LINGER_MS = 200
"""How long last words (acknowledgements of a bye) may take to leave when everything is closed."""

HEARTBEAT_MS = 1000
HEARTBEAT_TIMEOUT_MS = 5000
"""libzmq's own, over tcp: a connection on which nothing comes any more is closed, so that its identity is free again.
They say nothing of the component behind it: the I/O thread of a hung process answers them."""

Socket = zmq.Socket[bytes]


class Line(NamedTuple):
    """A socket, and its verbs past pyzmq's wrappers, looked up once and not for every frame."""

    socket: Socket
    send: Callable[..., Any]
    recv: Callable[..., Any]
    peer: Peer | None
    """Who speaks on it; None: many, each under an identity."""


WAYS = {errno.EADDRNOTAVAIL: "this machine has to have that address", errno.EADDRINUSE: "a port has to be free there"}
"""What to do where no socket can be bound."""
_DONTWAIT, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
"""As plain ints: pyzmq's flags are enums, whose `|` costs more than the call that it is for."""


class ZmqTransport:
    """Frames over ipc or TCP: on loopback or, encrypted with the run's keys, to addresses that others can reach."""

    farewell_s = 1.0
    inline_cap = INLINE_CAP

    def __init__(
        self,
        name: str,
        *,
        incarnation: int,
        children: Iterable[str],
        parents: Iterable[str],
        bus: Bus,
        directory: Path,
        endpoints: Mapping[str, str],
    ) -> None:
        """`endpoints`: where to listen, under the own name, and where neighbours do who publish nothing here, since
        they are on other machines; who is not named there is found, and bound, as `bus/address.py` says.
        """
        address.check_private(directory)
        self._directory = directory
        self._name, self._incarnation = name, incarnation
        self._identity = f"{name}:{incarnation}".encode()
        self._max_bytes = (bus.max_message_mb << 20) + 2 * INLINE_CAP  # of tensors, and of heads
        self._parents = frozenset(parents)
        self._children = {child: Peer("child", child) for child in children}
        self._known: dict[bytes, Peer] = {}
        self._identities: dict[Peer, bytes] = {}
        self._dealers: dict[str, Line] = {}
        self._lines: dict[Socket, Line] = {}
        self._ready: list[tuple[Any, int]] = []
        """Sockets that a wait has found readable."""
        self._bell: tuple[tuple[int, int], ...] = ()
        self._marks: dict[str, tuple[int, int] | None] = dict.fromkeys(self._children)
        self._endpoints: dict[str, str] = {}
        self._fixed = endpoints
        self._handshakes: dict[str, int] = {}
        """By child, where endpoints are fixed: how many have been noticed."""
        self._pool = Pool()
        self._host, self._tcp = bus.host, bus.transport == "tcp"
        keys = None if bus.keys is None else load(Path(bus.keys))
        self._context = zmq.Context()
        self._context.setsockopt(zmq.RCVHWM, 0)  # also of monitors: a full one would stop the I/O thread
        self._guard = None if keys is None else Guard(self._context, keys)
        self._poller = zmq.Poller()
        self._router: Line | None = None
        self._strangers: Strangers | None = None
        self._endpoint = ""
        address.announce(directory, name, incarnation)
        if self._parents:
            try:
                self._bind(bus.transport, address.socket_path(directory, name, incarnation))
            except zmq.ZMQError as error:
                self.close()
                raise RunError(f"no socket can be bound {self._place(error)}") from error

    now = staticmethod(time.monotonic)

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Send without blocking; False if there is no connection to the peer."""
        line = self._dealers.get(peer.name) if peer.role == "child" else self._router
        if line is None:
            return False
        send = line.send
        try:
            if line.peer is None:
                send(self._identities.get(peer) or self._identity_of(peer), _MORE)
            if len(frames) == 1:
                send(frames[0], _DONTWAIT)
                return True
            first, *rest = frames  # frame 0 is short, the others are long
            if pieces.worth_it(rest):
                announced, rest = pieces.cut(rest)
                send(announced, _MORE)
            send(first, _MORE)
            for frame in rest[:-1]:
                send(frame, _MORE, len(frame) <= COPY_CAP)
            send(rest[-1], _DONTWAIT, len(rest[-1]) <= COPY_CAP)
        except zmq.ZMQError:  # Again: nobody connected (IMMEDIATE); EHOSTUNREACH: that identity has left
            return False
        return True

    def receive(self) -> list[Parcel]:
        """What has come. An empty mailbox costs one look at all sockets, a message one at those that had some."""
        parcels: list[Parcel] = []
        ready, self._ready = self._ready or self._look(0), []
        if self._strangers is not None and ready and ready[-1][0] is self._strangers.monitor:
            ready.pop()
            parcels += [(STRANGER, Rejected(Reason.HUNG_UP))] * self._strangers.gone()
        while ready and len(parcels) < AT_ONCE:
            for socket, _ in ready:
                _, _, recv, child = self._lines[socket]
                peer = child or self._caller(recv)
                frame = recv(_DONTWAIT, False)
                frames: Frames = [frame.buffer]
                if frame.more:
                    frames = pieces.joined(frame, partial(recv, _DONTWAIT, False), self._pool, self._max_bytes)
                parcels.append((peer, frames))
            ready = zmq.zmq_poll(ready, 0)
        if self._guard is not None:
            parcels += [(STRANGER, Rejected(Reason.KEY))] * self._guard.refused()
        return parcels

    def wait(self, seconds: float) -> bool:
        """Wait for a first message, at most this long."""
        self._ready = self._look(math.ceil(seconds * 1000))
        return True

    def watch(self, bell: int) -> None:
        """Let `wait` end when something can be read from this descriptor, too; it is then read."""
        self._bell = ((bell, zmq.POLLIN),)

    def _look(self, timeout_ms: int) -> list[tuple[Any, int]]:
        """What is readable: messages, the news of who has come and gone at the door, and last the bell."""
        door = [] if self._strangers is None else [(self._strangers.monitor, zmq.POLLIN)]
        found = zmq.zmq_poll([*self._poller.sockets, *door, *self._bell], timeout_ms)
        if found and isinstance(found[-1][0], int):
            os.read(found.pop()[0], 4096)
        return found

    def reach(self, child: str, *, anew: bool = False) -> bool:
        """Connect if the child has published an endpoint since the last look, and over tcp also anew. In a run over
        several machines ZeroMQ connects by itself, at the same endpoint, where another life of it may listen by now.
        """
        if anew and self._tcp and child in self._endpoints:
            return self._connect(child, self._endpoints[child])
        if child in self._handshakes and self._guard is not None:
            had, self._handshakes[child] = self._handshakes[child], self._guard.handshakes(self._dealers[child].socket)
            return self._handshakes[child] > max(had, 1)
        endpoint = self._fixed.get(child) or self._news_of(child)
        if endpoint is None or endpoint == self._endpoints.get(child):
            return False
        return self._connect(child, endpoint)

    def _news_of(self, child: str) -> str | None:
        """What the child has published since the last look."""
        mark = address.mark_of(self._directory, child)
        if mark is None or mark == self._marks[child]:
            return None
        endpoint = address.endpoint_of(self._directory, child)
        self._marks[child] = self._marks[child] if endpoint is None else mark
        return endpoint

    def close(self) -> None:
        """Close sockets, remove what was published. Waits at most 0.2 s for last words to leave."""
        if self._context.closed:
            return
        for line in self._dealers.values():
            self._close(line.socket, LINGER_MS)
        address.depart(self._directory, self._name, self._incarnation)
        if self._router is not None:
            address.withdraw(self._directory, self._name, self._endpoint)
            self._close(self._router.socket, LINGER_MS)
            if self._endpoint.startswith("ipc://"):
                Path(self._endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        if self._guard is not None:
            self._guard.close()
        self._context.term()

    def _close(self, socket: Socket, linger_ms: int) -> None:
        if self._strangers is not None and self._router is not None and socket is self._router.socket:
            self._strangers.close()
        if self._guard is not None:
            self._guard.release(socket)
        socket.close(linger=linger_ms)

    def _place(self, error: zmq.ZMQError) -> str:
        """Where no socket can be bound, why, and what to do about it."""
        at = f"at bus.host {self._host}" if self._tcp else f"in {self._directory}"
        at = f"at {self._fixed[self._name]}" if self._name in self._fixed else at
        number = error.errno or 0
        return f"{at} ({zmq.strerror(number)}); {WAYS.get(number, 'mach doctor tries out what can be')}"

    def _bind(self, transport: str, path: Path) -> None:
        router = self._socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else an answer to a parent that left vanishes, "sent"
        self._router = self._line(router, None)
        if self._guard is None:
            self._strangers = Strangers(router)
        usual = f"ipc://{path}" if transport == "ipc" else f"tcp://{self._host}:0"
        router.bind(self._fixed.get(self._name, usual))
        self._endpoint = router.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._endpoint = self._endpoint.replace("//0.0.0.0:", "//127.0.0.1:")  # every address: also this one
        address.publish(self._directory, self._name, self._endpoint)

    def _connect(self, child: str, endpoint: str) -> bool:
        """A fresh socket to a freshly published endpoint, in place of an older one."""
        old = self._dealers.pop(child, None)
        self._handshakes.pop(child, None)
        if old is not None:
            self._poller.unregister(old.socket)
            del self._lines[old.socket]
            self._ready = []
            self._close(old.socket, 0)
        socket = self._socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self._identity)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # else messages queue for a child that may never come
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:  # a published file that holds no endpoint
            self._poller.unregister(socket)
            self._close(socket, 0)
            return False
        self._dealers[child] = self._line(socket, self._children[child])
        self._endpoints[child] = endpoint
        if self._fixed:
            self._handshakes[child] = 0
        return True

    def _line(self, socket: Socket, peer: Peer | None) -> Line:
        plain: Any = super(zmq.Socket, socket)
        return self._lines.setdefault(socket, Line(socket, plain.send, plain.recv, peer))

    def _socket(self, kind: int) -> Socket:
        socket: Socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._max_bytes)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        if self._tcp:
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if self._guard is not None:
            self._guard.protect(socket, server=kind == zmq.ROUTER)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _identity_of(self, parent: Peer) -> bytes:
        identity = self._identities.get(parent)
        if identity is None:
            if len(self._identities) >= AT_ONCE:
                self._identities.clear()
            identity = self._identities[parent] = f"{parent.name}:{parent.incarnation}".encode()
        return identity

    def _caller(self, recv: Callable[..., Any]) -> Peer:
        """Who has sent the message that waits at our door; its next frame is its own first one."""
        if self._strangers is None or not self._strangers.there:
            return self._parent(recv(_DONTWAIT))
        frame = recv(_DONTWAIT, False)
        peer = self._parent(frame.bytes)
        if peer is not STRANGER:
            self._strangers.know(frame)
        return peer

    def _parent(self, identity: bytes) -> Peer:
        """Who is connected under this identity; strangers get a name that nobody has.

        A life that its process has not announced is a stranger's: believed, it would end the true one's edge. Nothing
        is announced by another machine: there who has the keys is believed. One that is written in another way, as
        `c0:01`, is a stranger's, too: ZeroMQ would take it for somebody else than `c0:1`.
        """
        peer = self._known.get(identity)
        if peer is not None:
            return peer
        name, _, incarnation = identity.decode("latin-1").partition(":")
        if name not in self._parents or not incarnation.isdecimal() or str(int(incarnation)) != incarnation:
            return STRANGER
        if name not in self._fixed and int(incarnation) > address.life_of(self._directory, name):
            return STRANGER
        if len(self._known) >= AT_ONCE:
            self._known.clear()
        return self._known.setdefault(identity, Peer("parent", name, int(incarnation)))


class ZmqMailbox(EdgeMailbox):
    """A mailbox over sockets."""

    def __init__(
        self,
        name: str,
        *,
        run_id: str,
        incarnation: int,
        children: Iterable[str],
        parents: Iterable[str],
        bus: Bus,
        directory: Path,
        wrap: Callable[[Transport], Transport] | None = None,
        samples: Tensor | None = None,
        endpoints: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`samples` [N, ...]: the data set that activations may refer to by indices (`bus.activation`); `endpoints`: in
        a run over several machines, as of `ZmqTransport`.
        """
        children, parents = tuple(children), tuple(parents)
        sockets = ZmqTransport(
            name,
            incarnation=incarnation,
            children=children,
            parents=parents,
            bus=bus,
            directory=directory,
            endpoints=endpoints,
        )
        transport: Transport = sockets
        # who wants tcp on one host wants what lies on it, as a proxy or a shaper: there the lane has to be asked for
        local = bus.transport == "ipc" or (bus.lane == "shared" and bus.host.startswith("127.") and not endpoints)
        if local and ORDERED and bus.lane != "inline":
            slots, lost_s = slots_of(bus.window), 2 * bus.timeout_ms / 1000
            try:
                lane = LaneTransport(sockets, name, incarnation, directory, slots=slots, lost_s=lost_s)
            except OSError as error:
                sockets.close()
                why = f"{error.strerror}); see that it is there and has room"
                raise RunError(f"no bell can be hung up in {directory} ({why}") from error
            sockets.watch(lane.bell.descriptor)
            transport = lane
        super().__init__(
            name,
            run_id=run_id,
            incarnation=incarnation,
            children=children,
            parents=parents,
            bus=bus,
            transport=transport if wrap is None else wrap(transport),
            samples=samples,
        )
