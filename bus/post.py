"""The one mailbox: edges (`bus/edge.py`) and wire format (`bus/wire.py`) over any `Transport`.

Trainers, stubs, simulations and tests all drive this class; only the transport below differs. It knows no
socket. Laws: nothing blocks but `receive` with a wait and, for at most `farewell_s`, `close`. Nothing that comes
in can raise: it is delivered, or dropped and counted by reason. Edges are looked after (knocks, time-outs, new
addresses) from within `receive`, a few times per `hello_ms`.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar, assert_never

from torch import Tensor

from bus import wire
from bus.edge import ChildEnd, Edge, ParentEnd
from bus.mailbox import Counts, EdgeView, Peer, Transport
from bus.memory import Pool
from bus.rules import Fate, State, Taken, Terms
from bus.tensors import Codec
from bus.wire import Form, Frames, Kind, Reason, Rejected, Stamp
from configs.tree import Bus
from mach.messages import Activation, Gradient, Letter, Message, Target

E = TypeVar("E", ParentEnd, ChildEnd)
Mail = list[tuple[Edge, Taken, Message]]
_KINDS = {Activation: "activation", Target: "target", Gradient: "gradient"}
"""As keys of `Counts`."""


class EdgeMailbox:
    """A component's door to its neighbours; see `bus.mailbox.Mailbox` for the contract."""

    def __init__(
        self,
        name: str,
        *,
        run_id: str,
        incarnation: int,
        children: Iterable[str],
        parents: Iterable[str],
        bus: Bus,
        transport: Transport,
        samples: Tensor | None = None,
    ) -> None:
        """`samples` [N, ...]: the data set that activations may refer to by indices (`bus.activation`)."""
        self.name = name
        self.counts = Counts()
        self._run_id = run_id
        self._incarnation = incarnation
        self._transport = transport
        self._now = transport.now
        self._cap = bus.max_message_mb << 20
        self._form = form_of(bus)
        self._pool = Pool()
        self._samples = samples
        terms = Terms(incarnation, bus.window, bus.timeout_ms / 1000, bus.hello_ms / 1000)
        dropped = self.counts.dropped
        self._asks = {child: ParentEnd(child, terms, dropped) for child in children}
        self._answers = {parent: ChildEnd(parent, terms, dropped) for parent in parents}
        self._tick_s = min(terms.hello_s, terms.timeout_s) / 4
        self._tick_at = float("-inf")
        self._closed = False

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        """Letters that have come, in order per sender; waits up to `wait_s` for a first one."""
        now = self._now()
        until = now + wait_s
        letters: list[Letter] = []
        if wait_s <= 0.0 or now >= self._tick_at:
            letters = self._collect(now)
        while not letters and (left := until - now) > 0.0:
            passed = self._transport.wait(min(left, self._tick_s))
            now = self._now()
            letters = self._collect(now)
            if not passed:
                break
        return letters

    def room(self, child: str) -> bool:
        """Whether an activation sent to `child` now would fit into the window of an open edge."""
        return (self._asks.get(child) or self._edge(self._asks, child)).room()

    def in_flight(self, child: str) -> Collection[int]:
        """Ids of the activations that `child` was sent and that may still be answered."""
        return self._edge(self._asks, child).flying()

    def send(self, peer: str, message: Message) -> bool:
        """Send without blocking. False: not sent, and counted in `counts.dropped` by reason.

        Raises:
            ValueError: an activation without room or twice in flight, a peer that is no such neighbour, or a
                tensor that cannot travel: the caller's mistake.
        """
        match message:
            case Activation():
                return self._ask(self._asks.get(peer) or self._edge(self._asks, peer), message)
            case Target():
                return self._answer(self._answers.get(peer) or self._edge(self._answers, peer), message)
            case Gradient():
                return self._pay(self._asks.get(peer) or self._edge(self._asks, peer), message)
            case _:
                assert_never(message)

    def edges(self) -> Mapping[str, list[EdgeView]]:
        """Every edge, by peer; a peer may be child and parent at once."""
        now = self.now()
        views: dict[str, list[EdgeView]] = {}
        for edge in self._every():
            views.setdefault(edge.peer, []).append(edge.view(now))
        return views

    def bye(self) -> None:
        """Tell every child that nothing more will be asked. Answers to parents go on."""
        now = self.now()
        for edge in self._asks.values():
            edge.leave(now)
        self._tick(now)

    def parents_left(self) -> bool:
        """Whether some parent has been heard of and has not said BYE."""
        return any(edge.heard_at is not None and edge.state is not State.CLOSED for edge in self._answers.values())

    def now(self) -> float:
        """Seconds on the clock that stamps ages."""
        return self._now()

    def story(self, peer: str) -> str:
        """The last events on the edges with `peer`, for logs and errors."""
        now = self.now()
        return "; ".join(edge.tell(now) for edge in self._every() if edge.peer == peer)

    def close(self, *, farewell: bool = True) -> None:
        """Say BYE where it was not said, wait a moment for acknowledgements, release everything."""
        if self._closed:
            return
        self._closed = True
        if not farewell:
            self._transport.close()
            return
        try:
            for edge in self._answers.values():
                # a parent that has not read this before the connection closes would never see it: so wait, too
                edge.told = edge.leave(self.now()) and self._say(edge, Kind.BYE)
            self.bye()
            until = self.now() + self._transport.farewell_s
            while any(edge.awaits() for edge in self._every()) and (left := until - self.now()) > 0.0:
                self._transport.wait(min(left, self._tick_s))
                self._collect(self.now())
        finally:
            self._transport.close()

    def _every(self) -> list[Edge]:
        return [*self._asks.values(), *self._answers.values()]

    def _edge(self, edges: Mapping[str, E], peer: str) -> E:
        edge = edges.get(peer)
        if edge is None:
            raise ValueError(f"{peer!r} is no such neighbour of {self.name}; there are: {', '.join(edges) or 'none'}")
        return edge

    def _collect(self, now: float) -> list[Letter]:
        """Take what has come and look after the edges. Ages are stamped after all of it was heard."""
        mail: Mail = []
        for peer, frames in self._transport.receive():
            self._open(peer, frames, now, mail)
        if now >= self._tick_at:
            self._tick(now)
        return [Letter(edge.peer, message, edge.age(taken, now)) for edge, taken, message in mail]

    def _open(self, peer: Peer, frames: Frames | Rejected, now: float, mail: Mail) -> None:
        """One message: into `mail`, or to its edge, or dropped and counted."""
        role, name, incarnation = peer
        asks = role == "child"
        edge: Edge | None = self._asks.get(name) if asks else self._answers.get(name)
        if isinstance(frames, Rejected):
            self._spoilt(peer, edge, frames)
            return
        header = wire.inspect(frames, self._run_id)
        if isinstance(header, Rejected):
            self._spoilt(peer, edge, header)
            return
        preamble = header.preamble
        if edge is None or preamble.sender != edge.tag or not (asks or preamble.incarnation == incarnation):
            self._reject(Reason.SENDER)
            return
        verdict = edge.hear(header, now)
        if isinstance(verdict, Taken):
            message = wire.message_of(header, frames, self._pool, self._samples)
            if isinstance(message, Rejected):
                self._reject(message.reason)
            else:
                self.counts.received[preamble.kind] += 1
                mail.append((edge, verdict, message))
            return
        for kind in edge.replies():
            self._say(edge, kind)
        if verdict is None:
            self._tick_at = now  # a hello may have made a knock due

    def _spoilt(self, peer: Peer, edge: Edge | None, rejected: Rejected) -> None:
        """What cannot be read: counted, and not missed in the sequence of its edge."""
        self._reject(rejected.reason)
        if edge is not None and (peer.role == "child" or peer.incarnation == edge.incarnation):
            edge.spoilt()

    def _tick(self, now: float) -> None:
        self._tick_at = now + self._tick_s
        for child, edge in self._asks.items():
            if self._transport.reach(child, anew=edge.stuck(now)):
                edge.reconnected(now)
            edge.expire(now)
            kind = edge.due(now)
            if kind is not None:
                edge.knocked(now, sent=self._say(edge, kind))
        for parent in self._answers.values():
            parent.expire(now)

    def _ask(self, edge: ParentEnd, message: Activation) -> bool:
        now = self._now()
        edge.check_ask(message.id, now)
        if not self._ship(edge, message, now):
            return False
        edge.ask(message.id, message.owes, now)
        return True

    def _answer(self, edge: ChildEnd, message: Target) -> bool:
        fate = edge.waits(message.id)
        if fate is not None:
            return self._refuse(fate)
        now = self._now()
        if not self._ship(edge, message, now):
            edge.forgo(message.id)
            return False
        edge.answer(message.id, message.version, now)
        return True

    def _pay(self, edge: ParentEnd, message: Gradient) -> bool:
        fate = edge.owe(message.id, message.of_version)
        if fate is not None:
            return self._refuse(fate)
        now = self._now()
        if not self._ship(edge, message, now):
            return False
        edge.pay(message.id, now)
        return True

    def _ship(self, edge: Edge, message: Message, now: float) -> bool:
        stamp = Stamp(self._run_id, self.name, self._incarnation, edge.sequence + 1)
        frames = wire.encode(message, stamp, self._form, self._transport.inline_cap)
        size = sum(map(len, frames))
        if size - len(frames[0]) > self._cap:  # tensors that are not in frames of their own are short
            return self._refuse(Fate.TOO_LARGE)
        if not self._transport.send(edge.address, frames):
            edge.unreachable(now)
            return self._refuse(Fate.UNREACHABLE)
        edge.sequence += 1
        self.counts.sent[_KINDS[type(message)]] += 1
        self.counts.bytes[edge.peer] += size
        return True

    def _say(self, edge: Edge, kind: Kind) -> bool:
        """Send a control frame; one that finds no connection is no message lost, and is not counted."""
        stamp = Stamp(self._run_id, self.name, self._incarnation, edge.sequence + 1)
        frames = wire.encode_control(kind, stamp, window=edge.window, heard=edge.greeted())
        sent = self._transport.send(edge.address, frames)
        edge.sequence += sent
        return sent

    def _reject(self, reason: Reason) -> None:
        self.counts.dropped[reason.value] += 1

    def _refuse(self, fate: Fate) -> bool:
        self.counts.dropped[fate.value] += 1
        return False


def form_of(bus: Bus) -> Form:
    """How the configuration wants messages written."""
    codec = bus.codec
    codecs = Codec(codec.activation), Codec(codec.target), Codec(codec.gradient)
    return Form(*codecs, indices=bus.activation == "indices")
