"""The same-host lane: messages lie in shared memory (`bus/segment.py`); the socket begins it, and stands by.

    notice    frame before a message that goes past the ring, through the socket: "map it; so many have gone past it"

The first long message to a peer goes through the socket, with a notice. Once the peer has mapped the segment and
written its incarnation into it, everything to this life of it goes through the ring: neither end makes a system call
for a long message unless the reader waits, and is woken by its bell, or has fallen behind. What does not fit (no free
slot, a full ring, no memory, a reader that is dead) goes past the ring, so that no send ever waits. Laws: messages of a
peer stay in order: entry and notice number those that went past the ring, so a reader hands out what was written before
a message ahead of it, and holds an entry back until those that went past before it have come, or for HOLD_S. A stale
read is impossible: the generation in entry and slot is compared before and after the copy. Nothing that an entry or a
notice claims is believed before it is checked.
"""

import logging
import os
import struct
from collections import Counter
from pathlib import Path

from bus.mailbox import Parcel, Peer, Relay, Role, Transport
from bus.memory import Pool
from bus.segment import ENTRIES, ENTRY_CAP, SLOTS_CAP, WORD, Bell, Rope, Segment, fence, find, make, shut, span
from bus.wire import TENSORS_CAP, Frame, Frames, Rejected

log = logging.getLogger("mach.bus")

TRIES = 3
"""Segments for a life of a peer are not asked for again after this many refusals. What one peer is refused, as for long
messages, another may get."""
HOLD_S = 1.0
"""An entry does not wait longer for one that went past the ring: that one is lost, as its gap in the sequence tells."""
QUIET_S = 0.02
"""A socket that is quiet is not looked at again before this, once there is a ring: what comes there still is a new life
or a stranger, and a look costs as much as a message. Nor is a reader that has fallen behind asked more often whether it
lives: what is written for a dead one meanwhile is lost with it."""
SPOKEN_S = 1.0
"""A socket is quiet when nothing has come for so long. Where somebody gets no ring, or none for its long messages, it
never is."""
FROM = 512
"""Tensors of more bytes than this together lie in a slot; fewer fit into an entry of the ring."""
LEAST = 1 << 16
"""Bytes of a slot, at least: small messages come first, and every larger segment is a new one."""
_NOTICE = struct.Struct("<4s I Q Q")
"""magic, incarnation of the sender; segment; messages that have gone past its ring, this one included."""
_SEE = b"LOOK"


class Out:
    """A sender's end of a segment."""

    def __init__(self, door: Path, bell: Path, slots: int, size: int) -> None:
        """Raises OSError: no memory."""
        self.door = door
        self.segment, self._descriptor = make(door, slots, size)
        self.written_at = [0.0] * self.segment.slots
        """By slot, seconds."""
        self.past = 0
        """Messages that went past the ring."""
        self._bell = bell
        self._rope: Rope | None = None
        self._ask_at = 0.0
        """When to ask again whether a reader that has fallen behind is there."""

    def put(self, first: Frame, rest: Frames, incarnation: int, now: float, lost_s: float) -> bool:
        """Write a message that is not too long, if this life of the receiver reads here and there is room.

        Whether it has died is asked only if it leaves something unread, and then now and then; but each time for a
        word alone, which may be a hello to a new life, of which we do not know yet.
        """
        segment = self.segment
        unread = segment.written[0] - segment.read[0] & WORD
        if segment.attached[0] != incarnation or unread >= ENTRIES:
            return False
        if (not rest or (unread and now >= self._ask_at) or self._rope is None) and self._dead(now):
            return False
        slot = self.free(now, lost_s) if rest else 0
        if slot < 0:
            return False
        segment.write(first, rest, slot, self.past)
        if segment.asleep[0]:
            self.wake()
        return True

    def _dead(self, now: float) -> bool:
        """Whether the receiver is gone."""
        try:
            self._rope = self._rope or Rope(self._bell)
        except OSError:
            return True
        dead = self._rope.dead()
        self._ask_at = 0.0 if dead else now + QUIET_S
        return dead

    def free(self, now: float, lost_s: float) -> int:
        """A slot whose content was copied; else one so old that its message was lost: no reader can be misled. Or -1.

        It counts as written now.
        """
        generation, released = self.segment.generation, self.segment.released
        for slot in range(self.segment.slots):
            if generation[slot] == released[slot]:  # the first one, so that few are in use and their memory is warm
                break
        else:
            slot = min(range(self.segment.slots), key=self.written_at.__getitem__)
            if now - self.written_at[slot] < lost_s:
                return -1
        self.written_at[slot] = now
        return slot

    def wake(self) -> None:
        """Ring for a reader that waits; once is enough."""
        if self._rope is not None:
            self.segment.asleep[0] = 0
            self._rope.pull()

    def close(self) -> None:
        """Let go of it; who has mapped it can still read it."""
        shut(self.door, self._descriptor)
        os.close(self._descriptor)
        if self._rope is not None:
            self._rope.close()


class In:
    """A receiver's end of a segment."""

    def __init__(self, peer: Peer, incarnation: int, segment: Segment, past: int) -> None:
        self.peer, self.incarnation, self.segment = peer, incarnation, segment
        self.read = segment.read[0] = segment.written[0]
        """Entries read; those that lie there already were for an earlier life, since nobody writes before we attach."""
        self.past = past
        """Messages that went past the ring, as far as they have come."""
        self.held_at: float | None = None
        """Since when its first entry waits for one that went past."""

    def unread(self) -> int:
        """Entries that lie in the ring."""
        return min(self.segment.written[0] - self.read & WORD, ENTRIES)

    def take(self, pool: Pool, now: float, given_up: int = 0) -> list[Parcel]:
        """What lies in the ring, up to an entry that has to wait for one that went past and is not given up."""
        parcels: list[Parcel] = []
        peer, segment = self.peer, self.segment
        for _ in range(self.unread()):
            entry = segment.entry(self.read)
            if entry.past > self.past:
                if entry.past > given_up and self._holds(now):
                    break
                self.past = entry.past  # nothing waits for a lost one twice
            parcels.append((peer, segment.frames(entry, pool) if entry.lengths else [entry.first]))
            self.read = segment.read[0] = self.read + 1 & WORD
            self.held_at = None
        return parcels

    def _holds(self, now: float) -> bool:
        if self.held_at is None:
            self.held_at = now
        return now - self.held_at < HOLD_S


class LaneTransport(Relay):
    """Messages through shared memory where there is some, the rest through the transport below."""

    def __init__(
        self, inner: Transport, name: str, incarnation: int, directory: Path, *, slots: int, lost_s: float
    ) -> None:
        """`slots`: long messages that may lie unread; one that nobody read for `lost_s` is lost, and its slot free."""
        super().__init__(inner)
        self._name, self._incarnation, self._directory = name, incarnation, directory
        self._slots = min(slots, SLOTS_CAP)
        self._lost_s = lost_s
        self._out: dict[Peer, Out] = {}
        self._in: dict[tuple[Role, str], In] = {}
        self._pool = Pool()
        self._refused: Counter[Peer] = Counter()
        """Segments that could not be had, by life of a peer."""
        self._closed = False
        self._look_at = 0.0
        self._spoken_at = float("-inf")
        self.inline_cap = FROM
        self.bell = Bell(self._bell_of(name, incarnation))
        """To be watched by the transport below while it waits."""

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Send without blocking, through memory if the peer reads there."""
        first, rest, out = frames[0], frames[1:], self._out.get(peer)
        size = span(map(len, rest))
        if out is None or out.segment.size < size:
            made = self._out_of(peer, size) if 1 <= len(rest) <= TENSORS_CAP else None
            out = made or self._out.get(peer)
            if out is None:
                return self.inner.send(peer, frames)
        fits = len(first) <= ENTRY_CAP and len(rest) <= TENSORS_CAP and size <= out.segment.size
        if fits and out.put(first, rest, peer.incarnation, self.now(), self._lost_s):
            return True
        return self._past(out, peer, frames)

    def receive(self) -> list[Parcel]:
        """What has come, long frames copied out of their slots."""
        now = self.now()
        parcels = self._come(now) if now >= self._look_at or not self._in else []
        for end in self._in.values():
            if end.segment.written[0] != end.read:
                parcels += end.take(self._pool, now)
                if end.held_at is not None:
                    self._look_at = now
        return parcels

    def wait(self, seconds: float) -> bool:
        """Wait for the socket or the bell, unless an entry came before we said that we are to be woken."""
        for end in self._in.values():
            end.segment.asleep[0] = 1
        fence()
        come = any(end.held_at is None and end.unread() for end in self._in.values())
        passed = self.inner.wait(0.0 if come else seconds)
        self._look_at = 0.0
        for end in self._in.values():
            end.segment.asleep[0] = 0
        return passed

    def close(self) -> None:
        """Close what is below, then let go of all memory."""
        self.inner.close()
        for out in self._out.values():
            out.close()
        self.bell.close()
        self._out, self._in, self._closed = {}, {}, True

    def _past(self, out: Out, peer: Peer, frames: Frames) -> bool:
        """Through the socket, with a notice."""
        out.past += 1
        notice = _NOTICE.pack(_SEE, self._incarnation, out.segment.number, out.past)
        sent = self.inner.send(peer, [notice, *frames])
        out.past -= not sent
        return sent

    def _out_of(self, peer: Peer, size: int) -> Out | None:
        """A new segment for a peer's present life, made for messages of this size; None if it cannot be."""
        if self._closed or self._refused[peer] >= TRIES:
            return None
        for old in [each for each in self._out if each[:2] == peer[:2] and each != peer]:
            self._out.pop(old).close()  # of an earlier life
        door = _door(self._directory, self._name, self._incarnation, peer.name, peer.role)
        try:
            made = Out(door, self._bell_of(peer.name, peer.incarnation), self._slots, max(size, LEAST))
        except BlockingIOError:  # a neighbour takes memory just now: that is no refusal, and no reason to wait
            return None
        except OSError as error:  # what is not too long for the one that there may be goes on through it
            for old in [each for each in self._refused if each[:2] == peer[:2] and each != peer]:
                del self._refused[old]
            self._refused[peer] += 1
            if self._refused[peer] == TRIES:
                text = "%s: no shared memory for %s (%s): long tensors go through the socket"
                log.warning(text, self._name, peer.name, error)
            return None
        smaller = self._out.get(peer)
        if smaller is not None:
            smaller.close()
        self._out[peer] = made
        return made

    def _before(self, peer: Peer, notice: Frame, now: float) -> list[Parcel]:
        """What a neighbour had written into its ring when it sent a message past it, with this notice or with none.

        What went past even earlier would have come by now, so nothing waits for it any more.
        """
        end = self._in.get(peer[:2])
        if len(notice) != _NOTICE.size or not peer.name:
            return [] if end is None else end.take(self._pool, now, WORD)
        _, incarnation, number, past = _NOTICE.unpack(notice)
        if end is None:
            self._look(peer, incarnation, number, past)
            return []
        if end.segment.number == number:
            parcels = end.take(self._pool, now, past - 1)
            end.past = max(end.past, past)
            return parcels
        if incarnation < end.incarnation:
            return []  # last words of an earlier life, whose ring is not read any more
        parcels = end.take(self._pool, now, WORD)
        self._look(peer, incarnation, number, past)
        return parcels

    def _look(self, peer: Peer, incarnation: int, number: int, past: int) -> None:
        """Map the segment that a neighbour has made for us."""
        ours: Role = "parent" if peer.role == "child" else "child"  # what we are to the sender
        segment = find(_door(self._directory, peer.name, incarnation, self._name, ours), number)
        if segment is not None:
            self._in[peer[:2]] = In(peer, incarnation, segment, past)
            segment.attached[0] = self._incarnation  # so its sender knows

    def _come(self, now: float) -> list[Parcel]:
        """What the socket has, each behind what was written into its sender's ring before it."""
        come = self.inner.receive()
        if come:
            self._spoken_at = now
        self._look_at = now if now - self._spoken_at < SPOKEN_S else now + QUIET_S
        parcels: list[Parcel] = []
        for peer, frames in come:
            notice: Frame = b""
            if not isinstance(frames, Rejected) and frames and frames[0][:4] == _SEE:
                notice, *frames = frames
            parcels += self._before(peer, notice, now)
            parcels.append((peer, frames))
        return parcels

    def _bell_of(self, name: str, incarnation: int) -> Path:
        return self._directory / f"{name}-{incarnation}.bell"


def slots_of(window: int) -> int:
    """What a child that falls behind can leave unread: a window of activations, and a gradient more than that.

    The next activation leaves before the gradient that is due: `tests/workers/test_order.py` says why.
    """
    return 2 * window + 1


def _door(directory: Path, sender: str, incarnation: int, receiver: str, role: Role) -> Path:
    """Where the segment is found that `sender` made for `receiver`, its child or parent."""
    return directory / f"{sender}-{incarnation}-{receiver}-{role}.lane"
