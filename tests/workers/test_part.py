"""The part of a stub: what a component at its place would send, in shape and kind, drawn from one generator."""

import pytest
import torch
from torch import Tensor

from configs.load import load
from configs.tree import Config
from mach.assemble import component_of, learner_of, stream_of
from mach.data import Batches
from mach.data import load as load_data
from mach.graph import children_of, name_of
from mach.messages import Activation, Letter, Target
from mach.recipes import RECIPES
from workers.part import Part, part_of

TREE = "graph=[[1,2],[3],[],[]]"
B, E, K = 4, 16, 10
BASE = (f"train.batch_size={B}", f"model.embedding={E}", "n_components=4")
TEXT = ("data.train_samples=64", "data.test_samples=8")
T, BYTES = 64, 256


def config_of(config: str, *settings: str) -> Config:
    return load(config, (*BASE, *(TEXT if config == "bytes-lm" else ()), *settings), RECIPES)


def part(index: int, *settings: str, config: str = "digits") -> Part:
    made = config_of(config, *settings)
    return part_of(made, index, load_data(made.data), seed=7)


def shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("digits", ("recipe=dgl", TREE)),
        ("digits", ("recipe=mach-hop", TREE)),
        ("digits", ("recipe=mach-stream",)),
        ("bytes-lm", ("recipe=mach-hop", TREE)),
        ("bytes-lm", ("recipe=ddg",)),
    ],
)
def test_in_a_stream_each_child_is_asked_what_it_takes_in_and_its_true_parent_sends(
    config: str, settings: tuple[str, ...]
) -> None:
    made = config_of(config, *settings)
    dataset, graph = load_data(made.data), children_of(made.graph, 4)
    for index, own in enumerate(graph):
        questions = part_of(made, index, dataset, seed=7).questions
        assert list(questions) == [name_of(child) for child in own]
        component = component_of(made, index, list(questions), dataset)
        for child in own:
            asked, stream = questions[name_of(child)], stream_of(made, child, dataset)
            assert stream is not None
            assert stream.admit(name_of(index), asked) is None
            batch = stream.next()
            assert batch is not None
            assert batch.labels.shape == (B, *dataset.train_labels.shape[1:])
            assert (batch.context is not None) == made.method.context
            if index == 0:
                assert component.activation(dataset.train_inputs[:B]).shape == asked.inputs.shape


def test_in_skip_wiring_it_draws_x_and_then_its_answers_in_the_order_in_which_it_always_did() -> None:
    known = torch.Generator().manual_seed(7)
    x, first, second = (torch.randn(B, n, generator=known) for n in (64, E, E))
    one = part(1, "graph=kgraph")
    assert list(one.questions) == ["c0", "c2", "c3"]
    assert all(torch.equal(asked.inputs, x) and asked.labels is None for asked in one.questions.values())
    told = [one.answer(Activation(id, 0, x), version=3 + id) for id in range(2)]
    assert [(target.id, target.version) for target in told] == [(0, 3), (1, 4)]
    assert torch.equal(torch.stack([target.embedding for target in told]), torch.stack([first, second]))
    assert all(target.gradient is None and target.logits is None for target in told)


@pytest.mark.parametrize(
    ("config", "settings", "id", "owes", "told"),
    [
        ("digits", ("recipe=mach-hop",), 1, True, ((B, E), (B, E), None)),
        ("digits", ("recipe=mach-hop",), 1, False, ((B, E), None, (B, K))),  # an examination's
        ("digits", ("recipe=mach-hop", "method.targets=logits"), 1, True, ((B, E), (B, E), (B, K))),
        ("digits", ("recipe=mach-hop", "method.targets_every=2"), 1, True, ((0,), (B, E), None)),  # a receipt
        ("digits", ("recipe=mach-hop", "model.join=sum"), 1, True, ((B, E + K), (B, E), None)),
        ("digits", ("recipe=mach-stream",), 8, True, ((B, E), None, None)),
        ("digits", ("recipe=mach-stream",), 9, True, ((0,), None, None)),
        ("digits", ("recipe=mach-stream",), 9, False, ((B, E), None, (B, K))),
        ("digits", ("recipe=dgl",), 0, True, ((0,), None, None)),
        ("digits", ("recipe=dni",), 0, True, ((0,), (B, E), None)),
        ("digits", ("recipe=ddg",), 0, True, ((0,), (B, E), None)),
        ("digits", ("recipe=ddg",), 0, False, ((0,), None, (B, K))),
        ("digits", ("recipe=takd",), 1, True, ((B, E), None, (B, K))),
        ("digits", ("recipe=takd",), 1, False, ((B, E), None, (B, K))),
        ("digits", ("recipe=mach",), 1, False, ((B, E), None, None)),
        ("bytes-lm", ("recipe=mach-hop",), 0, True, ((B, T, E), (B, T, E), None)),
        ("bytes-lm", ("recipe=mach-hop",), 0, False, ((B, T, E), None, (B, T, BYTES))),
    ],
)
def test_an_answer_holds_what_a_true_childs_would(
    config: str, settings: tuple[str, ...], id: int, owes: bool, told: tuple[object, ...]
) -> None:
    asks, answers = part(0, *settings, config=config), part(1, *settings, config=config)
    asked = asks.questions["c1"]
    target = answers.answer(Activation(id, 0, asked.inputs, asked.labels if owes else None, owes), version=0)
    assert (shape(target.embedding), shape(target.gradient), shape(target.logits)) == told


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("digits", ("recipe=takd",)),
        ("digits", ("recipe=takd", "model.join=sum")),
        ("digits", ("recipe=mach",)),
        ("digits", ("recipe=mach", "method.targets=logits")),
        ("digits", ("recipe=mach", "method.targets_every=2")),
        ("bytes-lm", ("recipe=takd",)),
        ("bytes-lm", ("recipe=mach",)),
    ],
)
def test_its_answers_are_fit_to_be_learnt_from_in_skip_wiring(config: str, settings: tuple[str, ...]) -> None:
    made = config_of(config, *settings)
    dataset = load_data(made.data)
    parent = learner_of(made, 0, ["c1"], dataset, torch.device("cpu"))
    answers = part_of(made, 1, dataset, seed=7)
    batches = Batches(dataset, B, seed=0)
    for now in range(2):
        parent.keep(Letter("c1", answers.answer(parent.ask(next(batches)), version=now)), float(now))
        assert not parent.unfit
    assert parent.memory.arrived


def test_a_gradient_of_an_activation_is_of_its_kind_and_as_small_as_a_mean_loss_makes_it() -> None:
    answers = part(1, "recipe=ddg")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        gradient = answers.answer(Activation(0, 0, torch.zeros(B, E, dtype=dtype)), version=0).gradient
        assert gradient is not None
        assert gradient.dtype == dtype
        assert 0.0 < float(gradient.abs().max()) < 0.01
    assert answers.answer(Activation(0, 0, torch.zeros(0, E)), version=0).gradient is not None
    assert answers.answer(Activation(0, 0, torch.zeros(B, E, dtype=torch.int64)), version=0).gradient is None


@pytest.mark.parametrize(
    ("recipe", "embedding", "owed"),
    [
        ("mach", (B, E), (B, E)),
        ("mach-hop", (B, E), (B, E)),
        ("mach-hop", (0,), None),  # of a receipt
        ("mach-stream", (B, E), None),  # heads look down the chain
        ("dgl", (0,), None),
    ],
)
def test_it_pays_what_a_true_parent_owes(recipe: str, embedding: tuple[int, ...], owed: tuple[int, ...] | None) -> None:
    paid = part(0, f"recipe={recipe}").gradient(Target(5, 9, torch.zeros(embedding)))
    assert (None if paid is None else (paid.id, paid.of_version, shape(paid.gradient))) == (owed and (5, 9, owed))
