"""Message ↔ frames. Knows no socket and no edge: bytes in, a header or a `Rejected` out.

    kind        says                    tensors
    hello       window, schema, heard   –
    activation  id, version, owes       inputs  |  labels, inputs
    target      id, version             embedding  |  gradient, embedding
    gradient    id, version of target   gradient
    bye         –                       –
    bye-ack     –                       –

Frame 0 is a fixed head (`_HEAD`), a fixed description of every tensor (`_TENSOR`) and, if they are short, the
tensors themselves, each filled up to 8 bytes: for small messages a frame costs more than a copy. Long tensors are
frames of their own, which are referred to, not copied, so nobody may write into a tensor that was sent. Frame 0
begins with a crc32 of head and descriptions; what keeps the tensors whole is the transport, a unix socket or TCP.
Everything is little-endian.
Laws: nothing that comes in can raise. Nothing is allocated before every check is passed: a claim of 2⁶⁰ elements
costs one multiplication of Python ints. A tensor that is read owns aligned memory and is equal bit for bit.
Nothing is ever pickled or evaluated.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mach.messages import Activation, Gradient, Message, Target

SCHEMA = 1
"""Number of this wire format, agreed in HELLO."""
INLINE_CAP = 1 << 16
"""Tensors of this many bytes together travel in frame 0. Longer ones are sent, and received, without a copy."""
NDIM_CAP = 8
SPAN_CAP = 1 << 40
"""Bytes of a tensor whose empty dimensions count as one: keeps strides within what torch can hold."""
DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
"""All that may travel. A description names them by their place in this list."""
CARRIERS: Mapping[torch.dtype, torch.dtype] = {torch.bfloat16: torch.int16, torch.bool: torch.uint8} | {
    dtype: torch.uint8 for name, dtype in DTYPES.items() if name.startswith("float8")
}
"""As what numpy, which is the cheapest way in and out, sees those that it has no word for."""

Frame = bytes | bytearray | memoryview
Frames = Sequence[Frame]
Array = npt.NDArray[Any]


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
    DTYPE = "bad-dtype"  # not on the whitelist
    NDIM = "bad-ndim"  # more than NDIM_CAP dimensions
    SIZE = "bad-size"  # shape times item size is not the length that came


@dataclass(frozen=True, slots=True)
class Rejected:
    """A value, not an exception: frames that are dropped and counted."""

    reason: Reason


class Described(NamedTuple):
    """What is said of a tensor."""

    dtype: int
    """Place in DTYPES."""
    shape: tuple[int, ...]


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


class _Type(NamedTuple):
    """How tensors of one dtype go in and out of bytes."""

    code: int
    dtype: torch.dtype
    carrier: np.dtype[Any]
    view: torch.dtype | None  # the carrier, where it is another dtype


_HEAD = struct.Struct("<4B I Q Q I I Q Q Q")
"""kind, schema, owes, tensors; window, run, sender, incarnation, heard, sequence, id, version."""
_TENSOR = struct.Struct(f"<B B 6x {NDIM_CAP}Q")
"""dtype, dimensions; sizes."""
_SEAL = struct.Struct("<4s I")
"""magic, crc32 of head and descriptions."""
_MAGIC = b"MACH"
PREFIX = _SEAL.size + _HEAD.size
"""Bytes of frame 0 before descriptions and tensors."""
_KINDS = tuple(Kind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_COUNTS = tuple(TENSORS[kind] for kind in _KINDS)
_TYPES = tuple(
    _Type(code, dtype, np.dtype(str(CARRIERS.get(dtype, dtype)).removeprefix("torch.")), CARRIERS.get(dtype))
    for code, dtype in enumerate(DTYPES.values())
)
_TYPE_OF = {each.dtype: each for each in _TYPES}
_TENSORS_CAP = max(max(counts) for counts in _COUNTS)
_FIRST_CAP = PREFIX + _TENSORS_CAP * (_TENSOR.size + 8) + INLINE_CAP
_PADS = (0,) * NDIM_CAP


@cache
def tag(name: str) -> int:
    """A name of any length in one word: the first 8 bytes of its BLAKE2b digest."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def encode(message: Message, stamp: Stamp) -> list[Frame]:
    """The frames of a message; tensors on other devices are copied to the CPU.

    Raises:
        ValueError: a tensor whose dtype may not travel, or with too many dimensions: the caller's mistake.
    """
    match message:
        case Activation(id=of, version=version, inputs=inputs, labels=labels, owes=owes):
            tensors = (inputs,) if labels is None else (labels, inputs)
            kind = Kind.ACTIVATION
        case Target(id=of, version=version, embedding=embedding, gradient=gradient):
            tensors = (embedding,) if gradient is None else (gradient, embedding)
            kind, owes = Kind.TARGET, False
        case Gradient(id=of, of_version=version, gradient=gradient):
            tensors, kind, owes = (gradient,), Kind.GRADIENT, False
    types = [_type_of(tensor) for tensor in tensors]
    head = _head(kind, stamp, of, version, owes, count=len(tensors))
    for each, tensor in zip(types, tensors, strict=True):
        shape = tensor.shape
        head += _TENSOR.pack(each.code, len(shape), *shape, *_PADS[len(shape) :])
    arrays = [_array_of(each, tensor) for each, tensor in zip(types, tensors, strict=True)]
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
    code, schema, owes, count, window, of_run, sender, incarnation, heard, sequence, id, version = _HEAD.unpack_from(
        first, _SEAL.size
    )
    magic, crc = _SEAL.unpack_from(first)
    if crc32(first[_SEAL.size : PREFIX + count * _TENSOR.size]) != crc:
        return Rejected(Reason.CHECKSUM)
    if magic != _MAGIC or code >= len(_KINDS) or owes > 1 or count not in _COUNTS[code]:
        return Rejected(Reason.HEAD)
    if of_run != tag(run):
        return Rejected(Reason.RUN)
    if schema != (SCHEMA if code == 0 else 0):
        return Rejected(Reason.SCHEMA)
    described = _described(frames, count)
    if isinstance(described, Reason):
        return Rejected(described)
    kind = _KINDS[code]
    return Header(kind, of_run, sender, incarnation, sequence, id, version, owes == 1, window, schema, heard, described)


def message_of(header: Header, frames: Frames) -> Message:
    """The message of an inspected header. Copies every tensor out of its frame.

    Raises:
        ValueError: a header of a kind that is no message: the caller's mistake.
    """
    tensors = []
    apart = len(frames) > 1
    owned, at = frames[0] if apart else bytearray(frames[0]), PREFIX + _TENSOR.size * len(header.tensors)
    for number, (code, shape) in enumerate(header.tensors, start=1):
        if apart:
            owned, at = bytearray(frames[number]), 0
        array = np.ndarray(shape, _TYPES[code].carrier, owned, at)
        at += array.nbytes + (-array.nbytes & 7)
        tensors.append(_tensor_of(_TYPES[code], array))
    bulk, extra = tensors.pop() if tensors else None, tensors.pop() if tensors else None
    if bulk is not None:
        match header.kind:
            case Kind.ACTIVATION:
                return Activation(header.id, header.version, bulk, extra, header.owes)
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
        code, ndim, *sizes = _TENSOR.unpack_from(first, PREFIX + number * _TENSOR.size)
        shape = tuple(sizes[:ndim])
        if code >= len(_TYPES):
            return Reason.DTYPE
        if ndim > NDIM_CAP:
            return Reason.NDIM
        item = _TYPES[code].dtype.itemsize
        length = math.prod(shape) * item
        if length == 0 and math.prod([max(size, 1) for size in shape]) * item > SPAN_CAP:
            return Reason.SIZE
        if not apart:
            left -= length + (-length & 7)
        elif length != len(frames[number + 1]):
            return Reason.SIZE
        described.append(Described(code, shape))
    return Reason.SIZE if left else tuple(described)


def _head(
    kind: Kind,
    stamp: Stamp,
    id: int = 0,
    version: int = 0,
    owes: bool = False,
    *,
    count: int = 0,
    window: int = 0,
    heard: int = 0,
) -> bytes:
    run, sender, incarnation, sequence = stamp
    schema = SCHEMA if kind is Kind.HELLO else 0
    who = tag(run), tag(sender), incarnation, heard
    return _HEAD.pack(_CODES[kind], schema, owes, count, window, *who, sequence, id, version)


def _sealed(head: bytes, *tensors: memoryview | bytes) -> bytes:
    """Frame 0: the crc of its head, the head, short tensors."""
    return b"".join((_SEAL.pack(_MAGIC, crc32(head)), head, *tensors))


def _type_of(tensor: Tensor) -> _Type:
    kind = _TYPE_OF.get(tensor.dtype)
    if kind is None or tensor.dim() > NDIM_CAP:
        raise ValueError(
            f"a tensor of {tensor.dtype} with shape {tuple(tensor.shape)} cannot travel; "
            f"send at most {NDIM_CAP} dimensions of {', '.join(DTYPES)}"
        )
    return kind


def _array_of(kind: _Type, tensor: Tensor) -> Array:
    """The memory of a tensor; no copy if it is dense and on the CPU."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    return (tensor if kind.view is None else tensor.view(kind.view)).numpy()


def _tensor_of(kind: _Type, array: Array) -> Tensor:
    """A tensor over memory of its own (a bytearray, which the allocator aligns to 16 bytes)."""
    tensor = torch.from_numpy(array)
    if kind.view is None:
        return tensor
    if kind.dtype is torch.bool:  # bytes other than 0 and 1 would be no bool at all
        return tensor.ne(0)
    return tensor.view(kind.dtype)
