"""The same-host lane: long tensors lie in shared memory, and only frame 0 and a ticket go through the socket.

    segment   memory of one sender for one peer's life: a head, then slots of equal size. A memfd: it has no name
              to be left behind, cannot be cut short by anybody (sealed), and is gone with its last holder.
    door      symlink to it in the run's private directory, `<sender>-<incarnation>-<receiver>-<role>.lane`
    notice    frame before a message that went through the socket: "there is a segment, map it"
    ticket    words before frame 0, in one frame with it, of a message whose long frames lie in a slot

A sender uses its segment once the receiver has mapped it and written its incarnation into it. A slot is free when
the receiver has copied its content and released its generation. Laws: no send ever waits: without a free slot, or
without memory, a message goes through the socket. A stale read is impossible: the generation in ticket and slot is
compared before and after the copy. Nothing that a ticket claims is believed before it is checked.
"""

import errno
import fcntl
import logging
import mmap
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from bus.mailbox import Parcel, Peer, Relay, Role, Transport
from bus.memory import Pool
from bus.wire import INLINE_CAP, TENSORS_CAP, Frame, Frames, Reason, Rejected

log = logging.getLogger("mach.bus")

PAGE = 4096
SLOTS_CAP = 64
BYTES_CAP = 1 << 31
"""A segment is not made larger than this; then it has fewer slots."""
SPARE = 4
"""Nor larger than this share of the memory that is free."""
TRIES = 3
"""Segments are not asked of the kernel again after this many refusals."""

FROM = INLINE_CAP
"""Tensors of more bytes than this lie in slots. At 25 KiB a slot spares the I/O threads a copy and costs the training
thread as much again: throughput and round trip are the same, a turn of training is dearer."""
_TICKET = struct.Struct(f"<4s H H Q Q {TENSORS_CAP}Q")
"""magic, slot, frames; segment, generation, lengths of the frames."""
_NONE = (0,) * TENSORS_CAP
_NOTICE = struct.Struct("<4s I Q")
"""magic, incarnation of the sender; segment."""
_TAKE, _SEE = b"TAKE", b"LOOK"
_HEAD = struct.Struct("<4s I Q Q")
"""magic, slots; segment, bytes of a slot. Before `_ATTACHED`, and the slots' generations and releases."""
_MAGIC, _ATTACHED, _MARKS = b"LANE", 3, 4  # the latter two in 8-byte words
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Segment:
    """Shared memory of one direction of an edge, from either end."""

    def __init__(self, memory: mmap.mmap, number: int, slots: int, size: int) -> None:
        self.number = number
        self.slots = slots
        self.size = size
        view = memoryview(memory)  # unmapped with the last reference
        words = view[:PAGE].cast("Q")
        self._slots = [view[at : at + size] for at in range(PAGE, PAGE + slots * size, size)]
        self.attached = words[_ATTACHED : _ATTACHED + 1]
        """Incarnation of the receiver that has mapped it, 0 if none."""
        self.generation = words[_MARKS : _MARKS + slots]
        """By slot: odd while it is written."""
        self.released = words[_MARKS + SLOTS_CAP : _MARKS + SLOTS_CAP + slots]

    def slot(self, index: int) -> memoryview:
        """Its bytes."""
        return self._slots[index]


class Out(NamedTuple):
    """A sender's segment."""

    segment: Segment
    door: Path
    descriptor: int
    written_at: list[float]
    """By slot, seconds."""

    def close(self) -> None:
        """Let go of it; who has mapped it can still read it."""
        os.close(self.descriptor)
        self.door.unlink(missing_ok=True)


class LaneTransport(Relay):
    """Long frames through shared memory where there is some, the rest through the transport below."""

    def __init__(
        self, inner: Transport, name: str, *, incarnation: int, directory: Path, window: int, timeout_s: float
    ) -> None:
        super().__init__(inner)
        self._name, self._incarnation, self._directory = name, incarnation, directory
        self._slots = min(2 * window, SLOTS_CAP)  # activations and gradients; targets need half
        self._timeout_s = timeout_s
        self._out: dict[Peer, Out] = {}
        self._in: dict[tuple[Role, str], Segment] = {}
        self._pool = Pool()
        self._tries = TRIES
        self.inline_cap = FROM

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Send without blocking, long frames through a slot if one is free."""
        if not 2 <= len(frames) <= 1 + TENSORS_CAP:
            return self.inner.send(peer, frames)
        first, *rest = frames
        lengths = [len(frame) for frame in rest]
        size = sum([length + (-length & 63) for length in lengths])
        out = self._out.get(peer)
        if out is None or out.segment.size < size:
            out = self._out_of(peer, size)
            if out is None:
                return self.inner.send(peer, frames)
        segment = out.segment
        if segment.attached[0] != peer.incarnation:
            return self.inner.send(peer, [_NOTICE.pack(_SEE, self._incarnation, segment.number), *frames])
        index = self._free(out)
        if index is None:
            return self.inner.send(peer, frames)
        generation = _write(segment, index, rest)
        out.written_at[index] = self.inner.now()
        lengths += _NONE[len(rest) :]
        ticket = _TICKET.pack(_TAKE, index, len(rest), segment.number, generation, *lengths)
        if self.inner.send(peer, [ticket + first]):
            return True
        segment.released[index] = generation
        return False

    def receive(self) -> list[Parcel]:
        """What has come, long frames copied out of their slots."""
        parcels = self.inner.receive()
        for i, (peer, frames) in enumerate(parcels):
            if not isinstance(frames, Rejected) and frames:
                mark = frames[0][:4]
                if mark == _TAKE:
                    parcels[i] = peer, self._take(peer, frames)
                elif mark == _SEE:
                    self._look(peer, frames[0])
                    parcels[i] = peer, frames[1:]
        return parcels

    def close(self) -> None:
        """Close what is below, then let go of all segments."""
        self.inner.close()
        for out in self._out.values():
            out.close()
        self._out, self._in = {}, {}

    def _out_of(self, peer: Peer, size: int) -> Out | None:
        """A new segment for a peer's present life, made for messages of this size; None if it cannot be."""
        if self._tries == 0:
            return None
        for old in [each for each in self._out if each[:2] == peer[:2]]:
            self._out.pop(old).close()  # of an earlier life, or too small
        slots = max(min(self._slots, BYTES_CAP // max(size, 1)), 1)
        door = _door(self._directory, self._name, self._incarnation, peer.name, peer.role)
        try:
            self._out[peer] = _made(door, slots, size)
        except OSError as error:
            self._tries -= 1
            if self._tries == 0:
                log.warning("%s: no shared memory (%s): long tensors go through the socket", self._name, error)
            return None
        return self._out[peer]

    def _free(self, out: Out) -> int | None:
        """A slot whose content was copied; else one so old that its message was lost: no reader can be misled."""
        segment = out.segment
        generation, released = segment.generation, segment.released
        for index in range(segment.slots):
            if generation[index] == released[index]:
                return index  # the first one, so that few slots are in use and their memory is warm
        now = self.inner.now()
        for index, written_at in enumerate(out.written_at):
            if now - written_at >= 2 * self._timeout_s:
                return index
        return None

    def _look(self, peer: Peer, notice: Frame) -> None:
        """Map the segment that a neighbour has made for us."""
        if len(notice) != _NOTICE.size or not peer.name:
            return
        _, incarnation, number = _NOTICE.unpack(notice)
        known = self._in.get(peer[:2])
        if known is not None and known.number == number:
            return
        ours: Role = "parent" if peer.role == "child" else "child"  # what we are to the sender
        segment = _mapped(_door(self._directory, peer.name, incarnation, self._name, ours), number)
        if segment is not None:
            self._in[peer[:2]] = segment
            segment.attached[0] = self._incarnation  # so its sender knows

    def _take(self, peer: Peer, frames: Frames) -> Frames | Rejected:
        """The frames of a message whose long ones lie in a slot, in memory of our own."""
        segment = self._in.get(peer[:2])
        if segment is None or len(frames) != 1 or len(frames[0]) < _TICKET.size:
            return Rejected(Reason.TICKET)
        _, index, count, number, generation, *lengths = _TICKET.unpack_from(frames[0])
        del lengths[count:]
        if number != segment.number or index >= segment.slots or sum(map(_aligned, lengths)) > segment.size:
            return Rejected(Reason.TICKET)
        if segment.generation[index] != generation:
            return Rejected(Reason.STALE_SLOT)
        slot, at, taken = segment.slot(index), 0, [frames[0][_TICKET.size :]]
        for length in lengths:
            taken.append(self._pool.copy(slot[at : at + length]))
            at += _aligned(length)
        if segment.generation[index] != generation:
            return Rejected(Reason.STALE_SLOT)
        segment.released[index] = generation
        return taken


def _door(directory: Path, sender: str, incarnation: int, receiver: str, role: Role) -> Path:
    """Where the segment is found that `sender` made for `receiver`, its child or parent."""
    return directory / f"{sender}-{incarnation}-{receiver}-{role}.lane"


def _made(door: Path, slots: int, size: int) -> Out:
    """A new segment behind its door.

    Raises:
        OSError: no memory, or not enough to spare.
    """
    size = -(-max(size, 1) // PAGE) * PAGE
    total = PAGE + slots * size
    if total > psutil.virtual_memory().available // SPARE:
        raise OSError(errno.ENOMEM, f"{total >> 20} MB are more than a {SPARE}th of the free memory")
    descriptor = os.memfd_create("mach-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, total)  # now, not by a SIGBUS in the middle of a copy
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        memory = mmap.mmap(descriptor, total)
        number = secrets.randbits(63) | 1
        _HEAD.pack_into(memory, 0, _MAGIC, slots, number, size)
        door.unlink(missing_ok=True)
        door.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise
    return Out(Segment(memory, number, slots, size), door, descriptor, [0.0] * slots)


def _mapped(door: Path, number: int) -> Segment | None:
    """The segment behind a door, if it is the one of that number, whole, and cannot be cut short."""
    try:
        descriptor = os.open(door, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        total = os.fstat(descriptor).st_size
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS or total < PAGE:
            return None
        memory = mmap.mmap(descriptor, total)
    except OSError:  # no memfd, so no seals; or no memory
        return None
    finally:
        os.close(descriptor)
    magic, slots, found, size = _HEAD.unpack_from(memory)
    if magic != _MAGIC or found != number or not 1 <= slots <= SLOTS_CAP or PAGE + slots * size != total:
        return None
    return Segment(memory, number, slots, size)


WORD = (1 << 64) - 1


def _write(segment: Segment, index: int, frames: Sequence[Frame]) -> int:
    """Copy frames into a slot; the generation that says so."""
    generation = segment.generation[index] | 1  # odd while it is being written
    segment.generation[index] = generation
    slot, at = segment.slot(index), 0
    for frame in frames:
        slot[at : at + len(frame)] = frame
        at += _aligned(len(frame))
    written = (generation + 1) & WORD  # the memory is the receiver's, too: whatever it wrote there, this fits
    segment.generation[index] = written
    return written


def _aligned(length: int) -> int:
    return length + (-length & 63)
