"""Shared memory of one sender for one life of one receiver: a ring of entries, and slots for what does not fit there.

    page      head (magic, slots, number, bytes of a slot), the receiver's words, the sender's words
    ring      ENTRIES entries of ENTRY bytes, read in the order in which they were written
    slots     of equal size, each with a generation; a free list, so that few are in use and their memory is warm

A memfd: it has no name to be left behind, cannot be cut short by anybody (sealed), and is gone with its last holder.
A bell is a pipe that wakes a receiver out of its wait. Both are found through a door, a symlink in the run's private
directory. Laws: an entry becomes visible after it was written as a whole; a slot is free when its generation was
released. Both ends can write all of it: nothing that is read here is believed before it was checked.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import platform
import secrets
import select
import stat
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from bus import kernel
from bus.headroom import headroom
from bus.memory import Pool
from bus.wire import TENSORS_CAP, Frame, Frames, Reason, Rejected

PAGE = 4096
ORDERED = platform.machine() in ("x86_64", "AMD64")
"""Whether this processor shows writes to others, and does its reads, in the order of the program: `write` and `frames`
rely on it, and `fence` is a whole barrier there alone."""
ENTRIES, ENTRY = 128, 1024
SLOTS_CAP = 64
BYTES_CAP = 1 << 31
"""A segment is not made larger than this; then it has fewer slots."""
SPARE = 4
"""Nor larger than this share of the memory that is free."""
WORD = (1 << 64) - 1
_HEAD = struct.Struct("<4s I Q Q")
"""magic, slots; number of the segment, bytes of a slot."""
_ENTRY = struct.Struct(f"<I H H Q Q {TENSORS_CAP}Q")
"""bytes of frame 0, which follows; slot, frames in it; messages that had gone past the ring before this one; generation
of the slot, lengths of its frames."""
ENTRY_CAP = ENTRY - _ENTRY.size
"""Bytes of a frame 0 that an entry holds."""
_ENTRIES = tuple(struct.Struct(f"<I H H Q Q {frames}Q") for frames in range(TENSORS_CAP + 1))
"""The same as it is written, by the number of frames in the slot."""
_HEAD_END = _ENTRY.size
_MAGIC = b"LANE"
_ATTACHED, _READ, _ASLEEP, _WRITTEN, _GENERATIONS, _RELEASES = 8, 9, 10, 16, 64, 192
"""Words of 8 bytes in the head; what the two ends write lies in cache lines of their own."""
_SLOTS_AT = PAGE + ENTRIES * ENTRY
_SEALS = kernel.F_SEAL_SHRINK | kernel.F_SEAL_GROW | kernel.F_SEAL_SEAL
_lock = threading.Lock()
_acquire, _release = _lock.acquire, _lock.release


def fence() -> None:
    """What this thread wrote before is seen by others before what it writes and reads after.

    A lock that nobody else holds costs a locked instruction each way, which is a barrier for the processor.
    """
    _acquire()
    _release()


class Entry(Struct, frozen=True):
    """What the ring says of a message."""

    first: bytes
    """Frame 0."""
    past: int
    """Messages that had gone past the ring before it."""
    slot: int
    generation: int
    lengths: list[int]
    """Of the frames in the slot."""


class Segment:
    """The memory, from either end."""

    def __init__(self, memory: mmap.mmap, number: int, slots: int, size: int) -> None:
        self.number = number
        self.slots = slots
        self.size = size
        self._memory = memoryview(memory)  # unmapped with the last reference
        words = self._memory[:PAGE].cast("Q")
        self.attached = words[_ATTACHED : _ATTACHED + 1]
        """Incarnation of the receiver that has mapped it, 0 if none."""
        self.read = words[_READ : _READ + 1]
        """Entries read, ever."""
        self.asleep = words[_ASLEEP : _ASLEEP + 1]
        """1 while the receiver waits for its bell."""
        self.written = words[_WRITTEN : _WRITTEN + 1]
        """Entries written, ever."""
        self.generation = words[_GENERATIONS : _GENERATIONS + slots]
        """By slot: odd while it is written."""
        self.released = words[_RELEASES : _RELEASES + slots]

    def write(self, first: Frame, rest: Sequence[Frame], slot: int, past: int) -> None:
        """A message into the ring, which has room, and its long frames into a slot, which is free and large enough."""
        memory, generation, length, long = self._memory, 0, len(first), len(rest)
        if long:
            generation = self._fill(slot, rest)
        count = self.written[0]
        at = PAGE + count % ENTRIES * ENTRY
        _ENTRIES[long].pack_into(memory, at, length, slot, long, past, generation, *map(len, rest))
        at += _HEAD_END
        memory[at : at + length] = first
        self.written[0] = count + 1 & WORD
        fence()

    def entry(self, count: int) -> Entry:
        """The entry of this number, which was written. Nothing that it says is checked yet."""
        memory, at = self._memory, PAGE + count % ENTRIES * ENTRY
        length, slot, frames, past, generation, *lengths = _ENTRY.unpack_from(memory, at)
        del lengths[frames:]
        at += _HEAD_END
        return Entry(bytes(memory[at : at + min(length, ENTRY_CAP)]), past, slot, generation, lengths)

    def frames(self, entry: Entry, pool: Pool) -> Frames | Rejected:
        """All frames of a message, in memory of our own; its slot is free then."""
        slot, generation, lengths = entry.slot, entry.generation, entry.lengths
        if slot >= self.slots or span(lengths) > self.size:
            return Rejected(Reason.TICKET)
        if self.generation[slot] != generation:
            return Rejected(Reason.STALE_SLOT)
        memory, at = self._memory, _SLOTS_AT + slot * self.size
        taken: list[Frame] = [entry.first]
        for length in lengths:
            end = at + length
            taken.append(pool.copy(memory[at:end]))
            at = end + 63 & -64
        if self.generation[slot] != generation:
            return Rejected(Reason.STALE_SLOT)
        self.released[slot] = generation
        return taken

    def _fill(self, slot: int, frames: Sequence[Frame]) -> int:
        """Copy frames into a slot; the generation that says so."""
        memory, generations = self._memory, self.generation
        generation = generations[slot] | 1  # odd while it is being written
        generations[slot] = generation
        at = _SLOTS_AT + slot * self.size
        for frame in frames:
            end = at + len(frame)
            memory[at:end] = frame
            at = end + 63 & -64
        generation = generation + 1 & WORD  # the memory is the receiver's, too: whatever it wrote there, this fits
        generations[slot] = generation
        return generation


def span(lengths: Iterable[int]) -> int:
    """Bytes of a slot that frames of these lengths take: each begins at a multiple of 64."""
    end = 0
    for length in lengths:
        end = (end + 63 & -64) + length
    return end


def make(door: Path, slots: int, size: int) -> tuple[Segment, int]:
    """A new segment behind its door, and the descriptor that keeps it.

    Raises:
        BlockingIOError: somebody behind a door beside this one takes memory at this moment.
        OSError: no memory, or not enough to spare.
    """
    size = -(-max(size, 1) // PAGE) * PAGE
    slots = max(min(slots, SLOTS_CAP, BYTES_CAP // size), 1)
    total = _SLOTS_AT + slots * size
    descriptor = kernel.memfd_create("mach-lane")
    try:
        with alone(door.parent):
            free, limit = headroom()
            if total > free // SPARE:
                of = "" if limit is None else f" of the control group's {limit >> 20:,}"
                text = f"{total >> 10:,} KB are more than 1/{SPARE} of the {free >> 20:,} MB{of} that are free"
                raise OSError(errno.ENOMEM, text)
            os.posix_fallocate(descriptor, 0, total)  # now, not by a SIGBUS in the middle of a copy
        fcntl.fcntl(descriptor, kernel.F_ADD_SEALS, _SEALS)
        memory = mmap.mmap(descriptor, total)
        number = secrets.randbits(63) | 1
        _HEAD.pack_into(memory, 0, _MAGIC, slots, number, size)
        lead(door, descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return Segment(memory, number, slots, size), descriptor


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Nobody else of this directory takes memory meanwhile, for who looks while others take finds free what is gone.

    A file is locked for it, and gone afterwards: the directory itself is locked by its keeper (`address.claim`).

    Raises:
        BlockingIOError: somebody does.
    """
    path = directory / "memory.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_nlink:  # opened before somebody removed it: others lock another by now
            raise BlockingIOError(errno.EAGAIN, f"{path}: somebody took memory a moment ago")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def find(door: Path, number: int) -> Segment | None:
    """The segment behind a door, if it is the one of that number, whole, and cannot be cut short."""
    try:
        descriptor = os.open(door, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        total = os.fstat(descriptor).st_size
        if fcntl.fcntl(descriptor, kernel.F_GET_SEALS) & _SEALS != _SEALS or total < _SLOTS_AT:
            return None
        memory = mmap.mmap(descriptor, total)
    except OSError:  # no memfd, so no seals; or no memory
        return None
    finally:
        os.close(descriptor)
    magic, slots, found, size = _HEAD.unpack_from(memory)
    if magic != _MAGIC or found != number or not 1 <= slots <= SLOTS_CAP or _SLOTS_AT + slots * size != total:
        return None
    return Segment(memory, number, slots, size)


def lead(door: Path, descriptor: int) -> None:
    """Let a door lead to what a descriptor of this process holds; it leads nowhere once this process is gone."""
    door.unlink(missing_ok=True)
    door.symlink_to(_inside(descriptor))


def shut(door: Path, descriptor: int) -> None:
    """Remove a door, unless it leads to something else by now."""
    with contextlib.suppress(FileNotFoundError):
        if os.readlink(door) == _inside(descriptor):
            door.unlink()


def _inside(descriptor: int) -> str:
    return f"/proc/{os.getpid()}/fd/{descriptor}"


class Bell:
    """A pipe that a receiver waits for, from its own end.

    Senders take a pipe that nobody reads for a dead receiver, so no other process may hold its end: not one that is
    executed (O_CLOEXEC), nor a plain fork, which lets go of it. What else a fork inherits, ropes and memory, nobody
    waits for the end of; it is gone with the fork.
    """

    def __init__(self, door: Path) -> None:
        self.door = door
        self.descriptor, self._other = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _bells.add(self)
        try:
            lead(door, self._other)
        except OSError:
            self.let_go()
            raise

    def close(self) -> None:
        """Whoever rings then is told."""
        if self in _bells:  # else it is another process's, as its door is
            self.let_go()
            self.door.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Of both ends of the pipe."""
        _bells.discard(self)
        os.close(self.descriptor)
        os.close(self._other)


_bells: weakref.WeakSet[Bell] = weakref.WeakSet()
"""Those that this process waits for."""


def _forked() -> None:
    for bell in list(_bells):
        bell.let_go()


os.register_at_fork(after_in_child=_forked)


class Rope:
    """A sender's end of a bell."""

    def __init__(self, door: Path) -> None:
        """Raises OSError: nobody has hung it up, or that one is dead."""
        self._descriptor = os.open(door, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):  # a pid is reused: not to be written to
            os.close(self._descriptor)
            raise OSError(errno.ENXIO, f"{door}: leads to no bell")
        self._poll = select.poll()
        self._poll.register(self._descriptor, 0)  # errors alone: that nobody reads

    def dead(self) -> bool:
        """Whether the process that hung up the bell is gone, or has closed it."""
        return bool(self._poll.poll(0))

    def pull(self) -> None:
        """Ring. A full pipe was rung already; one without a reader wakes nobody."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._descriptor, b".")

    def close(self) -> None:
        """Let go."""
        os.close(self._descriptor)
