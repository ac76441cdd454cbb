"""The house equals one plain loop bit for bit: learners driven in lock-step over lists, against `reference.py`."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import reference
from configs.load import load
from configs.tree import Config
from mach import assemble
from mach.assemble import component_of, learner_of
from mach.data import Batches
from mach.data import load as load_data
from mach.graph import children_of, name_of, parents_of
from mach.learner import Learner
from mach.messages import Activation, Letter, Message
from mach.recipes import RECIPES
from mach.seeds import seed_of

STEPS = 200


def house(config: Config, steps: int) -> list[dict[str, Tensor]]:
    """The same schedule with learners and letters; a mailbox is a list of (sender, message)."""
    dataset = load_data(config.data)
    children = children_of(config.graph, config.n_components)
    parents = parents_of(children)
    learners = [
        learner_of(config, i, [name_of(j) for j in own], dataset, torch.device("cpu")) for i, own in enumerate(children)
    ]
    orders = [
        Batches(dataset, config.train.batch_size, seed=seed_of(config.seed, i, "data"), noise=config.data.noise)
        for i in range(len(learners))
    ]
    boxes: dict[str, list[tuple[str, Message]]] = defaultdict(list)
    for now in range(steps):
        batches = [next(order) for order in orders]
        for i, learner in enumerate(learners):
            for j in children[i]:
                boxes[name_of(j)].append((name_of(i), learner.ask(batches[i])))
        for i, learner in reversed(list(enumerate(learners))):  # any order will do, so take an unusual one
            for sender, message in taken(boxes, i):
                give(learner, boxes, i, sender, message, now)
        for i, learner in enumerate(learners):
            for sender, message in taken(boxes, i):
                give(learner, boxes, i, sender, message, now)
        steps_made = [learner.step(batch, now) for learner, batch in zip(learners, batches, strict=True)]
        for i, step in enumerate(steps_made):
            assert step.on_child == bool(children[i])
            assert [age.versions for age in step.gradient_ages] == [1] * len(parents[i]) * (now > 0)
            for peer, gradient in reversed(step.owed):
                boxes[peer].append((name_of(i), gradient))
    return [learner.component.state_dict() for learner in learners]


def taken(boxes: dict[str, list[tuple[str, Message]]], index: int) -> Iterator[tuple[str, Message]]:
    """What lies in a box now, and an empty box after."""
    come, boxes[name_of(index)] = boxes[name_of(index)], []
    yield from come


def give(
    learner: Learner, boxes: dict[str, list[tuple[str, Message]]], index: int, sender: str, message: Message, now: int
) -> None:
    """Answer what was asked, keep what was answered."""
    if isinstance(message, Activation):
        boxes[sender].append((name_of(index), learner.answer(sender, message, now)))
    else:
        learner.keep(Letter(sender, message), now)


@pytest.mark.parametrize(
    ("graph", "settings", "steps"),
    [
        ("ring", ("train.batch_size=32",), STEPS),
        ("chain", ("train.batch_size=32",), STEPS),
        ("kgraph", ("loss.distance=cosine", "train.batch_size=32"), 20),
        ("[[1,2],[3],[3,0],[]]", ("loss.distance=normalised", "optimiser.name=sgd", "optimiser.lr=0.05"), 20),
        ("ring", ("loss.late=0", "loss.student=0.3", "loss.distill=3", "data.noise=0"), 20),
        ("[[11],[11],[11],[],[],[],[],[],[],[],[11],[0]]", ("n_components=12", "train.batch_size=16"), 10),
    ],
)
def test_lockstep_learners_equal_the_plain_loop_bit_for_bit(graph: str, settings: tuple[str, ...], steps: int) -> None:
    config = load("digits", (f"graph={graph}", "seed=3", *settings), RECIPES)
    expected, found = reference.train(config, steps), house(config, steps)
    assert len(expected) == len(found) == config.n_components
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert list(ours) == list(theirs)
        for name, weight in ours.items():
            assert torch.equal(weight, theirs[name]), f"c{i}.{name} differs"


def test_the_comparison_would_notice_a_difference() -> None:
    base = ("train.batch_size=16", "seed=3")
    plain = reference.train(load("digits", base, RECIPES), 3)
    for change in ("loss.late=0.5", "loss.distill=0.5", "loss.student=0.5", "loss.child=0.5", "seed=4"):
        other = reference.train(load("digits", (*base, change), RECIPES), 3)
        assert any(not torch.equal(plain[0][name], other[0][name]) for name in plain[0]), change


def test_takd_in_lockstep_equals_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("recipe=takd", "n_components=3", "seed=3", "train.batch_size=32", "loss.temperature=3", "data.noise=0")
    config = load("digits", settings, RECIPES)
    plain = load_data(config.data)
    exact = replace(plain, train_inputs=plain.train_inputs.double(), test_inputs=plain.test_inputs.double())
    monkeypatch.setattr(reference, "load", lambda data: exact)
    monkeypatch.setitem(globals(), "load_data", lambda data: exact)
    for module in (reference, assemble):
        monkeypatch.setattr(module, "component_of", lambda *place: component_of(*place).double())
    expected, found = reference.train(config, 50), house(config, 50)
    without = reference.train(load("digits", (*settings, "loss.logits=0"), RECIPES), 50)
    for ours, theirs in zip(found, expected, strict=True):
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6
    assert float((without[0]["joiner.0.weight"] - expected[0]["joiner.0.weight"]).abs().max()) > 1e-3
