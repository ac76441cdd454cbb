"""Answers from further down: what is in them, when they are given, who is paid for them, and that nobody waits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from built import build
from configs.tree import Loss, Method, Model, Staleness
from mach.component import Component
from mach.deep import DEEP_IDS, Deep
from mach.learner import Learner
from mach.memory import MEMORY
from mach.messages import Activation, Age, Batch, Gradient, Letter, Target

B, E, K, W, LR, PATIENCE_S = 4, 6, 3, 2, 0.1, 3.0
CPU = torch.device("cpu")


def component_with(*children: str, seed: int) -> Component:
    torch.manual_seed(seed)
    return build(Model(embedding=E, joiner=(8,), student=(8,)), (5,), K, children).double()


def learner_with(*children: str, seed: int = 0, depth: int = 0, late: str = "recompute") -> Learner:
    """Under plain SGD: its weights move by −lr·∂L/∂w."""
    component = component_with(*children, seed=seed)
    return Learner(
        component,
        torch.optim.SGD(component.parameters(), lr=LR),
        Loss(),
        window=W,
        device=CPU,
        sample_shape=(5,),
        method=Method(depth=depth),
        staleness=Staleness(late=late),  # type: ignore[arg-type]
        patience_s=PATIENCE_S,
    )


def batch(id: int) -> Batch:
    generator = torch.Generator().manual_seed(id)
    inputs = torch.randn(B, 5, generator=generator, dtype=torch.float64)
    return Batch(id, inputs, torch.randint(K, (B,), generator=generator))


def join(component: Component, x: Tensor, d: Tensor | None = None) -> Tensor:
    """e over a child's answer, or over the student."""
    (student,) = component.students.values()
    return component.joiner(torch.cat([x, student(x) if d is None else d], 1))  # type: ignore[no-any-return]


def keep(learner: Learner, child: str, message: Target, now: float = 0.0) -> None:
    learner.keep(Letter(child, message, Age(0, 0.0)), now)


def test_an_answer_two_levels_down_is_over_the_true_answers_and_comes_when_they_have() -> None:
    c0, c1, c2, c3 = (
        learner_with(*([f"c{i + 1}"] if i < 3 else []), seed=i, depth=2 if i == 0 else 0) for i in range(4)
    )
    b = batch(7)
    asked = c0.ask(b)
    assert asked.depth == 2
    assert c1.answer("c0", asked, 0.0) is None
    on = c1.deep.ask("c2", c1.version, 0.0)
    assert on is not None
    assert (on.depth, on.owes, on.id) == (1, True, DEEP_IDS)
    assert c1.deep.ask("c2", c1.version, 0.0) is None
    assert c2.answer("c1", on, 0.0) is None
    last = c2.deep.ask("c3", c2.version, 0.0)
    assert last is not None
    assert last.depth == 0
    told = c3.answer("c2", last, 0.0)
    assert told is not None
    assert c1.due(0.1) == c2.due(0.1) == []
    keep(c2, "c3", told)
    ((peer, second),) = c2.due(0.1)
    assert (peer, second.id) == ("c1", on.id)
    c1.step(batch(50), 0.1)  # it goes on meanwhile, and answers with the weights of then
    keep(c1, "c2", second)
    ((peer, first),) = c1.due(0.1)
    assert (peer, first.id, first.version) == ("c0", asked.id, 1)
    e2 = join(c2.component, b.inputs, c3.component.joiner(b.inputs))
    torch.testing.assert_close(first.embedding, join(c1.component, b.inputs, e2))
    assert c1.due(99.0) == []


@pytest.mark.parametrize("late", ["recompute", "stash"])
def test_a_late_gradient_of_it_trains_us_and_pays_those_who_were_asked(late: str) -> None:
    learner, twin = learner_with("c2", late=late), component_with("c2", seed=0)
    x, d = batch(1000).inputs, torch.randn(B, E, dtype=torch.float64)
    assert learner.answer("c0", Activation(4, 0, x, depth=1), 0.0) is None
    on = learner.deep.ask("c2", 0, 0.0)
    assert on is not None
    keep(learner, "c2", Target(on.id, 9, d))
    assert len(learner.due(0.0)) == 1
    g = torch.randn(B, E, dtype=torch.float64)
    learner.keep(Letter("c0", Gradient(4, 0, g)), 0.0)
    b = batch(1)
    step = learner.step(b, 0.0)
    assert step is not None
    leaf = d.clone().requires_grad_()
    own = F.cross_entropy(twin.head(join(twin, b.inputs)), b.labels)
    *expected, owed = torch.autograd.grad(own + (join(twin, x, leaf) * g).sum(), [*twin.parameters(), leaf])
    for new, old, wanted in zip(learner.component.parameters(), twin.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / LR, wanted, rtol=1e-6, atol=1e-9)
    ((child, paid),) = step.owed
    assert isinstance(paid, Gradient)
    assert (child, paid.id, paid.of_version) == ("c2", on.id, 9)
    torch.testing.assert_close(paid.gradient, owed)


def test_one_that_takes_too_long_is_given_with_the_student_and_what_comes_then_is_forgotten() -> None:
    learner = learner_with("c2")
    x = batch(1000).inputs
    for id, depth in ((1, 1), (2, 2)):
        assert learner.answer("c0", Activation(id, 0, x, depth=depth), 10.0) is None
    on = learner.deep.ask("c2", 0, 0.0)
    assert on is not None
    assert learner.due(10.0 + PATIENCE_S / 2 - 0.01) == []
    ((parent, answer),) = learner.due(10.0 + PATIENCE_S / 2)  # before it would be too late for the parent
    assert (parent, answer.id) == ("c0", 1)
    torch.testing.assert_close(answer.embedding, join(learner.component, x))
    keep(learner, "c2", Target(on.id, 0, torch.zeros(B, E, dtype=torch.float64)))
    assert learner.forgotten == {"target": 1}
    assert [answer.id for _, answer in learner.due(10.0 + PATIENCE_S * 2 / 3)] == [2]


def test_one_of_two_children_is_enough_to_be_heard() -> None:
    learner = learner_with("c1", "c2")
    x, d = batch(1000).inputs, torch.randn(B, E, dtype=torch.float64)
    learner.answer("c0", Activation(1, 0, x, depth=1), 0.0)
    asked = {child: learner.deep.ask(child, 0, 0.0) for child in ("c1", "c2")}
    assert asked["c2"] is not None
    keep(learner, "c2", Target(asked["c2"].id, 0, d))
    assert learner.due(0.0) == []
    ((_, answer),) = learner.due(PATIENCE_S)
    net = learner.component
    torch.testing.assert_close(answer.embedding, net.embed(x, {**net.imitate(x), "c2": d}))


def test_answers_that_are_none_are_not_put_in() -> None:
    learner = learner_with("c2")
    learner.answer("c0", Activation(1, 0, batch(1000).inputs, depth=1), 0.0)
    good = torch.zeros(B, E, dtype=torch.float64)
    keep(learner, "c2", Target(DEEP_IDS, 0, good))  # not asked yet
    on = learner.deep.ask("c2", 0, 0.0)
    assert on is not None
    keep(learner, "c9", Target(on.id, 0, good))
    for bad in (good[1:], good[:, 1:], torch.full_like(good, torch.nan)):
        keep(learner, "c2", Target(on.id, 0, bad))
    assert learner.due(0.0) == []
    assert learner.forgotten == {"target": 2}
    assert learner.unfit == {"target": 3}
    keep(learner, "c2", Target(on.id, 0, good))
    keep(learner, "c2", Target(on.id, 0, good))
    assert len(learner.due(0.0)) == 1
    assert learner.forgotten == {"target": 3}


def test_what_cannot_be_asked_on_is_answered_at_once() -> None:
    x = batch(1000).inputs
    assert learner_with().answer("c0", Activation(1, 0, x, depth=3), 0.0) is not None  # no children
    learner = learner_with("c2")
    assert learner.answer("c0", Activation(1, 0, x), 0.0) is not None  # law 2
    spoilt = x.clone()
    spoilt[0, 0] = torch.inf
    assert learner.answer("c0", Activation(2, 0, spoilt, depth=1), 0.0) is None
    assert learner.unfit == {"activation": 1}
    assert learner.deep.ask("c2", 0, 0.0) is None  # nor is it handed on
    assert learner.answer("c0", Activation(3, 0, x, depth=1), 0.0) is None
    learner.deep.close()
    assert [answer.id for _, answer in learner.due(0.0)] == [3]
    assert learner.answer("c0", Activation(4, 0, x, depth=1), 0.0) is not None


def test_numbers_that_only_add_up_to_infinity_are_asked_on() -> None:
    learner = learner_with("c2")
    big = torch.zeros(B, 5, dtype=torch.float64)
    big[0, :2] = 1.5e308
    assert learner.answer("c0", Activation(1, 0, big, depth=1), 0.0) is None
    assert learner.deep.busy
    assert not learner.unfit


def test_nothing_has_to_be_kept_in_mind_until_somebody_wants_to_go_deeper() -> None:
    assert learner_with("c2", depth=1).deep.on
    learner = learner_with("c2")
    x = batch(1000).inputs
    learner.ask(batch(1))
    learner.answer("c0", Activation(1, 0, x), 0.0)
    keep(learner, "c2", Target(DEEP_IDS, 0, x))  # of an errand of an earlier life
    assert learner.forgotten == {"target": 1}
    assert not learner.deep.on
    learner.answer("c0", Activation(2, 0, x, depth=1), 0.0)
    assert learner.deep.on


def test_errands_are_bounded_by_the_window_and_the_oldest_gives_way() -> None:
    learner = learner_with("c2")
    x = batch(1000).inputs
    for id in range(MEMORY * W + 3):
        learner.answer("c0", Activation(id, 0, x, depth=1), 0.0)
    assert [answer.id for _, answer in learner.due(0.0)] == [0, 1, 2]
    asked = 0
    while learner.deep.ask("c2", 0, 0.0) is not None:
        asked += 1
    assert asked == MEMORY * W


def test_ids_of_errands_are_no_others() -> None:
    deep = Deep(("c1",), 1, 2, 1.0)
    target = torch.zeros(B, E)
    assert [deep.owns(Target(id, 0, target)) for id in (0, DEEP_IDS - 1, DEEP_IDS, 2 * DEEP_IDS)] == [
        False,
        False,
        True,
        False,
    ]


def test_deeper_questions_leave_places_to_shallower_ones_until_they_are_answered_or_given_up() -> None:
    deep = Deep(("c1",), 3, 12, 1.0)
    assert [deep.room("c1", depth, 0.0) for depth in (0, 1, 2, 3)] == [True, True, True, False]
    deep.went("c1", 7, 2, 0.0)
    assert [deep.room("c1", depth, 0.0) for depth in (0, 1, 2)] == [True, True, False]
    deep.went("c1", 8, 1, 0.5)
    assert [deep.room("c1", depth, 0.5) for depth in (0, 1, 2)] == [True, False, False]
    deep.back("c1", 8)
    assert deep.room("c1", 1, 0.9)
    assert not deep.room("c1", 2, 0.9)
    assert deep.room("c1", 2, 1.0)
