"""Message ↔ frames. Knows no socket and no edge: bytes in, a header or a `Rejected` out.

    kind        says                    tensors
    hello       window, schema, heard   –
    activation  id, version, owes,      inputs, labels?, context?
                depth
    target      id, version             embedding, gradient?, logits?, layer?
    gradient    id, version of target   gradient
    bye         –                       –
    bye-ack     –                       –

Frame 0 is a fixed head (`_HEAD`), a fixed description of every tensor (`_TENSOR`) and, if they are short, the
tensors themselves (`bus/tensors.py`), each filled up to 8 bytes: for small messages a frame costs more than a copy.
Long tensors are frames of their own, which are referred to, not copied, so nobody may write into a tensor that was
sent. An activation of samples that both ends hold says which they are (`indices`, int64 [B]) in place of the context,
or where none comes along of the inputs.
Which tensors follow is a mask in the head. Frame 0 begins with a crc32 of head and descriptions; what keeps the
tensors whole is the transport, a unix socket or TCP. Heads are little-endian; tensors travel as the machine has them,
so all hosts of a run have one byte order.
Laws: nothing that comes in can raise. Nothing is allocated before every check is passed: a claim of 2⁶⁰ elements
costs one multiplication of Python ints. A tensor that is read owns aligned memory and is equal bit for bit.
Nothing is ever pickled or evaluated.
"""

import struct
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache, lru_cache
from hashlib import blake2b
from typing import NamedTuple, assert_never
from zlib import crc32

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from bus import tensors
from bus.memory import Pool
from bus.tensors import CODECS, NDIM_CAP, TYPES, Codec, Described
from mach.messages import Activation, Gradient, Message, Target

SCHEMA = 5
"""Number of this wire format, agreed in HELLO."""
INLINE_CAP = 1 << 16
"""Tensors of this many bytes together travel in frame 0. Longer ones are sent, and received, without a copy. A
transport that has something better for long ones draws the line lower (`Transport.inline_cap`)."""

SHORT = 1 << 13
"""Messages of one frame below this are copied out of it: libzmq has put several into one block of its memory."""

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


TENSORS: Mapping[Kind, tuple[str, ...]] = {
    Kind.HELLO: (),
    Kind.ACTIVATION: ("inputs", "labels", "context"),
    Kind.TARGET: ("embedding", "gradient", "logits", "layer"),
    Kind.GRADIENT: ("gradient",),
    Kind.BYE: (),
    Kind.BYE_ACK: (),
}
"""The tensors of each kind, in the order in which they travel. The first is always there, any other may not be."""


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
    HUNG_UP = "hung-up"  # a stranger's connection that ended, as at a message that is too long; not of a message
    TICKET = "bad-ticket"  # for no slot of shared memory that we know
    STALE_SLOT = "stale-slot"  # whose content has gone already


class Rejected(Struct, frozen=True):
    """A value, not an exception: frames that are dropped and counted."""

    reason: Reason


class Preamble(NamedTuple):
    """What many messages have in common, worked out and checked once for all of them. What a kind does not use is 0."""

    kind: Kind
    run: int
    """`tag` of the run."""
    sender: int
    """`tag` of the sender's name."""
    incarnation: int
    """Of the sender: how often it was started. 1 at first."""
    owes: bool = False
    indexed: bool = False
    """Whether an activation holds indices in place of inputs."""
    depth: int = 0
    """Of an activation: how many levels further down the answer shall come from."""
    window: int = 0
    """Of a parent's hello: W."""
    schema: int = 0
    heard: int = 0
    """Of a hello: incarnation of the receiver that the sender has heard a hello of, 0 if none."""
    tensors: tuple[tuple[int, Described, int], ...] = ()
    """Of each its place in `TENSORS` of the kind, what is said of it, and where it begins if it is in frame 0."""
    lengths: tuple[int, ...] = ()
    """Of each, in bytes."""
    end: int = 64
    """How long frame 0 is then."""


class Header(Struct, frozen=True):
    """What frame 0 says."""

    preamble: Preamble
    sequence: int
    """Of this message on this edge, counted by the sender from 1 up."""
    id: int = 0
    version: int = 0
    """As the message says; of a hello, 0."""

    @property
    def kind(self) -> Kind:
        """What it announces."""
        return self.preamble.kind


class Stamp(Struct, frozen=True):
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

_HEAD = struct.Struct("<4s I 3Q")
"""magic, crc32 of all that follows but the tensors; sequence, id, version."""
_SEAL, _BODY = struct.Struct("<4s I"), struct.Struct("<3Q")
"""The two parts of a head."""
_SEALED_AT, _BODY_SIZE = _SEAL.size, _BODY.size
_PREAMBLE = struct.Struct("<4B I Q Q I I")
"""kind, schema, flags, mask of tensors; window, run, sender, incarnation, heard. The tensors' descriptions follow."""
_TENSOR = struct.Struct(f"<3B 5x {NDIM_CAP}Q")
"""dtype, dimensions, codec; sizes."""
_MAGIC, _MASK_AT = b"MACH", _HEAD.size + 3
_OWES, _INDEXED, _DEPTH = 1, 2, 4
"""Flags of an activation: two bits, and its depth in those above."""
DEPTH_CAP = 63
PREFIX = _HEAD.size + _PREAMBLE.size
"""Bytes of frame 0 before descriptions and tensors."""
_KINDS = tuple(Kind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_ACTIVATION, _TARGET, _GRADIENT = (_CODES[kind] for kind in (Kind.ACTIVATION, Kind.TARGET, Kind.GRADIENT))
_TARGET_KIND, _GRADIENT_KIND = Kind.TARGET, Kind.GRADIENT  # to look a member up costs as much as two calls
_MASKS = tuple(range(1, 1 << len(TENSORS[kind]), 2) or (0,) for kind in _KINDS)
_FLAGS = tuple(255 if kind is Kind.ACTIVATION else 0 for kind in _KINDS)
_SCHEMAS = tuple(SCHEMA if kind is Kind.HELLO else 0 for kind in _KINDS)
_ENDS = tuple(PREFIX + mask.bit_count() * _TENSOR.size for mask in range(256))
"""Where the descriptions end, by mask."""
TENSORS_CAP = max(map(len, TENSORS.values()))
_FIRST_CAP = PREFIX + TENSORS_CAP * (_TENSOR.size + 8) + INLINE_CAP
_PADS = tuple(bytes(-length & 7) for length in range(8))
_REMEMBERED = 256
"""Messages differ little: as many preambles are kept as were written, and as many as were read."""


@cache
def tag(name: str) -> int:
    """A name of any length in one word: the first 8 bytes of its BLAKE2b digest."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def encode(message: Message, stamp: Stamp, form: Form = PLAIN, cap: int = INLINE_CAP) -> list[Frame]:
    """The frames of a message; tensors on other devices are copied to the CPU.

    Tensors of more than `cap` bytes together become frames of their own.

    Raises:
        ValueError: a tensor whose dtype may not travel, or with too many dimensions; a depth above DEPTH_CAP: the
            caller's mistake.
    """
    code, flags, codec, of, version, parts = _said(message, form)
    kinds: list[tuple[torch.dtype, torch.Size] | None] = []
    for part in parts:
        kinds.append(None if part is None else (part.dtype, part.shape))
    sender = stamp.run, stamp.sender, stamp.incarnation
    preamble, described, size = _preamble_of(code, flags, codec, tuple(kinds), *sender)
    body = _BODY.pack(stamp.sequence, of, version) + preamble
    frames: list[Frame] = [_SEAL.pack(_MAGIC, crc32(body)) + body]
    apart = size > cap
    for part, each in zip(parts, described, strict=True):
        if part is not None and each is not None:
            array = tensors.pack(part, each)
            # numpy's own views cost far more than a cast, which an empty array cannot have
            frames.append(array.data.cast("B") if array.size else b"")
            if not apart:
                frames.append(_PADS[array.nbytes & 7])
    return frames if apart else [b"".join(frames)]


def _said(message: Message, form: Form) -> tuple[int, int, Codec, int, int, tuple[Tensor | None, ...]]:
    """Code of the kind, flags, codec, id, version, and the tensors as in `TENSORS`."""
    match message:
        case Activation(id=of, version=version, inputs=inputs, labels=labels, context=context):
            if not 0 <= message.depth <= DEPTH_CAP:
                raise ValueError(f"activation {of}: depth {message.depth} is not from 0 to {DEPTH_CAP}")
            flags = message.depth * _DEPTH + (_OWES if message.owes else 0)
            if form.indices and message.indices is not None:
                flags |= _INDEXED
                inputs, context = (message.indices, None) if context is None else (inputs, message.indices)
            return _ACTIVATION, flags, form.activation, of, version, (inputs, labels, context)
        case Target(id=of, version=version):
            said = (message.embedding, message.gradient, message.logits, message.layer)
            return _TARGET, 0, form.target, of, version, said
        case Gradient(id=of, of_version=version):
            return _GRADIENT, 0, form.gradient, of, version, (message.gradient,)
        case _:
            assert_never(message)


def encode_control(kind: Kind, stamp: Stamp, *, window: int = 0, heard: int = 0) -> list[Frame]:
    """The frames of a hello, bye or bye-ack."""
    code, run, sender = _CODES[kind], tag(stamp.run), tag(stamp.sender)
    preamble = _PREAMBLE.pack(code, _SCHEMAS[code], 0, 0, window, run, sender, stamp.incarnation, heard)
    body = _BODY.pack(stamp.sequence, 0, 0) + preamble
    return [_SEAL.pack(_MAGIC, crc32(body)) + body]


def inspect(frames: Frames, run: str) -> Header | Rejected:
    """Every check that needs no knowledge of the edge; allocates nothing but the header."""
    apart = len(frames) - 1
    if not 0 <= apart <= TENSORS_CAP:
        return Rejected(Reason.FRAMES)
    first = frames[0]
    size = len(first)
    if not PREFIX <= size <= _FIRST_CAP or size & 7:
        return Rejected(Reason.HEAD_SIZE)
    magic, crc, sequence, id, version = _HEAD.unpack_from(first)
    end = _ENDS[first[_MASK_AT]]
    sealed = bytes(first[_SEALED_AT:end])
    if crc32(sealed) != crc:
        return Rejected(Reason.CHECKSUM)
    if magic != _MAGIC:
        return Rejected(Reason.HEAD)
    preamble = _preamble(sealed[_BODY_SIZE:], run)
    if isinstance(preamble, Reason):
        return Rejected(preamble)
    if apart:
        if apart != len(preamble.lengths):
            return Rejected(Reason.FRAMES)
        if size != end or tuple(map(len, frames[1:])) != preamble.lengths:
            return Rejected(Reason.SIZE)
    elif size != preamble.end:
        return Rejected(Reason.SIZE)
    return Header(preamble, sequence, id, version)


def message_of(header: Header, frames: Frames, pool: Pool, samples: Tensor | None = None) -> Message | Rejected:
    """The message of an inspected header. Copies every tensor out of its frame, unless the frame is ours already.

    Long tensors get their memory from `pool`. What an activation's indices refer to are `samples` [N, ...]; None if
    we hold no data set.

    Raises:
        ValueError: a header of a kind that is no message: the caller's mistake.
    """
    preamble, of, version = header.preamble, header.id, header.version
    parts: list[Tensor | None] = [None] * TENSORS_CAP
    if len(frames) > 1:
        for (place, described, _), frame in zip(preamble.tensors, frames[1:], strict=True):
            ours = frame if isinstance(frame, bytearray) else _owned(frame, pool)
            parts[place] = tensors.unpack(described, ours, 0)
    else:
        owned = bytearray(frames[0]) if len(frames[0]) < SHORT else _owned(frames[0], pool)
        for place, described, start in preamble.tensors:
            parts[place] = tensors.unpack(described, owned, start)
    bulk, extra, third, fourth = parts
    if bulk is None:
        raise ValueError(f"a {preamble.kind} is no message")
    if preamble.kind is _TARGET_KIND:
        return Target(of, version, bulk, extra, third, fourth)
    if preamble.kind is _GRADIENT_KIND:
        return Gradient(of, version, bulk)
    if not preamble.indexed:
        return Activation(of, version, bulk, extra, preamble.owes, context=third, depth=preamble.depth)
    indices = bulk if third is None else third
    rows = _rows(samples, indices)
    if rows is None:
        return Rejected(Reason.INDICES)
    inputs, context = (rows, None) if third is None else (bulk, rows)
    return Activation(of, version, inputs, extra, preamble.owes, indices, context, preamble.depth)


@lru_cache(_REMEMBERED)
def _preamble_of(
    code: int,
    flags: int,
    codec: Codec,
    kinds: tuple[tuple[torch.dtype, torch.Size] | None, ...],
    run: str,
    sender: str,
    incarnation: int,
) -> tuple[bytes, tuple[Described | None, ...], int]:
    """Of a message with tensors of these dtypes and shapes, or none, at their places in `TENSORS`: its preamble, what
    is said of each, their bytes.
    """
    mask = sum([1 << place for place, kind in enumerate(kinds) if kind is not None])
    described = tuple([None if kind is None else tensors.describe(*kind, codec) for kind in kinds])
    words, size = _PREAMBLE.pack(code, 0, flags, mask, 0, tag(run), tag(sender), incarnation, 0), 0
    for each in described:
        if each is not None:
            dtype, shape, coded = each
            words += _TENSOR.pack(dtype, len(shape), coded, *shape, *(0,) * (NDIM_CAP - len(shape)))
            size += tensors.length(each) or 0
    return words, described, size


@lru_cache(_REMEMBERED)
def _preamble(words: bytes, of_run: str) -> Preamble | Reason:
    """What the words between head and tensors say to a member of a run, or what is wrong with them."""
    code, schema, flags, mask, window, run, sender, incarnation, heard = _PREAMBLE.unpack_from(words)
    if code >= len(_KINDS) or flags > _FLAGS[code] or mask not in _MASKS[code]:
        return Reason.HEAD
    if run != tag(of_run):
        return Reason.RUN
    if schema != _SCHEMAS[code]:
        return Reason.SCHEMA
    end = _ENDS[mask]
    if _HEAD.size + len(words) != end:
        return Reason.FRAMES
    places = iter([place for place in range(TENSORS_CAP) if mask >> place & 1])
    described, lengths = [], []
    for dtype, ndim, codec, *sizes in _TENSOR.iter_unpack(words[_PREAMBLE.size :]):
        if dtype >= len(TYPES) or codec >= len(CODECS):
            return Reason.DTYPE
        if ndim > NDIM_CAP:
            return Reason.NDIM
        each = Described(dtype, tuple(sizes[:ndim]), codec)
        length = tensors.length(each)
        if length is None:
            return Reason.SIZE
        described.append((next(places), each, end))
        lengths.append(length)
        end += length + (-length & 7)
    owes, indexed = bool(flags & _OWES), bool(flags & _INDEXED)
    head = _KINDS[code], run, sender, incarnation, owes, indexed, flags // _DEPTH, window, schema, heard
    return Preamble(*head, tuple(described), tuple(lengths), end)


def _owned(frame: Frame, pool: Pool) -> bytearray | memoryview:
    """Writable memory of our own, aligned to 8."""
    view = memoryview(frame)
    if view.readonly or len(view) < 8 or not np.ndarray((1,), np.uint64, view).flags.aligned:
        return pool.copy(view)
    return view


def _rows(samples: Tensor | None, indices: Tensor) -> Tensor | None:
    """[B, ...] the samples at indices [B]; None if there are none such."""
    if samples is None or indices.dtype != torch.int64 or indices.dim() != 1 or not len(indices):
        return None
    low, high = indices.aminmax()
    if low < 0 or high >= len(samples):
        return None
    return samples.index_select(0, indices.to(samples.device, non_blocking=True))  # they lie here: nothing to wait for
