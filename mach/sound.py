"""Whether the numbers of a tensor that came may be used at all. Knows no message and no network.

Costs one reduction: of [128, 64] 2.4 µs, of [128, 784] 6 µs, where `isfinite().all()` takes 28 and 253 µs (one core).
"""

import math

import torch
from torch import Tensor


def finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a floating-point tensor: exactly.

    A sum finds every one of them; one that is infinite because of its length or size is looked into once more.
    """
    if tensor.itemsize == 1:  # float8, which torch cannot add up
        tensor = tensor.float()
    return math.isfinite(float(tensor.sum())) or all(math.isfinite(float(end)) for end in tensor.aminmax())


def whole(tensor: Tensor, below: int) -> bool:
    """Whether these are whole numbers from 0 to below − 1."""
    if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
        return False
    low, high = (int(each) for each in tensor.aminmax())  # as tensors, unsigned bytes wrap 256 round to 0
    return low >= 0 and high < below
