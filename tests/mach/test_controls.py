"""Controls are plain loops: equal to loops written out here, on the run's own weights and data order."""

from typing import cast

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mach.networks
from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from mach import controls
from mach.assemble import component_of
from mach.component import Component
from mach.data import Batches, Dataset
from mach.data import load as load_data
from mach.networks.place import Place
from mach.recipes import RECIPES
from mach.seeds import seed_of


def config(*settings: str) -> Config:
    base = ("n_components=3", "graph=chain", "train.steps=12", "train.batch_size=16", "evaluate.every_steps=5")
    return load("digits", (*base, *settings), RECIPES)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_data(config().data)


def test_one_alone_equals_a_loop_written_out(dataset: Dataset) -> None:
    settings = config("optimiser.name=sgd", "optimiser.schedule=constant", "optimiser.weight_decay=0")
    component = component_of(settings, 0, [], dataset)
    optimiser = torch.optim.SGD(component.parameters(), lr=settings.optimiser.lr, momentum=0.9)
    batches = Batches(dataset, 16, seed=seed_of(settings.seed, 0, "data"), noise=settings.data.noise)
    for _ in range(12):
        batch = next(batches)
        optimiser.zero_grad()
        a = component.activation(batch.inputs)
        F.cross_entropy(component.classify(component.embed(a, {})), batch.labels).backward()
        optimiser.step()
    found = controls.train("alone", settings, dataset)
    with torch.no_grad():
        z = component.classify(component.embed(component.activation(dataset.test_inputs), {}))
    assert found.reading.accuracy == pytest.approx(float((z.argmax(1) == dataset.test_labels).float().mean()))
    assert found.reading.bits == pytest.approx(float(F.cross_entropy(z, dataset.test_labels)) / 0.693147, rel=1e-4)


def test_a_control_is_judged_by_the_average_of_its_weights_if_the_run_is(dataset: Dataset) -> None:
    settings = config("evaluate.average=0.9", "optimiser.name=sgd", "optimiser.schedule=constant")
    component = component_of(settings, 0, [], dataset)
    optimiser = torch.optim.SGD(component.parameters(), lr=settings.optimiser.lr, momentum=0.9)
    batches = Batches(dataset, 16, seed=seed_of(settings.seed, 0, "data"), noise=settings.data.noise)
    mean: dict[str, Tensor] = {}
    for _ in range(12):
        batch = next(batches)
        optimiser.zero_grad()
        z = component.classify(component.embed(component.activation(batch.inputs), {}))
        F.cross_entropy(z, batch.labels).backward()
        optimiser.step()
        now = {name: each.detach().clone() for name, each in component.state_dict().items()}
        mean = {name: 0.9 * mean[name] + 0.1 * each for name, each in now.items()} if mean else now
    component.load_state_dict(mean)
    with torch.no_grad():
        z = component.classify(component.embed(component.activation(dataset.test_inputs), {}))
    bits = float(F.cross_entropy(z, dataset.test_labels)) / 0.693147
    found = controls.train("alone", settings, dataset)
    assert found.reading.bits == pytest.approx(bits, rel=1e-4)
    raw = controls.train("alone", config("optimiser.name=sgd", "optimiser.schedule=constant"), dataset)
    assert raw.reading.bits != pytest.approx(bits, rel=1e-3)


def test_a_network_that_is_frozen_as_a_whole_takes_its_steps(dataset: Dataset) -> None:
    frozen = component_of(config(), 0, [], dataset).requires_grad_(requires_grad=False)
    before = frozen.state_dict()
    (member,) = controls.trained([(config(), controls.Lone(frozen))], config(), dataset).curve[:1]
    assert member[0] == 5
    assert controls.size_of(controls.Lone(frozen), dataset) == 0
    assert all(torch.equal(before[name], each) for name, each in frozen.state_dict().items())


def test_backpropagation_reaches_every_component_and_no_student(dataset: Dataset) -> None:
    ((_, whole),) = controls.backprop(config(), dataset)
    size = controls.size_of(whole, dataset)
    reached = {name.split(".")[2] for name, each in whole.named_parameters() if each.grad is not None}
    assert reached == {"joiner", "head"}
    assert all(any(f"components.{i}.joiner" in name for name, _ in whole.named_parameters()) for i in range(3))
    assert size < sum(each.numel() for each in whole.parameters())


@pytest.mark.parametrize("settings", [("recipe=mach", "graph=ring"), ("recipe=backprop",), ("recipe=mach-stream",)])
def test_deep_supervision_equals_a_loop_written_out(dataset: Dataset, settings: tuple[str, ...]) -> None:
    chosen = config(*settings, "optimiser.name=sgd", "optimiser.schedule=constant", "optimiser.weight_decay=0")
    whole = controls.whole_of(chosen, dataset)
    c0, c1, c2 = (whole.part(index) for index in range(3))
    optimiser = torch.optim.SGD(whole.parameters(), lr=chosen.optimiser.lr, momentum=0.9)
    batches = Batches(dataset, 16, seed=seed_of(chosen.seed, 0, "data"), noise=chosen.data.noise)

    def logits(x: torch.Tensor) -> list[torch.Tensor]:
        """Of the heads on the way, and last of the whole."""
        if chosen.wiring == "skip":
            e2 = c2.embed(x, c2.imitate(x))
            e1 = c1.embed(x, {"c2": e2})
            return [c2.classify(e2), c1.classify(e1), c0.classify(c0.embed(x, {"c1": e1}))]
        found, come = [], (x,)
        for part in (c0, c1, c2):
            a = part.encoder(*come)
            found.append(part.classify(part.embed(a, part.imitate(a))))
            come = (a, x) if chosen.method.context else (a,)
        return found

    for _ in range(12):
        batch = next(batches)
        optimiser.zero_grad()
        *way, last = (F.cross_entropy(z, batch.labels) for z in logits(batch.inputs))
        (last + 0.3 * sum(way)).backward()
        optimiser.step()
    found = controls.train("backprop+heads", chosen, dataset)
    with torch.no_grad():
        z = logits(dataset.test_inputs)[-1]
    assert found.reading.bits == pytest.approx(float(F.cross_entropy(z, dataset.test_labels)) / 0.693147, rel=1e-4)
    assert found.reading != controls.train("backprop", chosen, dataset).reading, "it is another control"


def test_controls_know_nothing_of_a_child_s_first_layer(dataset: Dataset) -> None:
    plain = config("recipe=dgl")
    headed = msgspec.structs.replace(plain, method=msgspec.structs.replace(plain.method, momentum_head="layer"))
    for name in ("backprop", "alone+student"):
        assert controls.train(name, headed, dataset).reading == controls.train(name, plain, dataset).reading


def test_a_curve_ends_with_the_last_step_and_the_best_known_reading(dataset: Dataset) -> None:
    found = controls.train("alone+student", config(), dataset)
    assert [step for step, _ in found.curve] == [5, 10, 12]
    assert found.curve[-1][1] == found.reading


def test_multiply_adds_are_those_of_the_layers(dataset: Dataset) -> None:
    settings = config("model.joiner=[32]", "model.embedding=8")
    forward = 64 * 32 + 32 * 8 + 8 * 10
    # forward, and for every layer ∂W and, but for the first, ∂input
    assert controls.train("alone", settings, dataset).multiply_adds == 3 * forward - 64 * 32
    assert controls.train("independent", settings, dataset).multiply_adds == 3 * (3 * forward - 64 * 32)


def test_the_wide_one_is_about_as_large_as_the_chain(dataset: Dataset) -> None:
    settings = config("n_components=5")
    wide, chain = (controls.train(name, settings, dataset) for name in ("wide", "backprop"))
    assert wide.parameters == pytest.approx(chain.parameters, rel=0.15)
    assert controls.widened(config("n_components=1"), dataset).model == config().model


def stubborn(place: Place) -> Component:
    """A family that does not heed the widths of `model`."""
    students = {child: nn.Linear(64, 16) for child in place.children}
    return Component(nn.Flatten(), nn.Linear(64 + 16 * len(students), 16), nn.Linear(16, place.classes), students)


def test_where_no_width_makes_one_as_large_as_all_that_is_said(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast(dict[str, object], mach.networks.FAMILIES), "stubborn", stubborn)
    alone, all_of_them = 65 * 16 + 17 * 10, 2 * (81 * 16 + 17 * 10) + 65 * 16 + 17 * 10
    said = controls.unmade(config("model.family=stubborn"), dataset)
    assert said.keys() == {"wide"}
    assert (
        f"one component comes to {alone:,} parameters, all to {all_of_them - 2 * 17 * 10:,}, more than 20 % apart"
        in said["wide"]
    )
    assert controls.unmade(config("model.family=stubborn", "n_components=1"), dataset) == {}
    assert controls.unmade(config(), dataset) == controls.unmade(config("recipe=backprop"), dataset) == {}


class Skipping(nn.Linear):
    """A layer that is passed by in training, as some are at random."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :10] if self.training else super().forward(x)


def test_the_size_of_a_network_is_of_all_that_ships(dataset: Dataset) -> None:
    network = nn.Sequential(nn.Linear(64, 64), Skipping(64, 10))
    assert controls.size_of(network, dataset) == 64 * 64 + 64 + 64 * 10 + 10


def test_widening_keeps_what_divides() -> None:
    model = controls.widen(msgspec.structs.replace(config().model, embedding=32, heads=4, channels=16), 1.75)
    assert (model.embedding, model.channels) == (56, 24 if 16 * 1.75 / 8 < 3.5 else 32)
    assert model.embedding % model.heads == 0
    assert controls.widen(config().model, 1.0) == config().model


def test_independent_ones_differ_and_the_first_is_the_one_alone(dataset: Dataset) -> None:
    members = controls.independent(config(), dataset)
    ((_, first),) = controls.alone(config(), dataset)
    weights = [next(network.component.joiner.parameters()) for _, network in members]  # type: ignore[union-attr, operator]
    assert torch.equal(weights[0], next(first.component.joiner.parameters()))  # type: ignore[union-attr, operator]
    assert not torch.equal(weights[0], weights[1])
    assert len({member.seed for member, _ in members}) == 3


def test_a_timed_run_has_no_controls(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="--steps"):
        controls.train("alone", config("train.minutes=1"), dataset)
