"""Frames in any shape become a header or a `Rejected`, never an exception; messages survive bit for bit."""

import math
import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import wire
from bus.memory import Pool
from bus.tensors import DTYPES
from bus.wire import Form, Frame, Header, Kind, Reason, Rejected, Stamp
from mach.messages import Activation, Gradient, Message, Target

RUN = "0123456789abcdef"
STAMP = Stamp(RUN, "c0", 1, 1)
SOME = settings(max_examples=200, deadline=None)

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


def opened(header: Header, frames: list[Frame] | list[bytes]) -> Message:
    message = wire.message_of(header, frames, Pool())
    assert not isinstance(message, Rejected), message
    return message


def read(message: Message) -> Message:
    return opened(*arrived(wire.encode(message, STAMP)))


def refused(frames: list[Frame]) -> Reason:
    verdict = wire.inspect(frames, RUN)
    assert isinstance(verdict, Rejected), verdict
    return verdict.reason


def frame_with(
    shape: tuple[int, ...] = (2, 3),
    *,
    kind: int = 1,
    schema: int = 0,
    owes: int = 1,
    mask: int = 1,
    run: int | None = None,
    dtype: int = 1,
    ndim: int | None = None,
    codec: int = 0,
    payload: bytes = b"",
) -> bytes:
    """Frame 0 of an activation of float32 zeros, with changes, and a true checksum."""
    of_run = wire.tag(RUN) if run is None else run
    head = struct.pack("<3Q 4B I Q Q I I", 1, 3, 4, kind, schema, owes, mask, 0, of_run, wire.tag("c0"), 1, 0)
    sizes = [*shape, *[0] * 8][:8]
    described = struct.pack("<3B 5x 8Q", dtype, len(shape) if ndim is None else ndim, codec, *sizes) * mask.bit_count()
    return struct.pack("<4s I", b"MACH", zlib.crc32(head + described)) + head + described + payload


@given(names, shapes, st.integers(0, 2**31))
@SOME
def test_tensors_survive_bit_for_bit_and_own_their_memory(name: str, shape: tuple[int, ...], seed: int) -> None:
    sent = random_tensor(name, shape, seed)
    header, frames = arrived(wire.encode(Gradient(7, 9, sent), STAMP))
    got = opened(header, frames)
    assert isinstance(got, Gradient)
    assert (got.id, got.of_version) == (7, 9)
    assert got.gradient.dtype == sent.dtype
    assert got.gradient.shape == sent.shape
    assert bits(got.gradient) == bits(sent)
    assert got.gradient.data_ptr() % max(sent.dtype.itemsize, 1) == 0
    got.gradient.zero_()  # writable, and not the frame's
    assert frames == [bytes(frame) for frame in wire.encode(Gradient(7, 9, sent), STAMP)]


NIGHTLY = settings(max_examples=50_000, deadline=None)
FRAMES = st.lists(st.binary(max_size=200), max_size=6)
HEADS = st.tuples(
    st.integers(0, 7),
    st.integers(0, 4) | st.integers(0, 255),
    st.integers(0, 3),
    st.integers(0, 18),
    st.integers(0, 4),
    st.integers(0, 10),
    st.lists(st.integers(0, 4) | st.integers(0, 2**64 - 1), max_size=8).map(tuple),
    st.binary(max_size=64),
    st.lists(st.binary(max_size=64), max_size=3),
)
"""kind, flags, mask of tensors, dtype, codec, dimensions, sizes; what follows in frame 0, and frames of its own."""
Head = tuple[int, int, int, int, int, int, tuple[int, ...], bytes, list[bytes]]


def refuse(frames: list[Frame]) -> None:
    assert isinstance(wire.inspect(frames, RUN), Rejected)


def read_or_refuse(head: Head) -> None:
    kind, flags, mask, dtype, codec, ndim, shape, inline, apart = head
    first = frame_with(shape, kind=kind, owes=flags, mask=mask, dtype=dtype, ndim=ndim, codec=codec, payload=inline)
    frames: list[Frame] = [first, *apart]
    header = wire.inspect(frames, RUN)
    if isinstance(header, Header) and mask:
        assert isinstance(wire.message_of(header, frames, Pool()), Message | Rejected)


@given(FRAMES)
@SOME
def test_arbitrary_bytes_are_refused(frames: list[Frame]) -> None:
    refuse(frames)


@given(HEADS)
@SOME
def test_nearly_right_heads_never_raise(head: Head) -> None:
    read_or_refuse(head)


@pytest.mark.nightly
@given(FRAMES)
@NIGHTLY
def test_arbitrary_bytes_are_refused_all_night(frames: list[Frame]) -> None:
    refuse(frames)


@pytest.mark.nightly
@given(HEADS)
@NIGHTLY
def test_nearly_right_heads_never_raise_all_night(head: Head) -> None:
    read_or_refuse(head)


@given(st.binary(min_size=1, max_size=200))
@SOME
def test_a_true_checksum_of_nonsense_is_refused_or_read(head: bytes) -> None:
    head += bytes(-len(head) % 8)
    frame = struct.pack("<4s I", b"MACH", zlib.crc32(head)) + head
    assert isinstance(wire.inspect([frame], RUN), Rejected)


@given(st.integers(0, 2**31), st.data())
@SOME
def test_one_changed_byte_of_the_head_is_noticed(seed: int, data: st.DataObject) -> None:
    (frame,) = wire.encode(Target(1, 2, random_tensor("float32", (3, 5), seed)), STAMP)
    changed = bytearray(frame)
    at = data.draw(st.integers(0, len(frame) - 65))  # 3 × 5 × 4 bytes of numbers, filled up to 64
    changed[at] ^= data.draw(st.integers(1, 255))
    assert refused([bytes(changed)]) == (Reason.HEAD if at < 4 else Reason.CHECKSUM)


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
    first, frame = wire.encode(Target(0, 0, tensor), STAMP)
    tensor[0, 0] = 1.0
    assert struct.unpack("f", frame[:4]) == (1.0,)
    target = opened(*arrived([first, frame]))
    assert isinstance(target, Target)
    assert torch.equal(target.embedding, tensor)


@pytest.mark.parametrize("rows", [1, 64, 65])
def test_two_tensors_travel_in_one_frame_or_in_frames_of_their_own(rows: int) -> None:
    """Labels of 1-byte items before the inputs: whatever follows them is aligned."""
    inputs, labels = torch.randn(rows, 255), torch.arange(rows, dtype=torch.uint8)
    frames = wire.encode(Activation(0, 0, inputs, labels), STAMP)
    assert len(frames) == (3 if rows == 65 else 1)
    asked = opened(*arrived(frames))
    assert isinstance(asked, Activation)
    assert asked.labels is not None
    assert torch.equal(asked.inputs, inputs)
    assert torch.equal(asked.labels, labels)


def test_empty_tensors_keep_sizes_beyond_32_bits() -> None:
    empty = torch.empty(0, 2**33, dtype=torch.uint8)
    got = read(Gradient(0, 0, empty))
    assert isinstance(got, Gradient)
    assert got.gradient.shape == empty.shape


ZEROS = bytes(24)
HELLO, GRADIENT, BYE = 0, 3, 4


@pytest.mark.parametrize(
    ("reason", "frames"),
    [
        (Reason.FRAMES, []),
        (Reason.FRAMES, [frame_with(), ZEROS, ZEROS, ZEROS]),
        (Reason.FRAMES, [frame_with(), ZEROS, ZEROS]),
        (Reason.FRAMES, [frame_with(kind=BYE, mask=0, owes=0), ZEROS]),
        (Reason.HEAD_SIZE, [b""]),
        (Reason.HEAD_SIZE, [frame_with()[:16]]),
        (Reason.HEAD_SIZE, [frame_with(payload=ZEROS[1:])]),
        (Reason.HEAD_SIZE, [frame_with(payload=bytes(wire.INLINE_CAP + 4096))]),
        (Reason.CHECKSUM, [b"MACH\0\0\0\0" + frame_with(payload=ZEROS)[8:]]),
        (Reason.CHECKSUM, [frame_with()[:-8], ZEROS]),
        (Reason.HEAD, [b"JSON" + frame_with(payload=ZEROS)[4:]]),
        (Reason.HEAD, [frame_with(kind=6, payload=ZEROS)]),
        (Reason.HEAD, [frame_with(kind=2, owes=4, payload=ZEROS)]),
        (Reason.HEAD, [frame_with(kind=GRADIENT, owes=1, payload=ZEROS)]),
        (Reason.HEAD, [frame_with(mask=0)]),
        (Reason.HEAD, [frame_with(mask=2, payload=ZEROS)]),
        (Reason.HEAD, [frame_with(kind=GRADIENT, mask=3, payload=2 * ZEROS)]),
        (Reason.RUN, [frame_with(run=wire.tag("fedcba9876543210"), payload=ZEROS)]),
        (Reason.SCHEMA, [frame_with(kind=HELLO, schema=wire.SCHEMA + 1, mask=0, owes=0)]),
        (Reason.SCHEMA, [frame_with(schema=wire.SCHEMA, payload=ZEROS)]),
        (Reason.DTYPE, [frame_with(dtype=len(DTYPES), payload=ZEROS)]),
        (Reason.DTYPE, [frame_with(codec=4, payload=ZEROS)]),
        (Reason.SIZE, [frame_with(codec=3, payload=ZEROS)]),
        (Reason.SIZE, [frame_with((0, 2), codec=1)]),
        (Reason.NDIM, [frame_with((1,) * 8, ndim=9, payload=ZEROS)]),
        (Reason.SIZE, [frame_with(payload=ZEROS[8:])]),
        (Reason.SIZE, [frame_with(payload=ZEROS + bytes(8))]),
        (Reason.SIZE, [frame_with(), ZEROS[1:]]),
        (Reason.SIZE, [frame_with(payload=ZEROS), ZEROS]),
        (Reason.SIZE, [frame_with((2**60,), payload=ZEROS)]),
        (Reason.SIZE, [frame_with((2**63,) * 8), ZEROS]),
        (Reason.SIZE, [frame_with((0, 2**62, 2**62))]),
    ],
)
def test_every_flaw_has_its_reason(reason: Reason, frames: list[Frame]) -> None:
    assert refused(frames) == reason


@pytest.mark.parametrize("frames", [[frame_with(payload=ZEROS)], [frame_with(), ZEROS]], ids=["inline", "apart"])
def test_the_unchanged_head_is_read(frames: list[Frame]) -> None:
    header = wire.inspect(frames, RUN)
    assert isinstance(header, Header)
    message = opened(header, frames)
    assert isinstance(message, Activation)
    assert torch.equal(message.inputs, torch.zeros(2, 3))


def test_every_reason_but_the_mailboxes_own_is_covered() -> None:
    elsewhere = {Reason.KEY, Reason.HUNG_UP, Reason.SENDER, Reason.INDICES, Reason.TICKET, Reason.STALE_SLOT}
    marks = test_every_flaw_has_its_reason.pytestmark  # type: ignore[attr-defined]
    assert {reason for reason, _ in marks[0].args[1]} == set(Reason) - elsewhere


INDEXED = Form(indices=True)
SAMPLES = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


def test_indices_stand_for_samples_that_both_ends_hold() -> None:
    indices = torch.tensor([9, 0, 3])
    asked = Activation(1, 2, SAMPLES[indices], owes=False, indices=indices)
    plain, short = wire.encode(asked, STAMP), wire.encode(asked, STAMP, INDEXED)
    assert len(short[0]) == len(plain[0]) - 3 * 16 + 3 * 8
    header, frames = arrived(short)
    got = wire.message_of(header, frames, Pool(), SAMPLES)
    assert isinstance(got, Activation)
    assert got.indices is not None
    assert not got.owes
    assert torch.equal(got.indices, indices)
    assert torch.equal(got.inputs, asked.inputs)
    assert len(wire.encode(Activation(1, 2, SAMPLES), STAMP, INDEXED)[0]) > len(SAMPLES) * 16  # none to send


@pytest.mark.parametrize(
    ("indices", "samples"),
    [
        (torch.tensor([10]), SAMPLES),
        (torch.tensor([-1]), SAMPLES),
        (torch.tensor([[1]]), SAMPLES),
        (torch.tensor([1], dtype=torch.int32), SAMPLES),
        (torch.tensor([1.0]), SAMPLES),
        (torch.empty(0, dtype=torch.int64), SAMPLES),
        (torch.tensor([1]), None),
    ],
)
def test_indices_of_samples_that_we_do_not_hold_are_refused(
    indices: torch.Tensor, samples: torch.Tensor | None
) -> None:
    header, frames = arrived(wire.encode(Activation(1, 2, SAMPLES, indices=indices), STAMP, INDEXED))
    assert wire.message_of(header, frames, Pool(), samples) == Rejected(Reason.INDICES)


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.BYE, Kind.BYE_ACK])
def test_control_frames_carry_no_message(kind: Kind) -> None:
    header, frames = arrived(wire.encode_control(kind, STAMP, window=3, heard=2))
    said = header.preamble
    assert (header.kind, said.window, said.heard) == (kind, 3, 2)
    assert said.schema == (wire.SCHEMA if kind is Kind.HELLO else 0)
    with pytest.raises(ValueError, match="no message"):
        opened(header, frames)


def same(found: torch.Tensor | None, sent: torch.Tensor | None) -> bool:
    """Equal bit for bit: NaNs too."""
    return sent is None if found is None else sent is not None and bits(found) == bits(sent)


def test_a_stream_carries_labels_and_context_forward_and_gradient_logits_and_layer_back() -> None:
    a, y, x = random_tensor("float32", (3, 5), 1), random_tensor("int64", (3,), 2), random_tensor("float32", (3, 2), 3)
    for labels in (None, y):
        asked = read(Activation(5, 6, a, labels, context=x))
        assert isinstance(asked, Activation)
        assert torch.equal(asked.inputs, a)
        assert asked.labels is None if labels is None else torch.equal(asked.labels, y)
        assert torch.equal(asked.context, x)
        assert asked.indices is None
    for gradient in (None, a):
        for logits in (None, x):
            for layer in (None, random_tensor("float32", (70_000,), 4)):
                target = read(Target(5, 8, torch.empty(0), gradient, logits, layer))
                assert isinstance(target, Target)
                assert target.embedding.shape == (0,)
                assert same(target.gradient, gradient)
                assert same(target.logits, logits)
                assert same(target.layer, layer)


@pytest.mark.parametrize("depth", [0, 1, 17, wire.DEPTH_CAP])
def test_an_activation_says_how_far_down_its_answer_shall_come_from(depth: int) -> None:
    x, indices = random_tensor("float32", (3, 5), 1), torch.tensor([2, 0, 2])
    for owes in (True, False):
        asked = read(Activation(5, 6, x, owes=owes, depth=depth))
        assert isinstance(asked, Activation)
        assert (asked.depth, asked.owes, asked.indices) == (depth, owes, None)
        header, frames = arrived(
            wire.encode(Activation(5, 6, x, owes=owes, indices=indices, depth=depth), STAMP, INDEXED)
        )
        got = wire.message_of(header, frames, Pool(), SAMPLES)
        assert isinstance(got, Activation)
        assert (got.depth, got.owes) == (depth, owes)
        assert torch.equal(got.indices, indices)


@pytest.mark.parametrize("depth", [-1, wire.DEPTH_CAP + 1])
def test_a_depth_that_cannot_be_said_is_the_callers_mistake(depth: int) -> None:
    with pytest.raises(ValueError, match="depth"):
        wire.encode(Activation(5, 6, torch.zeros(2, 3), depth=depth), STAMP)


def test_context_that_both_ends_hold_travels_as_indices_beside_the_activation() -> None:
    a, indices = random_tensor("float32", (3, 5), 1), torch.tensor([2, 0, 2])
    asked = Activation(1, 2, a, torch.tensor([0, 1, 2]), indices=indices, context=SAMPLES[indices])
    header, frames = arrived(wire.encode(asked, STAMP, INDEXED))
    got = wire.message_of(header, frames, Pool(), SAMPLES)
    assert isinstance(got, Activation)
    assert torch.equal(got.inputs, a)
    assert torch.equal(got.context, SAMPLES[indices])
    assert torch.equal(got.indices, indices)
    assert wire.message_of(header, frames, Pool(), None) == wire.Rejected(wire.Reason.INDICES)
