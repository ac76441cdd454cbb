"""A whole run in one process and in virtual time: the same mailboxes over a transport that counts seconds.

Knows no socket, thread or wall clock. Laws: everything is a function of the seed: two runs are equal to the
last bit. Frames arrive after `latency_s` plus a uniform share of `jitter_s` and never overtake on an edge;
faults that reorder, drop or spoil come through `wrap`, as on sockets. Inside `run`, `receive` with a wait returns
what is there, but in a `Fibre` (`bus/fibre.py`), where virtual time passes by waiting; outside, where a test drives
alone, waiting moves the clock.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from bus.mailbox import Parcel, Peer, Transport
from bus.post import EdgeMailbox
from bus.wire import INLINE_CAP, Frames
from configs.tree import Bus

RUN_ID = "virtual"


@dataclass(slots=True)
class VirtualClock:
    """Seconds since the start of the simulated run."""

    now: float = 0.0

    def move_to(self, now: float) -> None:
        """Time passes; it never runs backwards."""
        self.now = max(self.now, now)


class Actor(Protocol):
    """Something that takes turns in virtual time: a trainer, a stub."""

    name: str

    def turn(self, now: float) -> float:
        """Do what is to be done now. Seconds until the next turn, above 0; `math.inf`: no more turns."""
        ...


@dataclass(order=True, slots=True)
class _Parcel:
    arrives: float
    order: int
    peer: Peer = field(compare=False)
    frames: Frames = field(compare=False)


class VirtualTransport:
    """One life of one component on the virtual bus."""

    farewell_s = 0.0
    inline_cap = INLINE_CAP

    def __init__(self, bus: "VirtualBus", name: str, incarnation: int) -> None:
        self.bus = bus
        self.name = name
        self.incarnation = incarnation
        self.alive = True
        self.inbox: list[_Parcel] = []
        self.rest: Callable[[float], None] | None = None
        """Lets at most so many virtual seconds pass, less if something arrives; None where turns are plain calls."""
        self.listening = False
        self._reached: dict[str, int] = {}

    def now(self) -> float:
        """Virtual seconds."""
        return self.bus.clock.now

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Put on its way; False if the peer is dead, not reached yet, or was started anew since."""
        if not self.alive:
            return False
        there = self.bus.living(peer.name)
        expected = self._reached.get(peer.name) if peer.role == "child" else peer.incarnation
        if there is None or there.incarnation != expected:
            return False
        sender = Peer("parent" if peer.role == "child" else "child", self.name, self.incarnation)
        self.bus.carry(sender, there, frames)
        return True

    def receive(self) -> list[Parcel]:
        """What has arrived by now."""
        parcels: list[Parcel] = []
        while self.inbox and self.inbox[0].arrives <= self.bus.clock.now:
            parcel = heapq.heappop(self.inbox)
            parcels.append((parcel.peer, parcel.frames))
        return parcels

    def wait(self, seconds: float) -> bool:
        """Until the next arrival here, at most this long; in `VirtualBus.run` possible only for a fibre."""
        if self.bus.running and self.rest is None:
            return False
        arrives = self.inbox[0].arrives if self.inbox else math.inf
        if self.rest is None or not self.bus.running:
            self.bus.clock.move_to(min(arrives, self.bus.clock.now + seconds))
            return True
        self.listening = True
        try:
            self.rest(min(arrives - self.bus.clock.now, seconds))
        finally:
            self.listening = False
        return True

    def reach(self, child: str, *, anew: bool = False) -> bool:
        """Whether the child lives, and has been started since the last look."""
        there = self.bus.living(child)
        if there is None or self._reached.get(child) == there.incarnation:
            return False
        self._reached[child] = there.incarnation
        return True

    def close(self) -> None:
        """Leave the bus."""
        self.alive = False
        self.inbox.clear()


class VirtualBus:
    """Makes mailboxes, carries their frames, and gives actors their turns in a fixed order."""

    def __init__(
        self,
        clock: VirtualClock | None = None,
        *,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        seed: int = 0,
        wrap: Callable[[Transport], Transport] | None = None,
    ) -> None:
        """`wrap` goes around every mailbox's transport, unless the mailbox brings its own."""
        self.clock = VirtualClock() if clock is None else clock
        self.latency_s = latency_s
        self.jitter_s = jitter_s
        self.running = False
        self._seed = seed
        self._wrap = wrap
        self._lives: dict[str, VirtualTransport] = {}
        self._stopped: set[str] = set()
        self._chance: dict[tuple[str, str, str], random.Random] = {}
        self._last: dict[tuple[str, str, str], float] = {}
        self._order = 0
        self._agenda: list[tuple[float, int]] = []
        self._due: list[float] = []
        self._index: dict[str, int] = {}

    def mailbox(
        self,
        name: str,
        *,
        children: Iterable[str] = (),
        parents: Iterable[str] = (),
        bus: Bus | None = None,
        incarnation: int = 1,
        wrap: Callable[[Transport], Transport] | None = None,
        samples: Tensor | None = None,
    ) -> EdgeMailbox:
        """The mailbox of one life of `name`; a later incarnation takes the place of an earlier one."""
        earlier = self._lives.get(name)
        if earlier is not None:
            earlier.close()
        life = VirtualTransport(self, name, incarnation)
        self._lives[name] = life
        self._stopped.discard(name)
        wrap = wrap or self._wrap
        transport: Transport = life if wrap is None else wrap(life)
        return EdgeMailbox(
            name,
            run_id=RUN_ID,
            incarnation=incarnation,
            children=children,
            parents=parents,
            bus=Bus() if bus is None else bus,
            transport=transport,
            samples=samples,
        )

    def kill(self, name: str) -> None:
        """As by SIGKILL: no more turns, nothing arrives, sending to it fails."""
        self._lives[name].close()

    def stop(self, name: str) -> None:
        """As by SIGSTOP: no more turns until `resume`; what is sent to it waits in its inbox."""
        self._stopped.add(name)

    def resume(self, name: str) -> None:
        """As by SIGCONT."""
        self._stopped.discard(name)

    def living(self, name: str) -> VirtualTransport | None:
        """The present life of `name`, if it has one."""
        life = self._lives.get(name)
        return life if life is not None and life.alive else None

    def carry(self, sender: Peer, to: VirtualTransport, frames: Frames) -> None:
        """One message sets out. What it refers to may change from now on: frames are copied."""
        edge = (sender.role, sender.name, to.name)
        chance = self._chance.get(edge)
        if chance is None:
            chance = self._chance[edge] = random.Random(f"{self._seed}:{edge}")
        arrives = self.clock.now + self.latency_s + self.jitter_s * chance.random()
        arrives = max(arrives, self._last.get(edge, 0.0))
        self._last[edge] = arrives
        self._order += 1
        heapq.heappush(to.inbox, _Parcel(arrives, self._order, sender, [bytes(frame) for frame in frames]))
        if to.listening and to.name in self._index:
            self._plan(self._index[to.name], min(arrives, self._due[self._index[to.name]]))

    def run(self, actors: Sequence[Actor], *, until_s: float = math.inf, turns: float = math.inf) -> None:
        """Give turns, the earliest first, at equal times in the order of `actors`.

        Ends at `until_s` on the clock, after `turns` turns in all, or when nobody takes a turn any more.
        Actors whose name was killed take none, those stopped take theirs when resumed.

        Raises:
            ValueError: an actor whose next turn is not later than this one; virtual time would stand still.
        """
        self._index = {actor.name: index for index, actor in enumerate(actors)}
        self._due = [self.clock.now] * len(actors)
        self._agenda = [(self.clock.now, index) for index in range(len(actors))]
        self.running = True
        try:
            while self._agenda and turns > 0 and self._agenda[0][0] <= until_s:
                now, index = heapq.heappop(self._agenda)
                if now != self._due[index]:
                    continue  # an arrival has brought this turn forward
                self.clock.move_to(now)
                wait = self._turn(actors[index], now)
                turns -= actors[index].name not in self._stopped
                self._plan(index, now + wait)
        finally:
            self.running = False
        if until_s < math.inf:
            self.clock.move_to(until_s)

    def _plan(self, index: int, at: float) -> None:
        """The next turn of an actor is at `at`, and at no other time."""
        self._due[index] = at
        if at < math.inf:
            heapq.heappush(self._agenda, (at, index))

    def _turn(self, actor: Actor, now: float) -> float:
        life = self._lives.get(actor.name)
        if life is not None and not life.alive:
            return math.inf
        if actor.name in self._stopped:
            return 0.001
        wait = actor.turn(now)
        if wait <= 0.0:
            raise ValueError(f"{actor.name}: a turn must take more than 0 s of virtual time, not {wait}")
        return wait
