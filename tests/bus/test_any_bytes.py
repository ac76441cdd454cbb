"""Whatever comes to a mailbox is one letter, one control frame, or one drop counted under one reason; nothing raises.

Bytes without sense, true messages, and true messages with changes under a true checksum, from whoever may be connected.
Nothing is allocated for what a head merely claims.
"""

import tracemalloc
import zlib
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bus import wire
from bus.mailbox import Parcel, Peer
from bus.post import EdgeMailbox
from bus.rules import Fate
from bus.tensors import DTYPES
from bus.wire import Form, Frame, Header, Kind, Reason, Stamp
from configs.tree import Bus
from lanes import List
from mach.messages import Activation, Gradient, Target

RUN = "0123456789abcdef"
SAMPLES = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
REASONS = {reason.value for reason in Reason} | {fate.value for fate in Fate}
USUAL = settings(max_examples=2_000, deadline=None)
NIGHTLY = settings(max_examples=10_000, deadline=None)


def mailbox() -> tuple[EdgeMailbox, List]:
    """Of c1, which answers c0 and asks c2."""
    wire_in = List()
    box = EdgeMailbox(
        "c1",
        run_id=RUN,
        incarnation=1,
        children=["c2"],
        parents=["c0"],
        bus=Bus(),
        transport=wire_in,
        samples=SAMPLES,
    )
    return box, wire_in


peers = st.sampled_from([Peer("parent", "c0", 1), Peer("parent", "c0", 2), Peer("child", "c2"), Peer("parent", "")])
stamps = st.builds(
    Stamp,
    run=st.sampled_from([RUN, RUN, RUN, "other"]),
    sender=st.sampled_from(["c0", "c0", "c2", "c9"]),
    incarnation=st.integers(0, 2),
    sequence=st.integers(0, 5) | st.integers(0, 2**64 - 1),
)
tensors = st.builds(
    lambda name, shape: torch.zeros(shape, dtype=DTYPES[name]),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 4), max_size=4),
)
indices = st.lists(st.integers(-1, 5), max_size=3).map(lambda found: torch.tensor(found, dtype=torch.int64))
maybe = st.none() | tensors
ids = st.integers(0, 3)
messages = st.one_of(
    st.builds(Activation, ids, ids, tensors, maybe, st.booleans(), st.none() | indices, maybe),
    st.builds(Target, ids, ids, tensors, maybe, maybe),
    st.builds(Gradient, ids, ids, tensors),
)
controls = st.builds(
    lambda kind, stamp, window, heard: wire.encode_control(kind, stamp, window=window, heard=heard),
    st.sampled_from([Kind.HELLO, Kind.BYE, Kind.BYE_ACK]),
    stamps,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2),
)
forms = st.builds(Form, indices=st.booleans())
true = controls | st.builds(wire.encode, messages, stamps, forms)


@st.composite
def changed(draw: st.DrawFn) -> list[Frame]:
    """A true message, with other bytes in its head or its tensors, and again a true checksum."""
    first, *rest = draw(true)
    words = bytearray(first)
    for _ in range(draw(st.integers(0, 3))):
        words[draw(st.integers(0, len(words) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        at = 8 * draw(st.integers(0, len(words) // 8 - 1))
        words[at : at + 8] = draw(st.sampled_from([2**60, 2**63, 2**64 - 1, 0, 1])).to_bytes(8, "little")
    if draw(st.booleans()):
        words[4:8] = zlib.crc32(words[8 : wire._ENDS[words[wire._MASK_AT]]]).to_bytes(4, "little")
    cut = draw(st.integers(0, len(words)) | st.just(len(words)))
    return [bytes(words[:cut]), *rest, *draw(st.just([]) | st.lists(st.binary(max_size=40), max_size=3))]


frames = st.lists(st.binary(max_size=200), max_size=6) | true | changed()
streams = st.lists(st.tuples(peers, frames), min_size=1, max_size=5)
Stream = list[tuple[Peer, list[Frame]]]


def every_message_has_one_end(stream: Stream) -> None:
    box, wire_in = mailbox()
    for peer, come in stream:
        wire_in.inbox = [(peer, [bytes(frame) for frame in come])]
        before = Counter(box.counts.dropped)
        letters = box.receive()
        drops = box.counts.dropped - before
        assert set(drops) <= REASONS
        del drops[Fate.LOST.value]  # of messages before this one
        for letter in letters:
            wire.encode(letter.message, Stamp(RUN, "c1", 1, 1))  # a message that we might have sent ourselves
        header = wire.inspect(come, RUN)
        heard = isinstance(header, Header) and header.kind in (Kind.HELLO, Kind.BYE, Kind.BYE_ACK)
        assert len(letters) + drops.total() == 1 or (heard and not letters and not drops), (letters, drops)


@given(streams)
@USUAL
def test_every_message_has_one_end(stream: Stream) -> None:
    every_message_has_one_end(stream)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(10))
@given(stream=streams)
@NIGHTLY
def test_every_message_has_one_end_all_night(part: int, stream: Stream) -> None:
    every_message_has_one_end(stream)


HUGE = [(2**60,), (2**63,) * 8, (2**64 - 1, 2), (0, 2**62, 2**62), (2**20, 2**20, 2**20), (1, 1, 2**60)]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("codec", range(4))
def test_what_a_head_claims_costs_nothing(codec: int, apart: bool) -> None:
    """Every dtype, with true checksums: what is refused takes less memory than the frames that came."""
    box, wire_in = mailbox()
    payload: list[Frame] = [bytes(1 << 12)] if apart else []
    (first,) = wire.encode(Activation(0, 0, torch.empty(0)), Stamp(RUN, "c0", 1, 1))
    parcels: list[Parcel] = []
    for dtype in range(len(DTYPES)):
        for shape in HUGE:
            head = bytes(first[8 : wire.PREFIX])
            head += wire._TENSOR.pack(dtype, len(shape), codec, *shape, *[0] * (8 - len(shape)))
            parcels.append((Peer("parent", "c0", 1), [wire._SEAL.pack(wire._MAGIC, zlib.crc32(head)) + head, *payload]))
    wire_in.inbox = list(parcels)
    box.receive()  # what is made once
    wire_in.inbox = list(parcels)
    tracemalloc.start()
    assert box.receive() == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert box.counts.dropped == {"bad-size": 2 * len(parcels)}
    assert peak < 1 << 14
