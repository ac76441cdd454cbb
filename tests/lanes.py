"""A parent and a child with lanes between them, over a wire that is a list: no socket, no process, no clock."""

from collections.abc import Callable
from pathlib import Path

from bus import lane
from bus.lane import LaneTransport
from bus.mailbox import Parcel, Peer
from bus.segment import Segment
from bus.wire import Frames, Reason, Rejected

FIRST = b"MACHhead"
LONG = bytes(range(256)) * 400
CHILD, PARENT = Peer("child", "c1", 1), Peer("parent", "c0", 1)


class List:
    """A transport whose wire is a list, and whose clock stands where it is put. Without another end it only takes."""

    farewell_s = 0.0
    inline_cap = 0

    def __init__(self, sees: Peer = PARENT) -> None:
        self.sees = sees
        """How the other end sees us."""
        self.other: List | None = None
        self.inbox: list[Parcel] = []
        self.connected = True
        self.at = 0.0
        self.closed = False

    def now(self) -> float:
        return self.at

    def send(self, peer: Peer, frames: Frames) -> bool:
        if self.connected and self.other is not None:
            self.other.inbox.append((self.sees, [bytes(frame) for frame in frames]))
        return self.connected

    def receive(self) -> list[Parcel]:
        come, self.inbox = self.inbox, []
        return come

    def wait(self, seconds: float) -> bool:
        return False

    def reach(self, child: str, *, anew: bool = False) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Ends:
    """A parent c0 and a child c1 with lanes over lists."""

    def __init__(self, directory: Path, slots: int = 2) -> None:
        self.directory, self.slots = directory, slots
        self.wires = List(Peer("parent", "c0", 1)), List(Peer("child", "c1"))
        self.wires[0].other, self.wires[1].other = self.wires[1], self.wires[0]
        self.parent = self.end(0, 1)
        self.child = self.end(1, 1)

    def end(self, side: int, incarnation: int) -> LaneTransport:
        self.wires[side].closed = False
        return LaneTransport(self.wires[side], f"c{side}", incarnation, self.directory, slots=self.slots, lost_s=2.0)

    def carried(self) -> list[list[bytes]]:
        """The messages on the wire to the child, without their notices."""
        came = [frames for _, frames in self.wires[1].inbox]
        return [
            [bytes(frame) for frame in frames if frame[:4] != lane._SEE]
            for frames in came
            if not isinstance(frames, Rejected)
        ]

    def tells(self, *frames: bytes) -> bool:
        """Send to the child; whether it went through the ring."""
        before = len(self.wires[1].inbox)
        assert self.parent.send(CHILD, frames)
        return len(self.wires[1].inbox) == before

    def ring(self) -> Segment:
        """The parent's segment."""
        (out,) = self.parent._out.values()
        return out.segment

    def open(self) -> None:
        """One message, after which the lane is in use."""
        assert not self.tells(FIRST, LONG)
        assert self.took() == [FIRST, LONG]

    def took(self) -> list[bytes]:
        """The one message that the child receives."""
        (frames,) = self.all()
        return frames

    def all(self) -> list[list[bytes]]:
        """The messages that the child receives."""
        taken = []
        for _, frames in self.child.receive():
            assert not isinstance(frames, Rejected), frames
            taken.append([bytes(frame) for frame in frames])
        return taken

    def refused(self) -> Reason:
        """Why the one message that came is none."""
        ((_, rejected),) = self.child.receive()
        assert isinstance(rejected, Rejected)
        return rejected.reason


class Waits(List):
    """A wire whose wait is watched: what its end does meanwhile, and how long it is to last."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)
    waited: float = -1.0

    def wait(self, seconds: float) -> bool:
        self.waited = seconds
        self.meanwhile()
        return True
