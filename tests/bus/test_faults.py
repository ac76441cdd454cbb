"""What a fault does to messages that leave."""

from collections import Counter

from bus.faults import HOLD_S, Faults, FaultyTransport
from bus.mailbox import Parcel, Peer
from bus.wire import Frames

CHILD = Peer("child", "c1")


class Sent:
    """A transport that notes what leaves, and whose time a test sets."""

    farewell_s, inline_cap = 0.0, 0

    def __init__(self) -> None:
        self.time = 0.0
        self.left: list[bytes] = []

    def now(self) -> float:
        return self.time

    def send(self, peer: Peer, frames: Frames) -> bool:
        self.left.append(bytes(frames[0]))
        return True

    def receive(self) -> list[Parcel]:
        return []


def test_a_message_that_nothing_overtakes_leaves_in_the_end() -> None:
    inner, fired = Sent(), Counter[str]()
    faulty = FaultyTransport(inner, Faults(reorder=1.0), 0, fired)  # type: ignore[arg-type]
    assert faulty.send(CHILD, [b"first"])
    inner.time = HOLD_S / 2
    assert faulty.send(CHILD, [b"second"])
    faulty.receive()
    assert inner.left == []
    inner.time = HOLD_S
    faulty.receive()
    assert inner.left == [b"first", b"second"]
    inner.time = 9 * HOLD_S
    assert faulty.send(CHILD, [b"third"])
    faulty.receive()
    assert inner.left == [b"first", b"second"], "held from when it was sent"
    assert fired["reorder"] == 3
