"""Every policy's formula on numbers that were worked out by hand, and policies put together by name."""

import pytest
import torch

from configs.tree import Staleness as Settings
from mach.staleness import (
    APART,
    ON_MESSAGE,
    ON_WEIGHTS,
    Correction,
    Staleness,
    ahead,
    anneal,
    clip_factor,
    compensated,
    discount,
    within,
)

NOTHING = Correction((), (), ())


def test_bound_lets_the_limit_itself_through() -> None:
    assert [within(lag, 3) for lag in (0, 3, 4)] == [True, True, False]


@pytest.mark.parametrize(("lag", "power", "expected"), [(0, 1.0, 1.0), (1, 1.0, 1.0), (4, 1.0, 0.25), (4, 0.5, 0.5)])
def test_discount_by_a_power_of_the_lag(lag: int, power: float, expected: float) -> None:
    assert discount(lag, power) == expected


@pytest.mark.parametrize(
    ("lag", "version", "expected"),
    [(4, 0, 0.25), (4, 50, 0.5), (4, 100, 1.0), (4, 1000, 1.0), (0, 0, 1.0), (1, 7, 1.0)],
)
def test_anneal_scales_less_and_less_until_the_horizon(lag: int, version: int, expected: float) -> None:
    assert anneal(lag, version, 100) == pytest.approx(expected, rel=1e-12)


def test_predicted_weights_go_on_as_the_last_step_went() -> None:
    found = ahead(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]), 2.0)
    assert torch.equal(found, torch.tensor([2.0, 0.0]))


def test_compensation_follows_its_formula_and_needs_weights_that_moved() -> None:
    g, now, then = torch.tensor([2.0, -3.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 3.0])
    assert torch.equal(compensated(g, now, then, 0.5), torch.tensor([4.0, -12.0]))
    assert torch.equal(compensated(g, now, now, 0.5), g)


def test_clip_compares_norms_over_all_parameters() -> None:
    late = [torch.tensor([3.0]), torch.tensor([[4.0]])]  # norm 5
    own = [torch.tensor([0.0]), torch.tensor([[2.0]])]  # norm 2
    assert clip_factor(late, own, 1.0) == pytest.approx(0.4)
    assert clip_factor(late, own, 2.5) == 1.0
    assert clip_factor(late, own, 0.0) == 0.0
    assert clip_factor(late, [], 1.0) == clip_factor([], own, 1.0) == 1.0


def test_factors_of_several_policies_multiply_and_are_counted() -> None:
    staleness = Staleness(Settings(policies=("discount", "shrink", "bound"), power=0.5, shrink=0.5, max_versions=9))
    assert staleness.scale(4, 0) == 0.25
    assert staleness.scale(1, 0) == 0.5
    assert staleness.scale(10, 0) is None
    assert staleness.counts == {"discount": 2, "shrink": 3, "bound": 1}


def test_the_order_of_the_list_is_the_order_of_work() -> None:
    first = Staleness(Settings(policies=("bound", "shrink"), max_versions=0))
    assert first.scale(1, 0) is None
    assert first.counts == {"bound": 1}
    g = [torch.tensor([4.0])]
    known = Correction(own=[torch.tensor([1.0])], now=[torch.tensor([2.0])], then=[torch.tensor([1.0])])
    found = {
        order: Staleness(Settings(policies=order, compensate=1.0, clip=1.0)).correct(g, known)[0].item()
        for order in (("compensate", "clip"), ("clip", "compensate"))
    }
    assert found == {("compensate", "clip"): 1.0, ("clip", "compensate"): 2.0}  # 4+16 → 1, or 4 → 1 → 1+1


def test_corrections_count_what_they_changed() -> None:
    staleness = Staleness(Settings(policies=("clip",), clip=1.0))
    assert staleness.corrects
    own = [torch.tensor([2.0])]
    assert staleness.correct([torch.tensor([1.0])], Correction(own, (), ()))[0].item() == 1.0
    assert staleness.counts == {}
    assert staleness.correct([torch.tensor([8.0])], Correction(own, (), ()))[0].item() == 2.0
    assert staleness.counts == {"clip": 1}


def test_the_expected_lag_is_the_mean_of_all_that_came_refused_ones_too() -> None:
    staleness = Staleness(Settings(policies=("bound", "predict"), max_versions=2))
    assert staleness.expected_lag == 0.0
    for lag in (1, 2, 6):
        staleness.scale(lag, 0)
    assert staleness.expected_lag == 3.0
    assert staleness.predicts


def test_without_policies_nothing_happens() -> None:
    staleness = Staleness(Settings())
    g = [torch.tensor([1.0])]
    assert staleness.scale(50, 3) == 1.0
    assert staleness.correct(g, NOTHING) == g
    assert (staleness.predicts, staleness.together, staleness.corrects) == (False, 1, False)
    assert not staleness.counts


def test_accumulate_says_how_many_are_averaged() -> None:
    assert Staleness(Settings(policies=("accumulate",), accumulate=3)).together == 3


def test_every_policy_of_the_configuration_has_its_place() -> None:
    allowed = {"bound", "accumulate", "discount", "shrink", "predict", "compensate", "clip"}
    assert {*ON_MESSAGE, *ON_WEIGHTS, *APART} == allowed
    for name in allowed:
        Settings(policies=(name,))
