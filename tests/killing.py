"""Ends of a lane that are killed: at every line that they run, or at any time. Run by tests/bus/test_lane_killed.py.

    python tests/killing.py lines sender|receiver N    one end of a bare lane dies at its first line, N lines later, …
    python tests/killing.py lives N SEED               a mailbox dies N times under traffic both ways, at random points

A program of its own, since it forks: no thread, no ZeroMQ context before a fork. Prints one line of JSON: what
happened, how often. Every content that arrives is checked: a message is all of one byte, which its head names.
"""

import json
import os
import random
import select
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from bus import address, lane, segment, wire
from bus.lane import LaneTransport
from bus.mailbox import Parcel, Peer
from bus.sockets import ZmqMailbox
from bus.wire import Frames, Rejected
from configs.tree import Bus
from mach.messages import Activation, Target

CHILD, PARENT = Peer("child", "c1", 1), Peer("parent", "c0", 1)
LONG = 12_345
MESSAGES = 6
DEADLINE_S = 60.0


class Wire:
    """A transport over a pair of sockets that keep messages apart."""

    farewell_s = 0.0
    inline_cap = 0

    def __init__(self, end: socket.socket, sees: Peer) -> None:
        self.end, self.sees = end, sees
        """Whom we talk to."""
        self.bell = -1
        self.gone = False
        """Whether the other end is dead."""

    def now(self) -> float:
        return 0.0

    def send(self, peer: Peer, frames: Frames) -> bool:
        lengths = [len(frame) for frame in frames]
        try:
            self.end.send(struct.pack(f"<{1 + len(lengths)}I", len(lengths), *lengths) + b"".join(map(bytes, frames)))
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> list[Parcel]:
        """What has come."""
        parcels: list[Parcel] = []
        while True:
            try:
                words = self.end.recv(1 << 17, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return parcels
            except ConnectionResetError:
                words = b""
            if not words:
                self.gone = True
                return parcels
            count, at = struct.unpack_from("<I", words)[0], 4
            lengths = struct.unpack_from(f"<{count}I", words, at)
            at += 4 * count
            frames: list[bytes] = []
            for length in lengths:
                frames.append(words[at : at + length])
                at += length
            parcels.append((self.sees, frames))

    def wait(self, seconds: float) -> bool:
        """For the socket or the bell."""
        if self.bell in select.select([self.end, self.bell], [], [], seconds)[0]:
            os.read(self.bell, 4096)
        return True

    def reach(self, child: str, *, anew: bool = False) -> bool:
        return False

    def close(self) -> None:
        self.end.close()


def lane_end(end: socket.socket, name: str, incarnation: int, directory: Path) -> LaneTransport:
    """Of c0, the sender, or of c1."""
    wire = Wire(end, CHILD if name == "c0" else PARENT)
    made = LaneTransport(wire, name, incarnation, directory, slots=2, lost_s=1000.0)
    wire.bell = made.bell.descriptor
    return made


def awaited(end: LaneTransport) -> list[Parcel]:
    """What comes next; nothing if the other end is dead."""
    assert isinstance(end.inner, Wire)
    while not (parcels := end.receive()) and not end.inner.gone:
        end.wait(DEADLINE_S)
    return parcels


def message(number: int) -> list[bytes]:
    """Frame 0, which names the byte, and two long frames of it."""
    return [bytes([number]) * 8, bytes([number]) * LONG, bytes([number]) * 77]


def checked(frames: Frames, seen: Counter[str]) -> None:
    """Whole, or refused with a reason."""
    if isinstance(frames, Rejected):
        seen[frames.reason.value] += 1
        return
    number = frames[0][0]
    assert [bytes(frame) for frame in frames] == message(number), "a torn message was delivered"
    seen["whole"] += 1


def sends(end: LaneTransport, peer: Peer, seen: Counter[str]) -> None:
    """Messages, each followed by a word that it was taken."""
    for number in range(1, MESSAGES + 1):
        if not end.send(peer, message(number)) or not awaited(end):
            return
        seen["taken"] += 1


def takes(end: LaneTransport, peer: Peer, seen: Counter[str]) -> None:
    """Messages until the other end is gone."""
    while parcels := awaited(end):
        for _, frames in parcels:
            checked(frames, seen)
            end.inner.send(peer, [b"taken"])


PARTS: dict[str, tuple[str, Callable[[LaneTransport, Peer, Counter[str]], None], Peer]] = {
    "sender": ("c0", sends, CHILD),
    "receiver": ("c1", takes, PARENT),
}
OTHER = {"sender": "receiver", "receiver": "sender"}


def victim(end: socket.socket, part: str, directory: Path, dies_at: int) -> None:
    """One end, until the `dies_at`-th line of bus/lane.py and bus/segment.py that it runs."""
    lines = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal lines
        if frame.f_code.co_filename not in (lane.__file__, segment.__file__):  # type: ignore[attr-defined]
            return None
        lines += event == "line"
        if lines == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    name, act, peer = PARTS[part]
    sys.settrace(trace)  # type: ignore[arg-type]
    made = lane_end(end, name, 1, directory)
    act(made, peer, Counter())
    made.close()


def lines(part: str, step: int) -> dict[str, int]:
    """Every `step`-th death of one part; what the survivors saw in all."""
    seen: Counter[str] = Counter()
    name, act, peer = PARTS[OTHER[part]]
    dies_at, died = 1, True
    while died:
        directory = address.make_directory()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            victim(theirs, part, directory, dies_at)
            os._exit(0)
        theirs.close()
        survivor = lane_end(ours, name, 1, directory)
        act(survivor, peer, seen)
        if part == "receiver":
            ours.shutdown(socket.SHUT_RDWR)  # done: it ends by itself
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        seen["died"] += died
        if died:
            carries_on(survivor, part, directory, seen)
        survivor.close()
        address.remove(directory)
        del survivor
        dies_at += step
        assert mappings() == set(), "memory of a dead end is still mapped"
    return dict(seen)


def carries_on(survivor: LaneTransport, part: str, directory: Path, seen: Counter[str]) -> None:
    """The next life of the victim, with the same survivor: every message is whole, and the lane is used again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert isinstance(survivor.inner, Wire)
    for _, frames in survivor.receive():  # what the dead one had written as a whole
        checked(frames, seen)
    survivor.inner.close()
    survivor.inner = Wire(ours, survivor.inner.sees._replace(incarnation=2))
    survivor.inner.bell = survivor.bell.descriptor
    heir = lane_end(theirs, PARTS[part][0], 2, directory)
    sender, receiver, to = (heir, survivor, CHILD) if part == "sender" else (survivor, heir, CHILD)
    to = to._replace(incarnation=1 if part == "sender" else 2)
    for number in range(1, MESSAGES + 1):
        assert sender.send(to, message(number))
        ((_, frames),) = awaited(receiver)
        assert not isinstance(frames, Rejected), frames
        checked(frames, seen)
    assert len(mappings()) >= 1, "the lane is not used by the next life"
    seen["next lives"] += 1
    heir.close()


def mappings() -> set[str]:
    """Inodes of the lanes that this process has mapped."""
    rows = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {row.split()[4] for row in rows if "mach-lane" in row}


def mailbox(name: str, other: str, incarnation: int, directory: Path) -> ZmqMailbox:
    """Child and parent of the other at once, so that everything flows both ways."""
    bus = Bus(lane="shared", hello_ms=20, timeout_ms=300)
    return ZmqMailbox(
        name, run_id="r", incarnation=incarnation, children=[other], parents=[other], bus=bus, directory=directory
    )


def turn(box: ZmqMailbox, other: str, number: int, *, wait_s: float) -> tuple[int, int]:
    """Ask, answer, check; how many letters came, and the next number."""
    while box.room(other) and box.send(other, Activation(number, 0, filled(number))):
        number += 1
    letters = box.receive(wait_s)
    for letter in letters:
        match letter.message:
            case Activation(id=id, inputs=inputs):
                assert torch.equal(inputs, filled(id)), "a torn activation was delivered"
                box.send(other, Target(id, 0, inputs))
            case Target(id=id, embedding=embedding):
                assert torch.equal(embedding, filled(id)), "a torn target was delivered"
    return len(letters), number


def filled(number: int) -> torch.Tensor:
    """256 KiB of a number."""
    return torch.full((256, 256), float(number))


def lives(count: int, seed: int) -> dict[str, int]:
    """A survivor c0 in a process of its own, and `count` lives of c1 that are killed after a number of its letters."""
    directory, chance = address.make_directory(), random.Random(seed)
    tell, told = os.pipe(), os.pipe()  # survivor → us: incarnation that it hears; we → survivor: enough
    survivor = os.fork()
    if survivor == 0:
        survive(directory, tell[1], told[0])
        os._exit(0)
    os.close(tell[1])
    for incarnation in range(1, count + 1):
        pid = os.fork()
        if pid == 0:
            live(directory, incarnation)
        for _ in range(chance.randrange(1, 40)):  # letters of this life that the survivor has read
            while struct.unpack("<Q", os.read(tell[0], 8))[0] != incarnation:
                continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.write(told[1], b".")
    seen = json.loads(b"".join(iter(lambda: os.read(tell[0], 1 << 16), b"")).rpartition(b"\n")[2])
    assert os.waitstatus_to_exitcode(os.waitpid(survivor, 0)[1]) == 0
    doors = [path.name for path in directory.iterdir() if path.suffix == ".lane"]
    assert all(not path.exists() for path in directory.glob("*.lane")), "a door leads to memory that somebody holds"
    address.remove(directory)
    return {**seen, "doors": len(doors)}


def live(directory: Path, incarnation: int) -> None:
    """Until killed."""
    box, number = mailbox("c1", "c0", incarnation, directory), 0
    while True:
        _, number = turn(box, "c0", number, wait_s=0.05)


def survive(directory: Path, tell: int, told: int) -> None:
    """Until told; then what was dropped, and how many lanes are still mapped after so many deaths."""
    box, number, most = mailbox("c0", "c1", 1, directory), 0, 0
    seen: Counter[str] = Counter()
    while not select.select([told], [], [], 0)[0]:
        come, number = turn(box, "c1", number, wait_s=0.005)
        seen["letters"] += come
        most = max(most, len(mappings()))
        lives = [view.incarnation or 0 for view in box.edges()["c1"]]
        for _ in range(come):
            os.write(tell, struct.pack("<Q", max(lives)))
    box._transport.close()
    seen.update(box.counts.dropped)
    os.write(tell, b"\n" + json.dumps({**seen, "most mapped": most, "mapped": len(mappings())}).encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    wire.INLINE_CAP = 1 << 10
    what, *words = sys.argv[1:]
    print(json.dumps(lines(words[0], int(words[1])) if what == "lines" else lives(int(words[0]), int(words[1]))))
