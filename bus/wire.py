"""Message ↔ frames. Knows no socket and no edge: bytes in, a header or a `Rejected` out.

    kind        says                    tensors
    hello       window, schema, heard   –
    activation  id, version, owes       inputs  |  labels, inputs
    target      id, version             embedding  |  gradient, embedding
    gradient    id, version of target   gradient
    bye         –                       –
    bye-ack     –                       –

Frame 0 is a fixed head (`_HEAD`), a fixed description of every tensor (`_TENSOR`) and, if they are short, the
tensors themselves (`bus/tensors.py`), each filled up to 8 bytes: for small messages a frame costs more than a copy.
Long tensors are frames of their own, which are referred to, not copied, so nobody may write into a tensor that was
sent. An activation of samples that both ends hold says which they are (`indices`, int64 [B]) in place of the inputs.
Frame 0 begins with a crc32 of head and descriptions; what keeps the tensors whole is the transport, a unix socket
or TCP. Everything is little-endian.
Laws: nothing that comes in can raise. Nothing is allocated before every check is passed: a claim of 2⁶⁰ elements
costs one multiplication of Python ints. A tensor that is read owns aligned memory and is equal bit for bit.
Nothing is ever pickled or evaluated.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from bus import tensors
from bus.memory import Pool
from bus.tensors import CODECS, NDIM_CAP, TYPES, Codec, Described
from mach.messages import Activation, Gradient, Message, Target

SCHEMA = 1
"""Number of this wire format, agreed in HELLO."""
INLINE_CAP = 1 << 16
"""Tensors of this many bytes together travel in frame 0. Longer ones are sent, and received, without a copy."""

Frame = bytes | bytearray | memoryview
"""A received one is ours alone, unless it is `bytes`: its tensor then needs no copy."""
Frames = Sequence[Frame]


class Kind(StrEnum):
    """What a head announces, by its place in this list."""

    HELLO = "hello"
    ACTIVATION = "activation"
    TARGET = "target"
    GRADIENT = "gradient"
    BYE = "bye"
    BYE_ACK = "bye-ack"


TENSORS: Mapping[Kind, tuple[int, ...]] = {
    Kind.HELLO: (0,),
    Kind.ACTIVATION: (1, 2),
    Kind.TARGET: (1, 2),
    Kind.GRADIENT: (1,),
    Kind.BYE: (0,),
    Kind.BYE_ACK: (0,),
}
"""How many tensors each kind may carry."""


class Reason(StrEnum):
    """Why frames were refused, in the order of the checks: keys of `Counts.dropped`."""

    FRAMES = "bad-frames"  # none, too many, or another number than announced
    HEAD_SIZE = "bad-header-size"  # frame 0 is too short, too long, or not whole words
    CHECKSUM = "bad-checksum"  # bytes changed on the way
    HEAD = "bad-header"  # a field holds what no sender of ours writes
    RUN = "other-run"  # of another run
    SENDER = "bad-sender"  # no neighbour, or another one than the connection belongs to
    SCHEMA = "other-schema"  # a HELLO of another wire format
    DTYPE = "bad-dtype"  # not on the whitelist, or no such codec
    NDIM = "bad-ndim"  # more than NDIM_CAP dimensions
    SIZE = "bad-size"  # what shape, dtype and codec come to is not the length that came
    INDICES = "bad-indices"  # of samples that we do not hold
    KEY = "bad-key"  # a connection without the run's keys; not of a message
    TICKET = "bad-ticket"  # for no slot of shared memory that we know
    STALE_SLOT = "stale-slot"  # whose content has gone already


@dataclass(frozen=True, slots=True)
class Rejected:
    """A value, not an exception: frames that are dropped and counted."""

    reason: Reason


class Header(NamedTuple):
    """What frame 0 says. Fields that a kind does not use are 0."""

    kind: Kind
    run: int
    """`tag` of the run."""
    sender: int
    """`tag` of the sender's name."""
    incarnation: int
    """Of the sender: how often it was started. 1 at first."""
    sequence: int
    """Of this message on this edge, counted by the sender from 1 up."""
    id: int = 0
    version: int = 0
    """As the message says; of a hello, 0."""
    owes: bool = False
    indexed: bool = False
    """Whether an activation holds indices in place of inputs."""
    window: int = 0
    """Of a parent's hello: W."""
    schema: int = 0
    heard: int = 0
    """Of a hello: incarnation of the receiver that the sender has heard a hello of, 0 if none."""
    tensors: tuple[Described, ...] = ()


class Stamp(NamedTuple):
    """What the sender adds to a message."""

    run: str
    sender: str
    incarnation: int
    sequence: int


class Form(NamedTuple):
    """How messages are written: `bus.codec` and `bus.activation` of the configuration."""

    activation: Codec = Codec.NONE
    target: Codec = Codec.NONE
    gradient: Codec = Codec.NONE
    indices: bool = False
    """Whether activations that know their samples send those indices in place of the inputs."""


PLAIN = Form()

_HEAD = struct.Struct("<4B I Q Q I I Q Q Q")
"""kind, schema, flags, tensors; window, run, sender, incarnation, heard, sequence, id, version."""
_OWES, _INDEXED = 1, 2
_TENSOR = struct.Struct(f"<3B 5x {NDIM_CAP}Q")
"""dtype, dimensions, codec; sizes."""
_SEAL = struct.Struct("<4s I")
"""magic, crc32 of head and descriptions."""
_MAGIC = b"MACH"
PREFIX = _SEAL.size + _HEAD.size
"""Bytes of frame 0 before descriptions and tensors."""
_KINDS = tuple(Kind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_COUNTS = tuple(TENSORS[kind] for kind in _KINDS)
_FLAGS = tuple(_OWES | _INDEXED if kind is Kind.ACTIVATION else 0 for kind in _KINDS)
_TENSORS_CAP = max(max(counts) for counts in _COUNTS)
_FIRST_CAP = PREFIX + _TENSORS_CAP * (_TENSOR.size + 8) + INLINE_CAP
_PADS = (0,) * NDIM_CAP


@cache
def tag(name: str) -> int:
    """A name of any length in one word: the first 8 bytes of its BLAKE2b digest."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def encode(message: Message, stamp: Stamp, form: Form = PLAIN) -> list[Frame]:
    """The frames of a message; tensors on other devices are copied to the CPU.

    Raises:
        ValueError: a tensor whose dtype may not travel, or with too many dimensions: the caller's mistake.
    """
    flags = 0
    match message:
        case Activation(id=of, version=version, inputs=bulk, labels=extra):
            kind, codec = Kind.ACTIVATION, form.activation
            flags = _OWES if message.owes else 0
            if form.indices and message.indices is not None:
                flags, bulk = flags | _INDEXED, message.indices
        case Target(id=of, version=version, embedding=bulk, gradient=extra):
            kind, codec = Kind.TARGET, form.target
        case Gradient(id=of, of_version=version, gradient=bulk):
            kind, codec, extra = Kind.GRADIENT, form.gradient, None
    parts = (bulk,) if extra is None else (extra, bulk)
    described = [tensors.describe(part, codec) for part in parts]
    head = _head(kind, stamp, of, version, flags, count=len(parts))
    for code, shape, coded in described:
        head += _TENSOR.pack(code, len(shape), coded, *shape, *_PADS[len(shape) :])
    arrays = [tensors.pack(part, each) for part, each in zip(parts, described, strict=True)]
    if sum([array.nbytes for array in arrays]) > INLINE_CAP:
        return [_sealed(head), *[array.reshape(-1).view(np.uint8).data for array in arrays]]
    padded: list[memoryview | bytes] = []
    for array in arrays:
        padded.append(array.data)
        if array.nbytes & 7:
            padded.append(bytes(-array.nbytes & 7))
    return [_sealed(head, *padded)]


def encode_control(kind: Kind, stamp: Stamp, *, window: int = 0, heard: int = 0) -> list[Frame]:
    """The frames of a hello, bye or bye-ack."""
    return [_sealed(_head(kind, stamp, window=window, heard=heard))]


def inspect(frames: Frames, run: str) -> Header | Rejected:
    """Every check that needs no knowledge of the edge; allocates nothing but the header."""
    if not 1 <= len(frames) <= 1 + _TENSORS_CAP:
        return Rejected(Reason.FRAMES)
    first = memoryview(frames[0])
    if not PREFIX <= len(first) <= _FIRST_CAP or len(first) & 7:
        return Rejected(Reason.HEAD_SIZE)
    code, schema, flags, count, window, of_run, sender, incarnation, heard, sequence, id, version = _HEAD.unpack_from(
        first, _SEAL.size
    )
    magic, crc = _SEAL.unpack_from(first)
    if crc32(first[_SEAL.size : PREFIX + count * _TENSOR.size]) != crc:
        return Rejected(Reason.CHECKSUM)
    if magic != _MAGIC or code >= len(_KINDS) or flags > _FLAGS[code] or count not in _COUNTS[code]:
        return Rejected(Reason.HEAD)
    if of_run != tag(run):
        return Rejected(Reason.RUN)
    if schema != (SCHEMA if code == 0 else 0):
        return Rejected(Reason.SCHEMA)
    described = _described(frames, count)
    if isinstance(described, Reason):
        return Rejected(described)
    kind, owes, indexed = _KINDS[code], bool(flags & _OWES), bool(flags & _INDEXED)
    return Header(
        kind, of_run, sender, incarnation, sequence, id, version, owes, indexed, window, schema, heard, described
    )


def message_of(header: Header, frames: Frames, pool: Pool, samples: Tensor | None = None) -> Message | Rejected:
    """The message of an inspected header. Copies every tensor out of its frame, unless the frame is ours already.

    Long tensors get their memory from `pool`. What an activation's indices refer to are `samples` [N, ...]; None if
    we hold no data set.

    Raises:
        ValueError: a header of a kind that is no message: the caller's mistake.
    """
    parts = []
    apart = len(frames) > 1
    owned: Frame = frames[0] if apart else bytearray(frames[0])
    at = PREFIX + _TENSOR.size * len(header.tensors)
    for number, described in enumerate(header.tensors, start=1):
        if apart:
            owned, at = _owned(frames[number], pool), 0
        parts.append(tensors.unpack(described, owned, at))
        if not apart and number < len(header.tensors):
            at += _padded(tensors.length(described) or 0)
    bulk, extra = parts.pop() if parts else None, parts.pop() if parts else None
    if bulk is not None:
        match header.kind:
            case Kind.ACTIVATION:
                if not header.indexed:
                    return Activation(header.id, header.version, bulk, extra, header.owes)
                inputs = _rows(samples, bulk)
                if inputs is None:
                    return Rejected(Reason.INDICES)
                return Activation(header.id, header.version, inputs, extra, header.owes, bulk)
            case Kind.TARGET:
                return Target(header.id, header.version, bulk, extra)
            case Kind.GRADIENT:
                return Gradient(header.id, header.version, bulk)
    raise ValueError(f"a {header.kind} is no message")


def _described(frames: Frames, count: int) -> tuple[Described, ...] | Reason:
    """What frame 0 says of its tensors, if it is so."""
    first, apart = frames[0], len(frames) > 1
    left = len(first) - PREFIX - _TENSOR.size * count
    if left < 0 or (apart and count != len(frames) - 1):
        return Reason.FRAMES
    described = []
    for number in range(count):
        code, ndim, codec, *sizes = _TENSOR.unpack_from(first, PREFIX + number * _TENSOR.size)
        if code >= len(TYPES) or codec >= len(CODECS):
            return Reason.DTYPE
        if ndim > NDIM_CAP:
            return Reason.NDIM
        each = Described(code, tuple(sizes[:ndim]), codec)
        length = tensors.length(each)
        if length is None or (apart and length != len(frames[number + 1])):
            return Reason.SIZE
        if not apart:
            left -= _padded(length)
        described.append(each)
    return Reason.SIZE if left else tuple(described)


def _padded(length: int) -> int:
    return length + (-length & 7)


def _owned(frame: Frame, pool: Pool) -> bytearray | memoryview:
    """Writable memory of our own, aligned to 8."""
    if isinstance(frame, bytearray):
        return frame
    view = memoryview(frame)
    if view.readonly or np.frombuffer(view, np.uint8).__array_interface__["data"][0] & 7:
        return pool.copy(view)
    return view


def _rows(samples: Tensor | None, indices: Tensor) -> Tensor | None:
    """[B, ...] the samples at indices [B]; None if there are none such."""
    if samples is None or indices.dtype != torch.int64 or indices.dim() != 1 or not len(indices):
        return None
    low, high = indices.aminmax()
    if low < 0 or high >= len(samples):
        return None
    return samples.index_select(0, indices.to(samples.device))


def _head(
    kind: Kind,
    stamp: Stamp,
    id: int = 0,
    version: int = 0,
    flags: int = 0,
    *,
    count: int = 0,
    window: int = 0,
    heard: int = 0,
) -> bytes:
    run, sender, incarnation, sequence = stamp
    schema = SCHEMA if kind is Kind.HELLO else 0
    who = tag(run), tag(sender), incarnation, heard
    return _HEAD.pack(_CODES[kind], schema, flags, count, window, *who, sequence, id, version)


def _sealed(head: bytes, *tensors: memoryview | bytes) -> bytes:
    """Frame 0: the crc of its head, the head, short tensors."""
    return b"".join((_SEAL.pack(_MAGIC, crc32(head)), head, *tensors))
