"""What a stream takes in: the right shapes and kinds, labels in range, a bounded line; and nothing else."""

import math

import pytest
import torch

from mach.messages import Activation
from mach.stream import Incoming, Stream

B, K = 3, 4
PLAIN = Incoming((5,), (), K)
TEXT = Incoming((2, 5), (2,), K, context=(2,), symbols=7)


def activation(id: int = 0, **changed: object) -> Activation:
    fields: dict[str, object] = {"inputs": torch.zeros(B, 5), "labels": torch.zeros(B, dtype=torch.int64), **changed}
    return Activation(id, 0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": torch.zeros(B, 6)},
        {"inputs": torch.zeros(())},
        {"inputs": torch.zeros(0, 5), "labels": torch.zeros(0, dtype=torch.int64)},
        {"inputs": torch.zeros(B, 5, dtype=torch.int64)},
        {"inputs": torch.full((B, 5), math.nan)},
        {"inputs": torch.full((B, 5), 1e300, dtype=torch.float64)},
        {"inputs": torch.full((B, 5), 1e30)},
        {"inputs": torch.full((B, 5), math.nan).to(torch.float8_e5m2)},
        {"labels": None},
        {"labels": torch.zeros(B)},
        {"labels": torch.zeros(B, dtype=torch.bool)},
        {"labels": torch.zeros(B + 1, dtype=torch.int64)},
        {"labels": torch.zeros(B, 1, dtype=torch.int64)},
        {"labels": torch.full((B,), K)},
        {"labels": torch.full((B,), -1)},
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, object]) -> None:
    stream = Stream(PLAIN, 2)
    assert stream.admit("c0", activation(**changed)) == "unfit"
    assert stream.next() is None


@pytest.mark.parametrize(
    ("context", "fits"),
    [
        (torch.full((B, 2), 6, dtype=torch.uint8), True),
        (torch.full((B, 2), 7), False),
        (torch.zeros(B, 2), False),
        (torch.zeros(B, 3, dtype=torch.int64), False),
        (None, False),
    ],
)
def test_context_of_symbols_must_be_symbols(context: torch.Tensor | None, fits: bool) -> None:
    asked = Activation(0, 0, torch.zeros(B, 2, 5), torch.zeros(B, 2, dtype=torch.int64), context=context)
    assert TEXT.fits(asked) is fits


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (1e30, torch.float32, True),  # x may be in any unit
        (1e30, torch.float64, True),
        (1e300, torch.float64, False),  # infinite as soon as it is cast
        (math.nan, torch.float8_e5m2, False),
    ],
)
def test_context_of_quantities_must_be_finite_when_it_is_used(value: float, dtype: torch.dtype, fits: bool) -> None:
    context = torch.zeros(B, 2, dtype=torch.float64)
    context[1, 1] = value
    incoming = Incoming((5,), (), K, context=(2,))
    assert incoming.fits(activation(context=context.to(dtype))) is fits


def test_batches_come_in_order_with_their_sender_and_the_oldest_makes_room() -> None:
    stream = Stream(PLAIN, 2)
    assert [stream.admit("c0", activation(id)) for id in range(3)] == [None, None, "forgotten"]
    batches = [stream.next() for _ in range(3)]
    assert [(each.id, each.sender, each.context) for each in batches if each is not None] == [
        (1, "c0", None),
        (2, "c0", None),
    ]


def test_who_draws_the_data_takes_nothing() -> None:
    stream = Stream(None, 2)
    assert stream.draws
    assert stream.admit("c0", activation()) == "unfit"
