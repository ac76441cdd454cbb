"""Tensor ↔ bytes: which dtypes may travel, how many bytes they take, and the on-wire codecs.

    codec   of float32, float64      bytes an element   error of an element x
    none    all dtypes               its own            none, bit for bit
    bf16    rounded to bfloat16      2                  ≤ |x| · 2⁻⁸, so a relative 0.2 % on average
    fp16    rounded to float16       2                  ≤ |x| · 2⁻¹¹, or 2⁻²⁵ near 0; beyond 65,504 it becomes 65,504
    int8    row by row, symmetric    1, and 4 a row     ≤ (largest |x| of the row) ÷ 253

A row is what the last dimension spans. The receiver gets the sender's dtype back. A tensor of another dtype travels
as it is, whatever the codec. What is not finite stays not finite with every codec: the receiver decides about it.
Knows no frame and no message. Nothing is allocated by `length`; `unpack` writes into nothing and copies only to decode.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
FP16_CAP = torch.finfo(torch.float16).max

Array = npt.NDArray[Any]


class Codec(StrEnum):
    """How the elements of a tensor are written, by its place in this list."""

    NONE = "none"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


CODECS = tuple(Codec)
CODED = frozenset((torch.float32, torch.float64))
"""What a codec applies to."""
_HALVES = {Codec.BF16: torch.bfloat16, Codec.FP16: torch.float16}


class Described(NamedTuple):
    """What is said of a tensor."""

    dtype: int
    """Place in DTYPES."""
    shape: tuple[int, ...]
    codec: int = 0
    """Place in CODECS."""


class _Type(NamedTuple):
    """How tensors of one dtype go in and out of bytes."""

    code: int
    dtype: torch.dtype
    size: int
    carrier: np.dtype[Any]
    view: torch.dtype | None  # the carrier, where it is another dtype


TYPES = tuple(
    _Type(
        code,
        dtype,
        dtype.itemsize,
        np.dtype(str(CARRIERS.get(dtype, dtype)).removeprefix("torch.")),
        CARRIERS.get(dtype),
    )
    for code, dtype in enumerate(DTYPES.values())
)
_TYPE_OF = {each.dtype: each for each in TYPES}


def describe(dtype: torch.dtype, shape: torch.Size, codec: Codec) -> Described:
    """What to say of a tensor of this dtype and shape that is to travel.

    Raises:
        ValueError: the dtype may not travel, or it has too many dimensions: the caller's mistake.
    """
    kind = _TYPE_OF.get(dtype)
    if kind is None or len(shape) > NDIM_CAP:
        raise ValueError(
            f"a tensor of {dtype} with shape {tuple(shape)} cannot travel; "
            f"send at most {NDIM_CAP} dimensions of {', '.join(DTYPES)}"
        )
    coded = codec is not Codec.NONE and kind.dtype in CODED and shape.numel() > 0
    return Described(kind.code, tuple(shape), CODECS.index(codec) if coded else 0)


def length(described: Described) -> int | None:
    """Bytes that a described tensor takes; None if it may not be. Codes and the number of dimensions are valid."""
    shape, kind = described.shape, TYPES[described.dtype]
    count = math.prod(shape)
    if count == 0 and math.prod([max(size, 1) for size in shape]) * kind.size > SPAN_CAP:
        return None
    if described.codec == 0:
        return count * kind.size
    if kind.dtype not in CODED or count == 0:
        return None
    return count * 2 if CODECS[described.codec] in _HALVES else count + 4 * math.prod(shape[:-1])


def pack(tensor: Tensor, described: Described) -> Array:
    """The bytes of a tensor as an array; without a copy if it is dense, on the CPU, and not coded."""
    kind = TYPES[described.dtype]
    if not described.codec and kind.view is None and tensor.is_contiguous():
        try:  # rather than ask more: every question to torch costs a microsecond where code is cold
            return tensor.numpy()
        except (TypeError, RuntimeError):  # it lies on another device, or needs a gradient
            return tensor.detach().cpu().numpy()
    tensor = tensor.detach()
    if described.codec:  # before it leaves its device: there is less to copy
        tensor = _coded(tensor, CODECS[described.codec])
        kind = _TYPE_OF[tensor.dtype]
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    return (tensor if kind.view is None else tensor.view(kind.view)).numpy()


def unpack(described: Described, memory: Any, at: int) -> Tensor:
    """The tensor that lies at byte `at` of writable memory, which it keeps alive. It was `length` bytes long."""
    kind = TYPES[described.dtype]
    if not described.codec:
        tensor = torch.from_numpy(np.ndarray(described.shape, kind.carrier, memory, at))
        return tensor if kind.view is None else _viewed(kind, tensor)
    codec = CODECS[described.codec]
    if codec is Codec.INT8:
        rows = math.prod(described.shape[:-1])
        scales = torch.from_numpy(np.ndarray((rows, 1), np.float32, memory, at))
        count = math.prod(described.shape)
        levels = torch.from_numpy(np.ndarray((rows, count // rows), np.int8, memory, at + 4 * rows))
        return (levels.to(kind.dtype) * scales).reshape(described.shape)
    half = _TYPE_OF[_HALVES[codec]]
    halves = torch.from_numpy(np.ndarray(described.shape, half.carrier, memory, at))
    return (halves if half.view is None else _viewed(half, halves)).to(kind.dtype)


def _viewed(kind: _Type, carrier: Tensor) -> Tensor:
    if kind.dtype is torch.bool:  # bytes other than 0 and 1 would be no bool at all
        return carrier.ne(0)
    return carrier.view(kind.dtype)


def _coded(tensor: Tensor, codec: Codec) -> Tensor:
    """The elements as they travel: [...] of half precision, or bytes: the rows' scales (float32), then int8."""
    if codec is Codec.BF16:
        return tensor.to(torch.bfloat16)
    if codec is Codec.FP16:
        half = tensor.to(torch.float16)
        return torch.where(half.isinf() & tensor.isfinite(), torch.sign(tensor).to(half.dtype) * FP16_CAP, half)
    rows = tensor.reshape(math.prod(tensor.shape[:-1]), -1)
    scales = (rows.abs().amax(dim=1, keepdim=True) / 127).to(torch.float32)
    levels = (rows / torch.where(scales > 0, scales, 1)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat((scales.view(torch.uint8).reshape(-1), levels.view(torch.uint8).reshape(-1)))
