"""Mailboxes of every kind, driven by a test, and a transport that does to messages what the test wants."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from bus import address
from bus.mailbox import EdgeView, Mailbox, Peer, Relay, Transport
from bus.post import EdgeMailbox
from bus.sockets import ZmqMailbox
from bus.virtual import VirtualBus
from bus.wire import Frames
from configs.tree import Bus
from mach.messages import Letter

RUN = "0123456789abcdef"
W = 2
DEADLINE_S = 30.0
"""Generous: reached only by a test that fails."""
X = torch.arange(6.0).view(2, 3)


class World:
    """Mailboxes that are driven from here, whatever carries them."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.virtual = VirtualBus(latency_s=0.002, jitter_s=0.002)
        self.boxes: list[EdgeMailbox] = []
        self.machines: dict[str, Path] = {}
        """Far: by name the directory of the machine that it is on."""
        self.entries = 0
        """Messages written into shared memory."""
        self.settings: dict[str, str | int] = {"window": W, "hello_ms": 40, "timeout_ms": 400}
        self.settings |= {
            "transport": "tcp" if kind in ("tcp", "curve", "far") else "ipc",
            "lane": "shared" if kind == "lane" else "inline",
        }

    def mailbox(
        self,
        name: str,
        children: str = "",
        parents: str = "",
        incarnation: int = 1,
        wrap: Callable[[Transport], Transport] | None = None,
        **settings: int,
    ) -> EdgeMailbox:
        bus = msgspec.convert(self.settings | settings, Bus)
        made: EdgeMailbox
        if self.kind == "virtual":
            made = self.virtual.mailbox(
                name, children=children.split(), parents=parents.split(), bus=bus, incarnation=incarnation, wrap=wrap
            )
        else:
            made = ZmqMailbox(
                name,
                run_id=RUN,
                incarnation=incarnation,
                children=children.split(),
                parents=parents.split(),
                bus=bus,
                directory=self.machine(name),
                wrap=wrap,
                endpoints=self.endpoints() if self.kind == "far" else {},
            )
        self.boxes.append(made)
        return made

    def machine(self, name: str) -> Path:
        """The private directory where a mailbox publishes: of each one far from the others, one that no other sees."""
        if self.kind != "far":
            return self.directory
        if name not in self.machines:
            self.machines[name] = address.make_directory()
        return self.machines[name]

    def endpoints(self) -> dict[str, str]:
        """Far: where everybody listens, on an address that no other process of this suite has."""
        pid = os.getpid()
        return {f"c{i}": f"tcp://127.{pid >> 16}.{pid >> 8 & 255}.{pid & 255}:{27700 + i}" for i in range(10)}

    def leave(self) -> None:
        """Nothing is left on any machine."""
        for directory in self.machines.values():
            left = sorted(path.name for path in directory.iterdir())
            address.remove(directory)
            assert left == ["place"]

    def pair(self, **settings: int) -> tuple[EdgeMailbox, EdgeMailbox]:
        """c0 asks c1, and their edge is open."""
        parent = self.mailbox("c0", "c1", "", 1, None, **settings)
        child = self.mailbox("c1", "", "c0", 1, None, **settings)
        self.until(lambda: parent.room("c1"), parent, child)
        return parent, child

    def kill(self, box: EdgeMailbox) -> None:
        """As by SIGKILL: no word to anybody."""
        box._transport.close()

    def until(self, done: Callable[[], bool], *boxes: EdgeMailbox) -> list[Letter]:
        """Let all of them receive until it is so; what they received."""
        letters: list[Letter] = []
        end = boxes[0].now() + DEADLINE_S
        while not done():
            assert boxes[0].now() < end, [box.story(peer) for box in boxes for peer in box.edges()]
            for box in boxes:
                letters += box.receive(0.005)
        return letters

    def take(self, box: EdgeMailbox, count: int = 1) -> list[Letter]:
        """The next letters of a mailbox."""
        letters: list[Letter] = []
        end = box.now() + DEADLINE_S
        while len(letters) < count:
            assert box.now() < end, [box.story(peer) for peer in box.edges()]
            letters += box.receive(0.005)
        return letters


class Spoiling(Relay):
    """Does to the next messages what a test wants."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.spoil: Callable[[Frames], list[Frames]] | None = None
        self.sent = 0

    def send(self, peer: Peer, frames: Frames) -> bool:
        self.sent += 1
        copies = [frames] if self.spoil is None else self.spoil(frames)
        sent = [self.inner.send(peer, copy) for copy in copies]
        return all(sent)


def spoiling(world: World) -> tuple[EdgeMailbox, EdgeMailbox, Spoiling]:
    """c0 asks c1, their edge is open, and c0 sends through the third."""
    relays: list[Spoiling] = []

    def wrap(inner: Transport) -> Transport:
        relays.append(Spoiling(inner))
        return relays[-1]

    parent, child = world.mailbox("c0", children="c1", wrap=wrap), world.mailbox("c1", parents="c0")
    world.until(lambda: parent.room("c1"), parent, child)
    return parent, child, relays[0]


def view(box: Mailbox, peer: str) -> EdgeView:
    (only,) = box.edges()[peer]
    return only
