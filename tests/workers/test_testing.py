"""Real tcp edges over a bad line: late, slow, silent, cut, spoiled. Every fault is shown to have fired."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bus import address, edge, sockets
from bus.sockets import ZmqMailbox
from configs.tree import Bus
from mach.messages import Activation, Letter, Target
from workers.testing import Proxy

DEADLINE_S = 30.0
BUS = Bus(transport="tcp", lane="inline", hello_ms=50, timeout_ms=400)
X = torch.arange(32.0)


class Line:
    """c0 asks c1 through a proxy, and is answered."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.child = self.mailbox("c1")
        self.parent = self.mailbox("c0")
        self.id = 0
        self.targets: list[Letter] = []

    def mailbox(self, name: str) -> ZmqMailbox:
        children, parents = (("c1",), ()) if name == "c0" else ((), ("c0",))
        return ZmqMailbox(
            name, run_id="r", incarnation=1, children=children, parents=parents, bus=BUS, directory=self.directory
        )

    def through(self, proxy: Proxy) -> None:
        """The only way from now on. The parent has not looked for an address before."""
        address.publish(self.directory, "c1", proxy.endpoint)

    def turn(self) -> None:
        """Ask while there is room, answer what came."""
        while self.parent.room("c1") and self.parent.send("c1", Activation(self.id, 0, X + self.id)):
            self.id += 1
        for letter in self.child.receive(0.002):
            if isinstance(letter.message, Activation):
                self.child.send("c0", Target(letter.message.id, 0, letter.message.inputs))
        self.targets += self.parent.receive(0.002)

    def until(self, done: Callable[[], bool]) -> None:
        end = self.parent.now() + DEADLINE_S
        while not done():
            assert self.parent.now() < end, (self.parent.story("c1"), self.child.story("c0"))
            self.turn()

    def state(self) -> str:
        """Of the edge, at the parent's end."""
        (view,) = self.parent.edges()["c1"]
        return view.state

    def flows(self) -> None:
        """Ten more answers arrive, each to its question."""
        before = len(self.targets)
        self.until(lambda: len(self.targets) >= before + 10)
        for letter in self.targets[before:]:
            assert isinstance(letter.message, Target)
            assert torch.equal(letter.message.embedding, X + letter.message.id)

    def accounted(self) -> None:
        """sent = answered + dropped by reason + in flight, at the parent's end."""
        (view,) = self.parent.edges()["c1"]
        dropped = self.parent.counts.dropped
        ended = sum(dropped[reason] for reason in ("timeout", "reset", "bye"))
        assert self.parent.counts.sent["activation"] == len(self.targets) + ended + view.in_flight


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(edge, "STUCK_S", 1.0)
    monkeypatch.setattr(sockets, "HEARTBEAT_MS", 100)
    monkeypatch.setattr(sockets, "HEARTBEAT_TIMEOUT_MS", 500)
    directory = address.make_directory()
    made = Line(directory)
    yield made
    for box in (made.parent, made.child):
        box._transport.close()
    address.remove(directory)


def endpoint(line: Line) -> str:
    found = address.endpoint_of(line.directory, "c1")
    assert found is not None
    return found


def test_a_delay_is_measured_and_nothing_is_lost(line: Line) -> None:
    with Proxy(endpoint(line), delay_s=0.05, jitter_s=0.02, seed=1) as proxy:
        line.through(proxy)
        line.flows()
        assert min(letter.age.seconds for letter in line.targets if letter.age is not None) >= 0.1
        assert proxy.fired["delayed"] > 0
        line.accounted()
        assert not line.parent.counts.dropped


def test_a_narrow_line_is_slow_and_whole(line: Line) -> None:
    with Proxy(endpoint(line), bytes_per_s=20_000.0) as proxy:
        line.through(proxy)
        line.flows()
        assert proxy.fired["limited"] > 0
        line.accounted()


def test_a_cut_edge_times_out_is_shown_and_heals_by_itself(line: Line) -> None:
    with Proxy(endpoint(line)) as proxy:
        line.through(proxy)
        line.flows()
        proxy.cut()
        line.until(lambda: line.state() == "silent" and proxy.fired["refused"] > 0)
        assert not line.parent.room("c1")
        proxy.heal()
        line.until(lambda: line.state() == "open")
        line.flows()
        assert proxy.fired["cut"] > 0
        line.accounted()


def test_silence_on_a_live_connection_times_out_and_heals_by_itself(line: Line) -> None:
    """What was swallowed is a hole in the stream, so only a new connection is whole: silence brings it about."""
    with Proxy(endpoint(line)) as proxy:
        line.through(proxy)
        line.flows()
        proxy.silent = True
        line.until(lambda: line.state() == "silent")
        assert line.parent.counts.dropped["timeout"] > 0
        assert proxy.fired["swallowed"] > 0
        proxy.silent = False
        line.until(lambda: line.state() == "open")
        line.flows()
        line.accounted()


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_break_no_mailbox_and_the_edge_heals_by_itself(line: Line, seed: int) -> None:
    """A bit of a frame's length may keep ZeroMQ waiting for what never comes, until a connection takes its place."""
    with Proxy(endpoint(line), flip=0.2, seed=seed) as proxy:
        line.through(proxy)
        line.until(lambda: proxy.fired["flipped"] > 0)
        line.until(lambda: proxy.fired["flipped"] > 5 or line.state() == "silent")
        proxy.flip = 0.0
        before = len(line.targets)
        line.until(lambda: line.state() == "open" and len(line.targets) > before + 5)
        line.accounted()


def test_nothing_of_a_proxy_is_left(line: Line, leaks: None) -> None:
    with Proxy(endpoint(line)) as proxy:
        line.through(proxy)
        line.flows()
        line.parent._transport.close()
        line.child._transport.close()
