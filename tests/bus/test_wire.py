"""Frames in any shape become a header or a `Rejected`, never an exception; messages survive bit for bit."""

import math
import struct
import zlib

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import wire
from bus.wire import DTYPES, Frame, Header, Kind, Reason, Rejected, Stamp
from mach.messages import Activation, Gradient, Message, Target

RUN = "0123456789abcdef"
STAMP = Stamp(RUN, "c0", 1, 1)
MANY = settings(max_examples=1000, deadline=None)
SOME = settings(max_examples=300, deadline=None)

names = st.sampled_from(sorted(DTYPES))
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bit pattern, NaNs included; a bool is 0 or 1."""
    dtype = DTYPES[name]
    rng = torch.Generator().manual_seed(seed)
    size = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8, generator=rng)
    return raw.view(dtype).view(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def arrived(frames: list[Frame]) -> tuple[Header, list[bytes]]:
    """What the receiver holds: read-only bytes, and their header."""
    received = [bytes(frame) for frame in frames]
    header = wire.inspect(received, RUN)
    assert isinstance(header, Header), header
    return header, received


def read(message: Message) -> Message:
    return wire.message_of(*arrived(wire.encode(message, STAMP)))


def sealed(fields: object) -> bytes:
    packed = msgspec.msgpack.encode(fields)
    return zlib.crc32(packed).to_bytes(4, "little") + packed


def refused(frames: list[Frame]) -> Reason:
    verdict = wire.inspect(frames, RUN)
    assert isinstance(verdict, Rejected), verdict
    return verdict.reason


def header_with(**changes: object) -> bytes:
    """The sealed header of an activation of 6 float32 zeros, with changes."""
    fields = {"kind": "activation", "run": RUN, "sender": "c0", "incarnation": 1, "sequence": 1}
    fields |= {"id": 3, "version": 4, "owes": True, "window": 0, "schema": 0, "heard": 0}
    fields |= {"tensors": [["float32", [2, 3], 0]]}
    return sealed(list((fields | changes).values()))


@given(names, shapes, st.integers(0, 2**31))
@MANY
def test_tensors_survive_bit_for_bit_and_own_their_memory(name: str, shape: tuple[int, ...], seed: int) -> None:
    sent = random_tensor(name, shape, seed)
    header, frames = arrived(wire.encode(Gradient(7, 9, sent), STAMP))
    got = wire.message_of(header, frames)
    assert isinstance(got, Gradient)
    assert (got.id, got.of_version) == (7, 9)
    assert got.gradient.dtype == sent.dtype
    assert got.gradient.shape == sent.shape
    assert bits(got.gradient) == bits(sent)
    assert got.gradient.data_ptr() % max(sent.dtype.itemsize, 1) == 0
    got.gradient.zero_()  # writable, and not the frame's
    assert frames == [bytes(frame) for frame in wire.encode(Gradient(7, 9, sent), STAMP)]


@given(st.lists(st.binary(max_size=200), max_size=6))
@MANY
def test_arbitrary_bytes_are_refused(frames: list[Frame]) -> None:
    assert isinstance(wire.inspect(frames, RUN), Rejected)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)


@given(json_like, st.lists(st.binary(max_size=40), max_size=3))
@SOME
def test_arbitrary_sealed_headers_are_refused_or_read(fields: object, payload: list[bytes]) -> None:
    assert isinstance(wire.inspect([sealed(fields), *payload], RUN), Rejected)


descriptors = st.tuples(
    names | st.text(max_size=6), st.lists(st.integers(0, 2**62), max_size=10), st.integers(-5, 2**64 - 1)
)


@given(
    st.sampled_from([*Kind, "poem"]),
    st.lists(descriptors, max_size=3),
    st.lists(st.binary(max_size=64), max_size=3),
    st.integers(-1, 2**63),
)
@SOME
def test_nearly_right_headers_never_raise(kind: str, tensors: object, payload: list[bytes], number: int) -> None:
    frames: list[Frame] = [header_with(kind=kind, tensors=tensors, id=number), *payload]
    header = wire.inspect(frames, RUN)
    if isinstance(header, Header) and payload:
        assert isinstance(wire.message_of(header, frames), Message)


@given(st.integers(0, 2**31), st.data())
@SOME
def test_one_changed_byte_anywhere_is_noticed(seed: int, data: st.DataObject) -> None:
    frames = [bytes(f) for f in wire.encode(Target(1, 2, random_tensor("float32", (3, 5), seed)), STAMP)]
    which = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, len(frames[which]) - 1))
    spoiled = bytearray(frames[which])
    spoiled[at] ^= data.draw(st.integers(1, 255))
    frames[which] = bytes(spoiled)
    assert refused(list(frames)) == Reason.CHECKSUM


def test_messages_keep_every_field() -> None:
    inputs, labels = torch.randn(4, 3), torch.arange(4)
    asked = read(Activation(5, 6, inputs, labels, owes=False))
    assert isinstance(asked, Activation)
    assert (asked.id, asked.version, asked.owes) == (5, 6, False)
    assert torch.equal(asked.inputs, inputs)
    assert asked.labels is not None
    assert torch.equal(asked.labels, labels)
    target = read(Target(5, 8, inputs, labels))
    assert isinstance(target, Target)
    assert target.gradient is not None
    assert torch.equal(target.embedding, inputs)
    assert torch.equal(target.gradient, labels)
    plain = read(Activation(0, 0, inputs))
    assert isinstance(plain, Activation)
    assert plain.labels is None
    assert plain.owes


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(6, 4).t(),
        torch.randn(6, 4)[::2, 1:],
        torch.randn(3, 4, requires_grad=True),
        torch.tensor(3.5),
        torch.randn(1).expand(4, 2),
        torch.empty(0, 7, 3),
    ],
    ids=["transposed", "strided", "grad", "scalar", "expanded", "empty"],
)
def test_tensors_of_every_layout_travel(tensor: torch.Tensor) -> None:
    got = read(Target(0, 0, tensor))
    assert isinstance(got, Target)
    assert torch.equal(got.embedding, tensor)
    assert not got.embedding.requires_grad


def test_tensors_that_may_not_travel_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="cannot travel"):
        wire.encode(Gradient(0, 0, torch.zeros(2, dtype=torch.complex64)), STAMP)
    with pytest.raises(ValueError, match="cannot travel"):
        wire.encode(Gradient(0, 0, torch.zeros((1,) * 9)), STAMP)


def test_large_tensors_are_sent_without_a_copy() -> None:
    tensor = torch.zeros(64, 1024)
    frame = wire.encode(Gradient(0, 0, tensor), STAMP)[-1]
    tensor[0, 0] = 1.0
    assert struct.unpack("f", frame[:4]) == (1.0,)


PAYLOAD = bytes(24)


@pytest.mark.parametrize(
    ("reason", "frames"),
    [
        (Reason.FRAMES, []),
        (Reason.FRAMES, [header_with(), PAYLOAD, PAYLOAD, PAYLOAD]),
        (Reason.FRAMES, [header_with()]),
        (Reason.FRAMES, [header_with(kind="bye"), PAYLOAD]),
        (Reason.FRAMES, [header_with(tensors=[])]),
        (Reason.HEADER_SIZE, [b""]),
        (Reason.HEADER_SIZE, [bytes(wire.HEADER_CAP + 1), PAYLOAD]),
        (Reason.CHECKSUM, [b"\0\0\0\0" + header_with()[4:], PAYLOAD]),
        (Reason.CHECKSUM, [header_with(), b"\1" + PAYLOAD[1:]]),
        (Reason.HEADER, [sealed({"kind": "activation"}), PAYLOAD]),
        (Reason.HEADER, [header_with(sequence=-1), PAYLOAD]),
        (Reason.HEADER, [header_with(run="x" * 65), PAYLOAD]),
        (Reason.HEADER, [header_with(extra=1), PAYLOAD]),
        (Reason.KIND, [header_with(kind="poem"), PAYLOAD]),
        (Reason.RUN, [header_with(run="fedcba9876543210"), PAYLOAD]),
        (Reason.SCHEMA, [header_with(kind="hello", schema=wire.SCHEMA + 1, tensors=[])]),
        (Reason.DTYPE, [header_with(tensors=[["complex64", [3], 0]]), PAYLOAD]),
        (Reason.NDIM, [header_with(tensors=[["float32", [1] * 8 + [6], 0]]), PAYLOAD]),
        (Reason.SIZE, [header_with(), PAYLOAD[1:]]),
        (Reason.SIZE, [header_with(tensors=[["float32", [2**60], 0]]), PAYLOAD]),
        (Reason.SIZE, [header_with(tensors=[["float32", [2**62] * 8, 0]]), PAYLOAD]),
        (Reason.SIZE, [header_with(tensors=[["float32", [0, 2**62, 2**62], 0]]), b""]),
    ],
)
def test_every_flaw_has_its_reason(reason: Reason, frames: list[Frame]) -> None:
    assert refused(frames) == reason


def test_the_unchanged_header_is_read() -> None:
    frames: list[Frame] = [header_with(), PAYLOAD]
    header = wire.inspect(frames, RUN)
    assert isinstance(header, Header)
    message = wire.message_of(header, frames)
    assert isinstance(message, Activation)
    assert torch.equal(message.inputs, torch.zeros(2, 3))


def test_every_reason_but_the_mailboxes_own_is_covered() -> None:
    marks = test_every_flaw_has_its_reason.pytestmark  # type: ignore[attr-defined]
    assert {reason for reason, _ in marks[0].args[1]} == set(Reason) - {Reason.SENDER}


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.BYE, Kind.BYE_ACK])
def test_control_frames_carry_no_message(kind: Kind) -> None:
    header, frames = arrived(wire.encode_control(kind, STAMP, window=3, heard=2))
    assert (header.kind, header.window, header.heard) == (kind, 3, 2)
    assert header.schema == (wire.SCHEMA if kind is Kind.HELLO else 0)
    with pytest.raises(ValueError, match="no message"):
        wire.message_of(header, frames)
