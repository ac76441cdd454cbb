"""Logits that run up the chain, against sums and means written out; in both wirings, and end to end."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from mach.assemble import component_of, learner_of, target_width
from mach.component import Component
from mach.data import Batches, Dataset
from mach.data import load as load_data
from mach.graph import name_of
from mach.learner import Learner
from mach.messages import Activation, Age, Batch, Gradient, Letter, Target
from mach.optimisers import hidden_weights
from mach.recipes import RECIPES
from mach.whole import Whole

CPU = torch.device("cpu")
DATASET = load_data(Config().data)
N, E, K, B = 3, 6, 10, 8
SHARES = {"sum": [1.0, 1.0, 1.0], "mean": [1 / 3, 1 / 3, 1 / 3]}


def config(*settings: str) -> Config:
    sizes = ("graph=chain", f"n_components={N}", f"model.embedding={E}", "model.joiner=[8]", "model.student=[8]")
    plain = ("optimiser.name=sgd", "optimiser.momentum=0", "optimiser.weight_decay=0", "optimiser.schedule=constant")
    return load("digits", (*sizes, *plain, "optimiser.lr=0.1", *settings), RECIPES)


def children_at(index: int) -> list[str]:
    return [name_of(index + 1)] if index < N - 1 else []


def parts_of(settings: Config) -> list[Component]:
    return [component_of(settings, i, children_at(i), DATASET) for i in range(N)]


def learner_at(index: int, settings: Config, component: Component | None = None) -> Learner:
    return learner_of(settings, index, children_at(index), DATASET, CPU, component)


def batch(dataset: Dataset = DATASET) -> Batch:
    return next(Batches(dataset, B, seed=0))


@pytest.mark.parametrize("join", ["sum", "mean"])
@pytest.mark.parametrize("wiring", ["skip", "stream"])
def test_the_whole_chain_says_the_sum_or_the_mean_of_all_its_heads(join: str, wiring: Any) -> None:
    recipe = {"skip": "mach", "stream": "mach-hop"}[wiring]
    parts = parts_of(config(f"recipe={recipe}", "method.context=false", "graph=chain", f"model.join={join}"))
    x = batch().inputs
    whole = Whole(parts, ((1,), (2,), ()), wiring=wiring)
    with torch.no_grad():
        a = [parts[0].activation(x)]
        for part in parts[1:]:
            a.append(part.activation(a[-1] if wiring == "stream" else x))
        e = [parts[2].joiner(a[2])]
        for k in (1, 0):
            e.insert(0, parts[k].joiner(torch.cat([a[k], e[0]], dim=1)))
        said = [part.head(each) for part, each in zip(parts, e, strict=True)]
        expected = sum(share * z for share, z in zip(SHARES[join], said, strict=True))
        torch.testing.assert_close(whole.read(0, (x,), depth=N - 1), expected)


def written_out(net: Component, x: Tensor, y: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum's three terms in skip wiring, without the house: with the target, with the student, distillation."""
    tally = net.tally
    assert tally is not None
    s = net.students["c1"](x)
    z_s = tally.readouts["c1"](s)
    child = F.cross_entropy(net.head(net.joiner(torch.cat([x, d[:, :E]], 1))) + d[:, E:], y)
    student = F.cross_entropy(net.head(net.joiner(torch.cat([x, s], 1))) + z_s, y)
    return child, student, F.mse_loss(torch.cat([s, z_s], 1), d.detach())


def test_a_step_goes_down_the_sum_and_owes_the_gradient_of_the_logits_too() -> None:
    settings = config("recipe=mach", "model.join=sum")
    learner, twin = learner_at(0, settings), parts_of(settings)[0]
    b = batch()
    d = torch.randn(B, E + K).requires_grad_()
    learner.ask(b)
    learner.keep(Letter("c1", Target(b.id, 5, d.detach()), Age(0, 0.0)), 0.0)
    step = learner.step(b, 0.0)
    assert step is not None
    assert step.on_child
    loss = sum(written_out(twin, b.inputs, b.labels, d), torch.zeros(()))
    *expected, g = torch.autograd.grad(loss, [*twin.parameters(), d])
    for (name, new), old, wanted in zip(learner.component.named_parameters(), twin.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / 0.1, wanted, rtol=1e-3, atol=1e-5, msg=name)
    ((peer, owed),) = step.owed
    assert (peer, type(owed)) == ("c1", Gradient)
    assert isinstance(owed, Gradient)
    torch.testing.assert_close(owed.gradient, g)
    assert g[:, E:].abs().sum() > 0


def test_an_answer_ends_in_logits_and_a_late_gradient_reaches_what_made_them() -> None:
    settings = config("recipe=mach", "model.join=mean")
    learner, twin = learner_at(1, settings), parts_of(settings)[1]
    x = batch().inputs
    answer = learner.answer("c0", Activation(4, 0, x), 0.0)
    assert answer is not None
    s = twin.students["c2"](x)
    e = twin.joiner(torch.cat([x, s], 1))
    assert twin.tally is not None
    z = (twin.head(e) + twin.tally.readouts["c2"](s)) / 2
    torch.testing.assert_close(answer.embedding, torch.cat([e, z], 1))
    assert answer.embedding.shape[1] == target_width(settings, DATASET)
    g = torch.cat([torch.zeros(B, E), torch.randn(B, K)], dim=1)  # of the logits alone
    learner.keep(Letter("c0", Gradient(4, 0, g)), 0.0)
    b = batch()
    learner.step(b, 0.0)
    own = F.cross_entropy(twin.classify(twin.embed(b.inputs, twin.imitate(b.inputs))), b.labels)
    expected = torch.autograd.grad(own + (z * g[:, E:]).sum(), list(twin.parameters()))
    for new, old, wanted in zip(learner.component.parameters(), twin.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / 0.1, wanted, rtol=1e-3, atol=1e-5)


def test_an_embedding_without_its_logits_is_no_answer() -> None:
    learner, b = learner_at(0, config("recipe=mach", "model.join=sum")), batch()
    learner.ask(b)
    learner.keep(Letter("c1", Target(b.id, 0, torch.zeros(B, E)), Age(0, 0.0)), 0.0)
    assert learner.unfit == {"target": 1}


def test_it_needs_a_graph_with_an_end_and_targets() -> None:
    with pytest.raises(ConfigError, match="has a cycle"):
        learner_of(config("recipe=mach", "graph=ring", "model.join=sum"), 0, ["c1"], DATASET, CPU)
    settings = config("recipe=dgl", "model.join=sum")
    assert learner_at(0, settings).component.tally is None
    assert target_width(settings, DATASET) == E


def test_muon_leaves_the_readouts_to_the_other_optimiser() -> None:
    component = parts_of(config("recipe=mach", "model.join=sum"))[0]
    assert component.tally is not None
    hidden = {id(weight) for weight in hidden_weights(component)}
    assert hidden
    assert not hidden & {id(weight) for weight in component.tally.parameters()}
