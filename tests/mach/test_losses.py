"""Each formula against a computation by hand, and its gradient against finite differences."""

import math

import pytest
import torch

from mach.losses import DISTANCES, cosine, cross_entropy, mse, normalised, pull

S = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
D = torch.tensor([[4.0, 3.0], [2.0, 0.0]])


def test_mse_is_a_mean_over_batch_and_embedding() -> None:
    assert mse(S, D).item() == pytest.approx((1 + 1 + 4 + 4) / 4)


def test_cosine_is_one_minus_the_mean_cosine() -> None:
    assert cosine(S, D).item() == pytest.approx(1 - (24 / 25 + 0) / 2)


def test_normalised_is_twice_the_cosine_distance_and_blind_to_scale() -> None:
    assert normalised(S, D).item() == pytest.approx(2 * cosine(S, D).item())
    assert normalised(7 * S, D).item() == pytest.approx(normalised(S, D).item())


def test_cross_entropy_is_the_mean_negative_log_likelihood() -> None:
    z, y = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 0])
    assert cross_entropy(z, y).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_pull_has_the_late_gradient_as_its_gradient() -> None:
    e, g = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)
    torch.autograd.backward(pull(e, g))
    assert e.grad is not None
    assert torch.equal(e.grad, g)


@pytest.mark.parametrize("name", list(DISTANCES))
def test_distances_have_right_gradients_and_vanish_at_the_target(name: str) -> None:
    s = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    d = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: DISTANCES[name](s, d), (s,))
    assert DISTANCES[name](d, d).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", list(DISTANCES))
def test_distances_do_not_grow_with_the_batch(name: str) -> None:
    assert DISTANCES[name](S.repeat(5, 1), D.repeat(5, 1)).item() == pytest.approx(DISTANCES[name](S, D).item())


def test_in_sequences_every_place_counts_like_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    s, d = (torch.randn(4, 3, 5, generator=generator) for _ in range(2))  # [B, T, E]
    y = torch.randint(5, (4, 3), generator=generator)
    for distance in DISTANCES.values():
        torch.testing.assert_close(distance(s, d), distance(s.flatten(0, 1), d.flatten(0, 1)))
    torch.testing.assert_close(cross_entropy(s, y), cross_entropy(s.flatten(0, 1), y.flatten()))
