"""Message ↔ frames. Knows no socket and no edge: bytes in, a header or a `Rejected` out.

    kind        frame 0: header, in short          frames 1…: one per tensor, the bulk last
    hello       window, schema, heard              –
    activation  id, version, owes                  inputs  |  labels, inputs
    target      id, version                        embedding  |  gradient, embedding
    gradient    id, version (= of_version)         gradient
    bye         –                                  –
    bye-ack     –                                  –

Frame 0 is a crc32 of its rest (4 bytes, little-endian), then `Header` as a msgpack array, which holds a plain
sum of the words of every other frame: sixteen times as fast as a crc, and no changed byte escapes it.
Laws: nothing that comes in can raise. Nothing is allocated before every check is passed: a claim of 2⁶⁰
elements costs one multiplication of Python ints. A tensor that is read owns aligned memory of its own and is
equal bit for bit; a tensor that is sent is referred to, not copied, so nobody may write into it any more.
Nothing is ever pickled or evaluated.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from mach.messages import Activation, Gradient, Message, Target

SCHEMA = 1
"""Number of this wire format, agreed in HELLO."""
HEADER_CAP = 4096
"""A longer frame 0 is refused unread, bytes."""
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
"""All that may travel."""
CARRIERS: Mapping[torch.dtype, torch.dtype] = {torch.bfloat16: torch.int16, torch.bool: torch.uint8} | {
    dtype: torch.uint8 for name, dtype in DTYPES.items() if name.startswith("float8")
}
"""As what numpy, which is the cheapest way in and out, sees those that it has no word for."""

Frame = bytes | memoryview
Frames = Sequence[Frame]


class Kind(StrEnum):
    """What a header announces."""

    HELLO = "hello"
    ACTIVATION = "activation"
    TARGET = "target"
    GRADIENT = "gradient"
    BYE = "bye"
    BYE_ACK = "bye-ack"


TENSORS: Mapping[str, tuple[int, ...]] = {
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

    FRAMES = "bad-frames"  # none, too many, or another number than the header announces
    HEADER_SIZE = "bad-header-size"  # frame 0 is too short or too long
    CHECKSUM = "bad-checksum"  # bytes changed on the way
    HEADER = "bad-header"  # not the msgpack array that it should be
    KIND = "bad-kind"  # no kind of ours
    RUN = "other-run"  # of another run
    SENDER = "bad-sender"  # no neighbour, or another one than the connection belongs to
    SCHEMA = "other-schema"  # a HELLO of another wire format
    DTYPE = "bad-dtype"  # not on the whitelist
    NDIM = "bad-ndim"  # more than NDIM_CAP dimensions
    SIZE = "bad-size"  # shape times item size is not the length of the frame


@dataclass(frozen=True, slots=True)
class Rejected:
    """A value, not an exception: frames that are dropped and counted."""

    reason: Reason


Natural = Annotated[int, Meta(ge=0, le=(1 << 62))]
Name = Annotated[str, Meta(max_length=64)]


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Frame 0. Fields that a kind does not use are 0."""

    kind: Name
    run: Name
    sender: Name
    incarnation: Natural
    """Of the sender: how often it was started. 1 at first."""
    sequence: Natural
    """Of this frame on this edge, counted by the sender from 1 up."""
    id: Natural = 0
    version: Natural = 0
    """As the message says; of a hello, 0."""
    owes: bool = False
    window: Natural = 0
    """Of a parent's hello: W."""
    schema: Natural = 0
    heard: Natural = 0
    """Of a hello: incarnation of the receiver that the sender has heard a hello of, 0 if none."""
    tensors: tuple[tuple[Name, tuple[Natural, ...], int], ...] = ()
    """(dtype, shape, sum of the bytes as 64-bit words) of every frame that follows."""


class Stamp(NamedTuple):
    """What the sender adds to a message."""

    run: str
    sender: str
    incarnation: int
    sequence: int


_add = np.add.reduce
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Header).decode
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FRAMES_CAP = 1 + max(max(counts) for counts in TENSORS.values())


def encode(message: Message, stamp: Stamp) -> list[Frame]:
    """The frames of a message; tensors on other devices are copied to the CPU, others are referred to.

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
    names = [_dtype_name(tensor) for tensor in tensors]
    payload = [_bytes_of(tensor) for tensor in tensors]
    what = tuple(
        (name, tuple(tensor.shape), _sum(frame)) for name, tensor, frame in zip(names, tensors, payload, strict=True)
    )
    return [_sealed(Header(kind, *stamp, id=of, version=version, owes=owes, tensors=what)), *payload]


def encode_control(kind: Kind, stamp: Stamp, *, window: int = 0, heard: int = 0) -> list[Frame]:
    """The frames of a hello, bye or bye-ack."""
    schema = SCHEMA if kind == Kind.HELLO else 0
    return [_sealed(Header(kind, *stamp, window=window, schema=schema, heard=heard))]


def inspect(frames: Frames, run: str) -> Header | Rejected:
    """Every check that needs no knowledge of the edge; allocates nothing but the header."""
    if not 1 <= len(frames) <= _FRAMES_CAP:
        return Rejected(Reason.FRAMES)
    if not 4 < len(frames[0]) <= HEADER_CAP:
        return Rejected(Reason.HEADER_SIZE)
    packed = memoryview(frames[0])[4:]
    if zlib.crc32(packed) != int.from_bytes(frames[0][:4], "little"):
        return Rejected(Reason.CHECKSUM)
    try:
        header = _decode(packed)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return Rejected(Reason.HEADER)
    return _flaw(header, frames, run) or header


def message_of(header: Header, frames: Frames) -> Message:
    """The message of an inspected header. Copies every tensor out of its frame.

    Raises:
        ValueError: a header of a kind that is no message: the caller's mistake.
    """
    tensors = [_tensor_of(name, shape, frame) for (name, shape, _), frame in _described(header, frames)]
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


def _flaw(header: Header, frames: Frames, run: str) -> Rejected | None:
    """What is wrong with a header, if anything."""
    if header.kind not in TENSORS:
        return Rejected(Reason.KIND)
    if header.run != run:
        return Rejected(Reason.RUN)
    if header.kind == Kind.HELLO and header.schema != SCHEMA:
        return Rejected(Reason.SCHEMA)
    if len(header.tensors) != len(frames) - 1 or len(header.tensors) not in TENSORS[header.kind]:
        return Rejected(Reason.FRAMES)
    for (name, shape, total), frame in _described(header, frames):
        reason = _tensor_flaw(name, shape, len(frame))
        if reason is not None:
            return Rejected(reason)
        if _sum(frame) != total:
            return Rejected(Reason.CHECKSUM)
    return None


def _tensor_flaw(name: str, shape: tuple[int, ...], length: int) -> Reason | None:
    dtype = DTYPES.get(name)
    if dtype is None:
        return Reason.DTYPE
    if len(shape) > NDIM_CAP:
        return Reason.NDIM
    if math.prod(shape) * dtype.itemsize != length:
        return Reason.SIZE
    if length == 0 and math.prod(max(size, 1) for size in shape) * dtype.itemsize > SPAN_CAP:
        return Reason.SIZE
    return None


def _described(header: Header, frames: Frames) -> Iterator[tuple[tuple[str, tuple[int, ...], int], Frame]]:
    return zip(header.tensors, frames[1:], strict=True)


def _sealed(header: Header) -> bytes:
    packed = _encode(header)
    return zlib.crc32(packed).to_bytes(4, "little") + packed


def _sum(frame: Frame) -> int:
    """Of 64-bit words, modulo 2⁶⁴, the last one filled up with zeros."""
    whole = len(frame) & ~7
    total = int(_add(np.frombuffer(frame, np.uint64, whole >> 3))) if whole else 0
    return (total + int.from_bytes(frame[whole:], "little")) & 0xFFFF_FFFF_FFFF_FFFF


def _dtype_name(tensor: Tensor) -> str:
    name = _NAMES.get(tensor.dtype)
    if name is None or tensor.dim() > NDIM_CAP:
        raise ValueError(
            f"a tensor of {tensor.dtype} with shape {tuple(tensor.shape)} cannot travel; "
            f"send at most {NDIM_CAP} dimensions of {', '.join(DTYPES)}"
        )
    return name


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a tensor; no copy if it is dense and on the CPU."""
    if tensor.numel() == 0:
        return memoryview(b"")
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    if tensor.dtype in CARRIERS:
        tensor = tensor.view(CARRIERS[tensor.dtype])
    return tensor.numpy().data.cast("B")


def _tensor_of(name: str, shape: tuple[int, ...], frame: Frame) -> Tensor:
    """A tensor in memory of its own (a bytearray, which the allocator aligns to 16 bytes)."""
    dtype = DTYPES[name]
    carrier = CARRIERS.get(dtype, dtype)
    tensor = torch.from_numpy(np.ndarray(shape, str(carrier).removeprefix("torch."), bytearray(frame)))
    if dtype is torch.bool:  # bytes other than 0 and 1 would be no bool at all
        return tensor.ne(0)
    return tensor if carrier is dtype else tensor.view(dtype)
