"""The head fed by the child's first layer, against its formulas: the average, what is shown when, what comes of it."""

import copy
import itertools
import math
import sys
import types
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from msgspec import structs
from torch import Tensor, nn
from torch.nn import functional as F

from bus import wire
from configs.errors import ConfigError, DataError
from configs.load import load
from configs.tree import Config
from mach.assemble import component_of, learner_of
from mach.component import Component
from mach.data import Batches, Dataset
from mach.data import load as load_data
from mach.graph import name_of
from mach.learner import Learner
from mach.messages import Activation, Age, Batch, Letter, Target
from mach.momentum import Momentum, Showing, first_layer, flat, frozen
from mach.optimisers import optimiser_of
from mach.recipes import RECIPES
from mach.state import Copies

CPU = torch.device("cpu")
DATASET = load_data(Config().data)
DOUBLE = replace(DATASET, train_inputs=DATASET.train_inputs.double(), test_inputs=DATASET.test_inputs.double())
B, N, ROUNDS = 16, 3, 50


def config(*settings: str) -> Config:
    plain = ("data.noise=0", f"train.batch_size={B}", f"n_components={N}", "seed=3", "optimiser.schedule=constant")
    return load("digits", ("recipe=dgl", "method.momentum_head=layer", *plain, *settings), RECIPES)


def children_at(index: int) -> list[str]:
    return [name_of(index + 1)] if index < N - 1 else []


def learner_at(index: int, settings: Config, component: Component | None = None, data: Dataset = DATASET) -> Learner:
    return learner_of(settings, index, children_at(index), data, CPU, component)


def batch(seed: int = 0) -> Batch:
    return next(Batches(DATASET, B, seed=seed))


def head_of(learner: Learner) -> Momentum:
    assert learner.component.momentum is not None
    return learner.component.momentum


def layer_like(learner: Learner, seed: int = 0) -> Tensor:
    size = head_of(learner).shape("c1")
    assert size is not None
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def answer(id: int, layer: Tensor | None, version: int = 0) -> Letter:
    return Letter("c1", Target(id, version, torch.empty(0), layer=layer), Age(0, 0.0))


def test_the_first_layer_is_taken_whole_and_later_ones_by_how_many_versions_went_by() -> None:
    mu, linear = 0.9, nn.Linear(3, 2)
    head = Momentum({"c1": linear}, 2, mu)
    weights = [torch.randn(8) for _ in range(4)]
    head.take("c1", weights[0], 40)
    average = weights[0]
    for layer, version, passed in zip(weights[1:], (41, 51, 48), (1, 10, 3), strict=True):
        head.take("c1", layer, version)
        average = mu**passed * average + (1 - mu**passed) * layer
        torch.testing.assert_close(torch.cat([each.flatten() for each in head.layers["c1"].buffers()]), average)
    before = copy.deepcopy(head.state_dict())
    head.take("c1", torch.randn(8), 48)
    assert all(torch.equal(each, before[name]) for name, each in head.state_dict().items()), "no version went by"


def test_what_the_joiner_gets_is_the_mean_of_the_children_s_layers_and_a_bias() -> None:
    one, two, a = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(B, 3)
    head = Momentum({"c1": one, "c2": two}, 2, 0.9)
    nn.init.normal_(head.bias)
    torch.testing.assert_close(head(a), (one(a) + two(a)) / 2 + head.bias)
    assert head.shape("c1") == (8,)
    assert head.shape("c3") is None


def test_a_frozen_layer_computes_the_same_and_has_nothing_to_learn() -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)))
    held, a = frozen(layer), torch.randn(B, 3, requires_grad=True)
    assert torch.equal(held(a), layer(a))
    assert not list(held.parameters())
    assert held.state_dict().keys() == layer.state_dict().keys()
    (held(a) ** 3).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0, "and a learns through it"
    assert len(list(layer.parameters())) == 6, "the layer itself is left alone"


def test_a_layer_is_shown_at_once_and_then_after_so_many_versions() -> None:
    settings = config("method.momentum_every=5")
    child = component_of(settings, 1, children_at(1), DATASET)
    encoder, layer = child.encoder, partial(first_layer, child)
    showing = Showing(layer, 5, on=True)
    assert [version for version in range(2, 20) if showing.due(version) is not None] == [2, 7, 12, 17]
    shown = Showing(layer, 5, on=True).due(0)
    assert shown is not None
    before = shown.clone()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.zero_()
    assert torch.equal(shown, before), "a copy: the weights move on while it is on its way"
    assert Showing(layer, 5, on=False).due(0) is None


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        ("digits", ()),
        ("digits", ("model.joiner=[]",)),
        ("mnist1d", ("data.train_samples=50", "data.test_samples=50", "model.blocks=2")),
        ("bytes-lm", ("data.train_samples=50", "data.test_samples=50", "model.blocks=2")),
    ],
)
@pytest.mark.parametrize("context", [False, True])
def test_an_opening_is_what_the_encoder_does_first(data: str, settings: tuple[str, ...], context: bool) -> None:
    some = load(data, ("recipe=dgl", f"method.context={context}", "n_components=3", *settings), RECIPES)
    dataset = load_data(some.data)
    first, encoder = (component_of(some, i, (), dataset).encoder for i in (0, 1))
    a = first(dataset.train_inputs[:2])
    h = encoder.opening()(a)
    if data == "digits":
        x = torch.zeros(2, 64)  # nothing of x: what the layer makes of the activation alone
        rest = encoder.net[2:]
        assert torch.equal(encoder.opening()[0].weight, encoder.net[0].weight[:, : a.shape[1]])
    else:
        rest = nn.Sequential(*(each for each in encoder.section[1:]), *([nn.Flatten()] if data == "mnist1d" else []))
        h = h.view(2, *encoder.shapes[0]) if data == "mnist1d" else h
        if context:
            return  # the part of x is added before the first block
        x = torch.zeros(0)
    with torch.no_grad():
        torch.testing.assert_close(rest(h), encoder(a, x) if context else encoder(a))


def test_a_head_begins_with_the_very_weights_that_the_child_begins_with() -> None:
    settings = config()
    parts = [component_of(settings, i, children_at(i), DATASET) for i in range(N)]
    for above, below in itertools.pairwise(parts):
        assert above.momentum is not None
        held = flat(list(above.momentum.layers.buffers()))
        assert torch.equal(held, flat(list(below.encoder.opening().parameters())))
    assert parts[-1].momentum is None


def test_the_global_generator_is_left_alone_and_other_weights_are_as_without_a_head() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with_head = component_of(config(), 0, ["c1"], DATASET)
    assert torch.equal(torch.rand(1), expected)
    without = component_of(config("method.momentum_head=none"), 0, ["c1"], DATASET)
    assert torch.equal(with_head.encoder.net[0].weight, without.encoder.net[0].weight)


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_chain_of_learners_equals_a_loop_that_is_written_out(every: int, optimiser: str) -> None:
    """Answers of a round come in the next: a head knows its child as it was before the step of the round before."""
    settings = config(f"method.momentum_every={every}", "method.momentum_decay=0.8", f"optimiser.name={optimiser}")
    parts = [component_of(settings, i, children_at(i), DATASET).double() for i in range(N)]
    mine = [copy.deepcopy(part) for part in parts]
    learners = [learner_at(i, settings, part, DOUBLE) for i, part in enumerate(parts)]
    optimisers = [optimiser_of(settings.optimiser, part) for part in mine]
    shown: list[list[Tensor] | None] = [None] * N  # by component, the average that its parent has
    drawn = Batches(DOUBLE, B, seed=9)
    letters: list[list[Letter]] = [[] for _ in range(N)]
    for t in range(ROUNDS):
        x, asked = next(drawn), None
        a = x.inputs
        now = [list(each.encoder.opening().parameters()) for each in mine]
        now = [[weight.detach().clone() for weight in each] for each in now]
        for i, learner in enumerate(learners):
            for letter in letters[i]:
                learner.keep(letter, 0.0)
            letters[i] = []
            if asked is not None:
                assert learner.answer(name_of(i - 1), asked, 0.0) is None
            taken = x if asked is None else learner.stream.next()
            asked = learner.ask(taken, name_of(i + 1)) if i < N - 1 else None
            step = learner.step(taken, 0.0)
            for peer, message in step.owed:
                assert (message.layer is not None) == (t % every == 0)
                letters[int(peer[1:])].append(Letter(name_of(i), message, Age(0, 0.0)))
            section, below = mine[i], shown[i + 1] if i < N - 1 else None
            h = section.encoder(a)
            a = h.detach()
            if i < N - 1:
                if below is None:
                    below = shown[i + 1] = now[i + 1]
                h = F.gelu(F.linear(h, *below)) + section.momentum.bias
            loss = F.cross_entropy(section.head(section.joiner(h)), x.labels)
            optimisers[i].zero_grad()
            loss.backward()
            optimisers[i].step()
        for i in range(1, N):
            if t % every == 0 and t > 0:
                kept = 0.8**every
                shown[i] = [kept * old + (1 - kept) * new for old, new in zip(shown[i], now[i], strict=True)]
    for ours, theirs in zip(parts, mine, strict=True):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert float((one - other).detach().abs().max()) <= 1e-6
    assert float(parts[0].momentum.bias.detach().abs().max()) > 1e-3, "the bias has learnt"


def test_without_an_answer_a_component_trains_on_with_the_layer_that_it_has() -> None:
    learner = learner_at(0, config())
    held = flat(list(head_of(learner).layers.buffers()))
    for seed in range(5):
        assert learner.step(batch(seed), 0.0) is not None
    assert learner.version == 5
    assert torch.equal(flat(list(head_of(learner).layers.buffers())), held)


@pytest.mark.parametrize("wrong", ["short", "long", "flat", "kind", "nan", "huge"])
def test_a_layer_that_cannot_be_is_never_taken(wrong: str) -> None:
    learner = learner_at(0, config())
    layer = layer_like(learner)
    wrongs: dict[str, Any] = {
        "short": layer[:-1],
        "long": torch.cat([layer, layer[:1]]),
        "flat": layer[None],
        "kind": layer.long(),
        "nan": torch.where(torch.arange(len(layer)) == 5, math.nan, layer),
        "huge": layer.double() * 1e30,
    }
    asked = learner.ask(batch(), "c1")
    before = copy.deepcopy(learner.component.state_dict())
    learner.keep(answer(asked.id, wrongs[wrong], version=3), 0.0)
    assert learner.unfit == {"target": 1}
    assert all(torch.equal(each, before[name]) for name, each in learner.component.state_dict().items())
    asked = learner.ask(batch(1), "c1")
    learner.keep(answer(asked.id, layer, version=3), 0.0)
    assert learner.unfit == {"target": 1}
    assert torch.equal(flat(list(head_of(learner).layers.buffers())), layer)


def test_nobody_takes_a_layer_that_is_not_wanted() -> None:
    layer = layer_like(learner_at(0, config()))
    learner = learner_at(0, config("method.momentum_head=none"))
    learner.keep(answer(learner.ask(batch(), "c1").id, layer), 0.0)
    assert learner.unfit == {"target": 1}


def test_a_life_goes_on_with_the_average_that_it_had() -> None:
    settings = config("method.momentum_decay=0.5")
    learner, other = learner_at(0, settings), learner_at(0, settings)
    one, two = layer_like(learner, 1), layer_like(learner, 2)
    learner.keep(answer(learner.ask(batch(), "c1").id, one, version=7), 0.0)
    learner.step(batch(), 0.0)
    other.restore(Copies().take(learner.state(0.0)), 0.0)
    for each in (learner, other):
        each.keep(answer(each.ask(batch(1), "c1").id, two, version=9), 0.0)
        each.step(batch(1), 0.0)
    found, expected = other.component.state_dict(), learner.component.state_dict()
    assert all(torch.equal(each, expected[name]) for name, each in found.items())
    torch.testing.assert_close(flat(list(head_of(other).layers.buffers())), 0.25 * one + 0.75 * two)
    with pytest.raises(DataError, match="momentum"):
        learner_at(0, config("method.momentum_head=none")).restore(learner.state(0.0), 0.0)


@pytest.mark.parametrize("late", ["recompute", "stash"])
def test_it_goes_with_targets_gradients_and_every_way_of_late_ones(late: str) -> None:
    settings = config("recipe=mach-hop", "method.momentum_head=layer", f"staleness.late={late}", "evaluate.average=0.9")
    learner, child = learner_at(0, settings), learner_at(1, settings)
    for seed in range(4):
        drawn = structs.replace(batch(seed), id=seed)
        asked = learner.ask(drawn, "c1")
        child.answer("c0", asked, 0.0)
        step = child.step(child.stream.next(), 0.0)
        ((_, told),) = step.owed
        learner.keep(Letter("c1", told, Age(0, 0.0)), 0.0)
        paid = learner.step(structs.replace(batch(seed + 10), id=seed + 10), 0.0)
        assert paid.on_child
        for _, gradient in paid.owed:
            child.keep(Letter("c0", gradient), 0.0)
    assert not learner.unfit
    assert not child.unfit
    assert int(head_of(learner).shown[0]) == 0
    assert int(child.component.momentum.shown[0]) == -1, "its own child never answered"


def test_what_is_kept_of_another_time_keeps_the_layer_of_its_time() -> None:
    class Own(nn.Linear):
        """May look at its mode, for all that is known."""

    component = component_of(config(), 0, ["c1"], DATASET)
    weight = head_of(learner_at(0, config())).layers["c1"].get_buffer("0.weight")
    component.momentum = Momentum({"c1": Own(*reversed(weight.shape))}, len(weight), 0.9)
    learner = learner_at(0, config("staleness.late=stash"), component)
    asked = learner.ask(batch(), "c1")
    (kept,) = learner.late._copies.values()  # type: ignore[attr-defined]
    before = flat(list(kept.momentum.layers.buffers()))
    learner.keep(answer(asked.id, layer_like(learner), version=3), 0.0)
    assert torch.equal(flat(list(head_of(learner).layers.buffers())), layer_like(learner))
    assert torch.equal(flat(list(kept.momentum.layers.buffers())), before)


def test_on_the_wire_a_layer_costs_less_than_four_percent() -> None:
    settings = config("train.batch_size=128")
    first, second = (component_of(settings, i, children_at(i), DATASET) for i in (0, 1))
    every = settings.method.momentum_every
    stamp = wire.Stamp("run", "c0", 1, 1)
    a = first.activation(DATASET.train_inputs[:128]).detach()
    plain = Activation(0, 0, a, DATASET.train_labels[:128]), Target(0, 0, torch.empty(0))
    shown = Target(0, 0, torch.empty(0), layer=flat(list(second.encoder.opening().parameters())))
    sizes = [sum(map(len, wire.encode(each, stamp))) for each in (*plain, shown)]
    without = every * (sizes[0] + sizes[1])
    assert (sizes[2] - sizes[1]) / without < 0.04


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)
    return module


def test_a_family_without_an_opening_is_told_so(own: types.ModuleType) -> None:
    def make(place: Any) -> Component:
        a = place.joined(5)
        return Component(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), nn.Linear(a, 6), nn.Linear(6, 10), {})

    own.__dict__["make"] = make
    with pytest.raises(ConfigError, match=r"method.momentum_head: .*'own:make'.*opening\(\)"):
        component_of(config("model.family=own:make"), 0, ["c1"], DATASET)


def test_a_family_of_one_s_own_shows_what_it_likes(own: types.ModuleType) -> None:
    class Section(nn.Module):
        def __init__(self, come: int) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(come, 7), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x.flatten(1)))

        def opening(self) -> nn.Module:
            return self.first

    def make(place: Any) -> Component:
        encoder = Section(place.features if place.reads_data else 5)
        return Component(encoder, nn.Linear(place.joined(5), 6), nn.Linear(6, 10), {})

    own.__dict__["make"] = make
    component = component_of(config("model.family=own:make"), 0, ["c1"], DATASET)
    assert component.joiner.in_features == 7
    assert component.momentum.shape("c1") == (5 * 7 + 7,)
