"""Very long frames as pieces of one message, with a frame before them that says how long they are.

libzmq's memory for pieces is warm where that of one long frame has to be asked of the kernel anew, and they are copied
into memory that was in use before. Knows no socket: frames have a `buffer`, a length and `more`, as pyzmq's do.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

from bus.memory import Pool
from bus.wire import TENSORS_CAP, Frame

FRAMES_CAP = 8
"""Frames kept of one message; the wire format knows fewer, so the rest would be refused anyway."""
PIECE = 1 << 20
PIECES_FROM = 16 * PIECE
"""Bytes of a frame from which on pieces are faster: at 64 MiB twice as fast as plain ZeroMQ, at 4 MiB no longer."""
_PIECES = struct.Struct(f"<4s I {TENSORS_CAP}Q")
"""magic; how many frames follow the next one in pieces, and their lengths."""
_MAGIC = b"PART"


def worth_it(rest: Sequence[Frame]) -> bool:
    """Whether the frames after frame 0 are to be cut."""
    return len(rest) <= TENSORS_CAP and max(map(len, rest)) >= PIECES_FROM


def cut(rest: Sequence[Frame]) -> tuple[bytes, list[Frame]]:
    """What announces the pieces, to be sent before frame 0, and the pieces, to be sent after it."""
    lengths = [*map(len, rest), *[0] * TENSORS_CAP][:TENSORS_CAP]
    views = [memoryview(frame) for frame in rest]
    pieces: list[Frame] = [view[at : at + PIECE] for view in views for at in range(0, len(view), PIECE)]
    return _PIECES.pack(_MAGIC, len(rest), *lengths), pieces


def joined(frame: Any, following: Callable[[], Any], pool: Pool, cap: int) -> list[Frame]:
    """The frames of a message that begins with this one, without an identity; they arrive together. None of one whose
    frames are longer than `cap` together.
    """
    frames: list[Frame] = [frame.buffer]
    left = cap - len(frame)
    while frame.more:
        if len(frame) == _PIECES.size and frames[-1][:4] == _MAGIC:
            frames[-1:] = _joined(frame.buffer, following, pool, cap)
            break
        frame = following()
        left -= len(frame)
        if len(frames) < FRAMES_CAP and left >= 0:
            frames.append(frame.buffer)
    return frames if left >= 0 else []


def _joined(announced: memoryview, following: Callable[[], Any], pool: Pool, cap: int) -> list[Frame]:
    """A frame, and those whose pieces follow it, in memory of our own; nothing if they are not as announced.

    The pieces are all there, since a message arrives whole: memory is taken when they are seen to be as long as
    announced, for the announcement alone costs its sender nothing.
    """
    frames: list[Frame] = [(first := following()).bytes]
    _, count, *lengths = _PIECES.unpack(announced)
    lengths = lengths[:count]
    right = sum(lengths) <= cap
    sizes = [min(PIECE, length - at) for length in lengths for at in range(0, length, PIECE)] if right else []
    pieces: list[memoryview] = []
    more = first.more
    while more:
        piece = following()
        more = piece.more
        right = right and len(pieces) < len(sizes) and len(piece) == sizes[len(pieces)]
        if right:
            pieces.append(piece.buffer)
    if not right or len(pieces) < len(sizes):
        return []
    come = iter(pieces)
    for length in lengths:
        memory = pool.take(length)
        into = memoryview(memory)
        for at in range(0, length, PIECE):
            into[at : at + PIECE] = next(come)
        frames.append(memory)
    return frames
