"""From a configuration to a learner: its own weights, its own optimiser, its own schedule."""

import pytest
import torch

from configs.load import load
from configs.tree import Config, Optimiser
from mach.assemble import FLOOR, component_of, learner_of, optimiser_of, schedule_of
from mach.data import load as load_data
from mach.recipes import RECIPES

CPU = torch.device("cpu")
DATASET = load_data(Config().data)


def config(*settings: str) -> Config:
    return load("digits", settings, RECIPES)


def weights(config: Config, index: int) -> torch.Tensor:
    component = component_of(config, index, ("c9",), DATASET)
    return torch.nn.utils.parameters_to_vector(component.parameters())


def test_initial_weights_depend_on_seed_and_component_alone() -> None:
    torch.manual_seed(1)
    first = weights(config(), 0)
    torch.manual_seed(2)
    assert torch.equal(first, weights(config(), 0))
    assert not torch.equal(first, weights(config(), 1))
    assert not torch.equal(first, weights(config("seed=7"), 0))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    component_of(config(), 0, (), DATASET)
    assert torch.equal(torch.rand(3), expected)


def test_the_optimiser_is_the_configured_one() -> None:
    component = component_of(config(), 0, (), DATASET)
    adamw = optimiser_of(Optimiser(name="adamw", lr=0.5, weight_decay=0.25), component)
    sgd = optimiser_of(Optimiser(name="sgd", lr=0.5, momentum=0.75), component)
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(sgd, torch.optim.SGD)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.5, 0.25)
    assert sgd.defaults["momentum"] == 0.75


def test_the_cosine_falls_from_lr_to_its_floor_and_stays_there() -> None:
    rate = schedule_of(config("optimiser.lr=0.5", "train.steps=100"))
    assert rate is not None
    assert [rate(version) for version in (0, 50, 100, 200)] == pytest.approx(
        [0.5, 0.5 * (1 + FLOOR) / 2, 0.5 * FLOOR, 0.5 * FLOOR]
    )


def test_a_timed_run_and_a_constant_schedule_keep_the_rate() -> None:
    assert schedule_of(config("optimiser.schedule=constant")) is None
    assert schedule_of(config("train.minutes=1")) is None


def test_a_learner_is_on_its_device_with_a_student_per_child() -> None:
    learner = learner_of(config(), 2, ("c3", "c0"), DATASET, CPU)
    assert learner.component.children_names == ("c3", "c0")
    assert learner.version == 0
    assert {parameter.device for parameter in learner.component.parameters()} == {CPU}
