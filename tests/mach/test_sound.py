"""What may be used: no NaN, no infinity, no symbol that there is not; and everything else, however large."""

import math

import pytest
import torch

from bus.tensors import DTYPES
from mach.sound import finite, whole

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
WHOLE = [dtype for dtype in DTYPES.values() if not dtype.is_floating_point and dtype != torch.bool]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_kind_of_numbers_that_travels_is_judged(dtype: torch.dtype) -> None:
    assert finite(torch.ones(3, 4).to(dtype))
    assert finite(torch.empty(0, 4).to(dtype))
    for at in range(12):
        bad = torch.ones(12)
        bad[at] = math.nan
        assert not finite(bad.view(3, 4).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_sum_that_is_too_large_is_no_infinity_and_infinities_of_both_signs_do_not_cancel(dtype: torch.dtype) -> None:
    largest = torch.full((64, 64), torch.finfo(dtype).max, dtype=dtype)
    assert math.isinf(float(largest.sum()))
    assert finite(largest)
    assert not finite(torch.tensor([math.inf, -math.inf, 1.0], dtype=dtype))
    assert not finite(torch.tensor([1.0, math.inf], dtype=dtype))
    assert not finite(torch.tensor([1.0, -math.inf], dtype=dtype))


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_symbols_are_whole_and_there(dtype: torch.dtype) -> None:
    assert whole(torch.tensor([0, 3, 9], dtype=dtype), 10)
    assert not whole(torch.tensor([0, 3, 10], dtype=dtype), 10)
    assert dtype == torch.uint8 or not whole(torch.tensor([0, -1], dtype=dtype), 10)
    assert not whole(torch.empty(0, dtype=dtype), 10)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bool], ids=str)
def test_anything_else_is_no_symbol(dtype: torch.dtype) -> None:
    assert not whole(torch.zeros(3).to(dtype), 10)
