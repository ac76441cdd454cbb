"""Whether the numbers of a tensor that came may be used at all. Knows no message and no network.

Law: what neighbours computed (targets, logits, gradients, activations) is judged by `fits`; x, which may be in any
unit, by `finite` after the cast to our weights' kind; symbols and labels by `whole`.

Costs one reduction: of [128, 64] 2.4 µs (`finite`) or 2.9 µs (`fits`), of [128, 784] 6 or 10 µs, where
`isfinite().all()` takes 28 and 253 µs (one core).
"""

import math

import torch
from torch import Tensor

LARGEST = 1e6
"""No number that a neighbour computed may be further from 0. Sound networks come nowhere near: embeddings are
normalised, and a gradient is a share of a mean over the batch. Finite is not enough: the square of 1e20 in a loss or in
an optimiser's moments is infinite in float32, and a float64's 1e300 is so as soon as it is cast."""


def finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a floating-point tensor: exactly.

    A sum finds every one of them; one that is infinite because of its length or size is looked into once more.
    """
    if tensor.itemsize == 1:  # float8, which torch cannot add up
        tensor = tensor.float()
    return math.isfinite(float(tensor.sum())) or all(math.isfinite(float(end)) for end in tensor.aminmax())


def fits(tensor: Tensor, shape: torch.Size | None) -> bool:
    """Whether this is what a neighbour must have computed: of that shape, quantities, none of them NaN or beyond
    `LARGEST`; then it may be cast to the weights' kind, and trained on.

    No number is larger than the norm of all; where that is too large, as of many numbers, they are looked at.
    """
    return tensor.shape == shape and tensor.is_floating_point() and bounded(tensor, LARGEST)


def bounded(tensor: Tensor, largest: float) -> bool:
    """Whether these quantities, at least one, are at most so far from 0, and none of them NaN."""
    if tensor.itemsize == 1:  # float8, of which torch knows no norm
        tensor = tensor.float()
    return float(torch.linalg.vector_norm(tensor)) <= largest or all(
        abs(float(end)) <= largest for end in tensor.aminmax()
    )


def whole(tensor: Tensor, below: int) -> bool:
    """Whether these are whole numbers from 0 to below − 1."""
    if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
        return False
    low, high = (int(each) for each in tensor.aminmax())  # as tensors, unsigned bytes wrap 256 round to 0
    return low >= 0 and high < below
