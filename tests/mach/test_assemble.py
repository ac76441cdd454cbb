"""From a configuration to a learner: its own weights, on its own device."""

from contextlib import nullcontext
from dataclasses import replace

import msgspec
import pytest
import torch

from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from mach import networks
from mach.assemble import component_of, learner_of
from mach.data import Batches
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


def test_a_learner_is_on_its_device_with_a_student_per_child() -> None:
    learner = learner_of(config(), 2, ("c3", "c0"), DATASET, CPU)
    assert learner.component.children_names == ("c3", "c0")
    assert learner.version == 0
    assert {parameter.device for parameter in learner.component.parameters()} == {CPU}


@pytest.mark.parametrize(("recipe", "judged"), [("mach", {0, 1}), ("mach-stream", {0, 1}), ("backprop", {1})])
def test_labels_that_a_head_would_be_judged_by_fit_what_it_gives(recipe: str, judged: set[int]) -> None:
    settings = ("graph=chain", "n_components=2", "data.train_samples=16", "data.test_samples=4")
    small = load("bytes-lm", (f"recipe={recipe}", *settings), RECIPES)
    dataset = load_data(small.data)
    one = replace(dataset, train_labels=dataset.train_labels[:, 0], test_labels=dataset.test_labels[:, 0])
    for index, children in enumerate([("c1",), ()]):
        learner_of(small, index, children, dataset, CPU)
        refused = pytest.raises(ConfigError, match="the data have one label a sample")
        with refused if index in judged else nullcontext():
            learner_of(small, index, children, one, CPU)


@pytest.mark.parametrize("settings", [(), ("method.reach=1",), ("method.momentum_head=layer",)])
def test_in_training_a_component_is_tried_once_and_those_about_it_never(
    monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(networks, "as_in_training", lambda _, place: tried.append(place.index))
    small = config("recipe=mach-stream", "n_components=4", *settings)
    for index in range(4):
        learner_of(small, index, (f"c{index + 1}",) if index < 3 else (), DATASET, CPU)
    assert tried == [0, 1, 2, 3]


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", ["digits", "mnist1d", "bytes-lm"])
def test_what_a_parent_sends_in_a_stream_is_what_its_child_must_get(name: str, context: bool) -> None:
    settings = ("recipe=mach-stream", f"method.context={context}", "data.train_samples=16", "data.test_samples=4")
    small = load(name, settings, RECIPES)
    dataset = load_data(small.data)
    parent, child = (learner_of(small, index, (f"c{index + 1}",), dataset, CPU) for index in (0, 1))
    asked = parent.ask(next(Batches(dataset, 3, seed=0)))
    assert child.stream is not None
    assert child.stream.incoming is not None
    assert child.stream.incoming.fits(asked)
    wrong = msgspec.structs.replace(asked, labels=torch.full_like(asked.labels, dataset.classes))
    assert not child.stream.incoming.fits(wrong)
