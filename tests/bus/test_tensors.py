"""The codecs: what a tensor becomes on the wire, and how far it may be off afterwards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import wire
from bus.memory import Pool
from bus.tensors import CODECS, Codec, Described, describe, length, pack, unpack
from bus.wire import Form, Header, Stamp
from mach.messages import Activation, Gradient, Target

STAMP = Stamp("run", "c0", 1, 1)
HALF = {"bf16": (2.0**-8, 0.0), "fp16": (2.0**-11, 2.0**-25)}
"""Largest error of an element: relative, absolute."""

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


def through(tensor: torch.Tensor, codec: str) -> torch.Tensor:
    described = describe(tensor.dtype, tensor.shape, Codec(codec))
    data = pack(tensor, described).tobytes()
    assert len(data) == length(described)
    return unpack(described, bytearray(data), 0)


def normal(shape: tuple[int, ...], seed: int, scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@given(shapes, st.integers(0, 2**31), st.sampled_from([1e-30, 1e-6, 1.0, 1e3]), st.sampled_from(sorted(HALF)))
@settings(max_examples=100, deadline=None)
def test_halves_are_as_near_as_the_table_says(shape: tuple[int, ...], seed: int, scale: float, codec: str) -> None:
    sent = normal(shape, seed, scale)
    got = through(sent, codec)
    relative, absolute = HALF[codec]
    assert got.dtype == sent.dtype
    assert got.shape == sent.shape
    assert torch.all((got - sent).abs() <= relative * sent.abs() + absolute)


@given(shapes, st.integers(0, 2**31), st.sampled_from([1e-30, 1.0, 1e30]), st.sampled_from(["float32", "float64"]))
@settings(max_examples=100, deadline=None)
def test_int8_is_as_near_as_the_largest_of_the_row_allows(
    shape: tuple[int, ...], seed: int, scale: float, dtype: str
) -> None:
    sent = normal(shape, seed, scale, getattr(torch, dtype))
    got = through(sent, "int8")
    assert got.dtype == sent.dtype
    assert got.shape == sent.shape
    largest = sent.abs().amax(dim=-1, keepdim=True) if shape else sent.abs()
    assert torch.all((got - sent).abs() <= largest / 253)


@pytest.mark.parametrize("codec", ["bf16", "fp16", "int8"])
def test_typical_errors(codec: str) -> None:
    """Root mean square of the relative error, as measured for the table's readers: within a tenth."""
    sent = normal((256, 64), 0, 1.0)
    error = float((through(sent, codec) - sent).norm() / sent.norm())
    assert error == pytest.approx({"bf16": 0.00166, "fp16": 0.00021, "int8": 0.0062}[codec], rel=0.15)


@pytest.mark.parametrize("codec", ["none", "bf16", "fp16", "int8"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(codec: str, value: float) -> None:
    sent = torch.tensor([[1.0, value], [3.0, 4.0]])
    got = through(sent, codec)
    assert not got[0].isfinite().all()
    assert got[1].isfinite().all()


def test_fp16_ends_at_its_largest_number() -> None:
    assert through(torch.tensor([1e6, -1e38, 65519.0]), "fp16").tolist() == [65504.0, -65504.0, 65504.0]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "tensor", [torch.arange(6), torch.tensor([True]), torch.ones(3, dtype=torch.bfloat16), torch.empty(0, 4)]
)
def test_other_dtypes_and_empty_tensors_travel_as_they_are(codec: Codec, tensor: torch.Tensor) -> None:
    assert describe(tensor.dtype, tensor.shape, codec).codec == 0
    assert torch.equal(through(tensor, codec), tensor)


def test_a_codec_of_what_is_not_coded_may_not_be() -> None:
    assert length(Described(describe(torch.int64, torch.Size([6]), Codec.NONE).dtype, (6,), 1)) is None
    assert length(Described(describe(torch.float32, torch.Size([1]), Codec.NONE).dtype, (0,), 3)) is None


@pytest.mark.parametrize("rows", [4, 400])
def test_every_kind_has_its_codec(rows: int) -> None:
    form, x = Form(Codec.INT8, Codec.FP16, Codec.BF16), normal((rows, 100), 1, 1.0)
    sizes = []
    for message in (Activation(0, 0, x), Target(0, 0, x), Gradient(0, 0, x)):
        frames = [bytes(frame) for frame in wire.encode(message, STAMP, form)]
        header = wire.inspect(frames, "run")
        assert isinstance(header, Header)
        assert isinstance(wire.message_of(header, frames, Pool()), type(message))
        sizes.append(CODECS[header.preamble.tensors[0][1].codec])
    assert sizes == [Codec.INT8, Codec.FP16, Codec.BF16]
