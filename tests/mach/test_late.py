"""Late gradients in a learner: stash against the weights of then, recompute against today's, policies at work."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from built import build
from configs.tree import Loss, Method, Model, Staleness
from mach.component import Component
from mach.late import Stash
from mach.learner import Learner
from mach.messages import Activation, Batch, Gradient, Letter

B, E, K, W, LR = 4, 6, 3, 2, 0.1
CPU = torch.device("cpu")


def learner_with(staleness: Staleness | None = None, method: Method | None = None, loss: Loss | None = None) -> Learner:
    """Without children, in float64, under plain SGD: its weights move by −lr·∂L/∂w."""
    torch.manual_seed(0)
    component = build(Model(embedding=E, joiner=(8,)), (5,), K).double()
    optimiser = torch.optim.SGD(component.parameters(), lr=LR)
    return Learner(
        component,
        optimiser,
        loss or Loss(),
        window=W,
        device=CPU,
        sample_shape=(5,),
        staleness=staleness,
        method=method,
    )


def batch(id: int) -> Batch:
    generator = torch.Generator().manual_seed(id)
    inputs = torch.randn(B, 5, generator=generator, dtype=torch.float64)
    return Batch(id, inputs, torch.randint(K, (B,), generator=generator))


def g_of(id: int) -> Tensor:
    return torch.randn(B, E, generator=torch.Generator().manual_seed(100 + id), dtype=torch.float64)


def asked(learner: Learner, id: int) -> Tensor:
    """Answer a parent's question; the input that it was about."""
    x = batch(1000 + id).inputs
    assert learner.answer("c0", Activation(id, 0, x), 0.0) is not None
    return x


def pay(learner: Learner, id: int) -> None:
    learner.keep(Letter("c0", Gradient(id, 0, g_of(id))), 0.0)


def own_gradient(component: Component, b: Batch) -> list[Tensor]:
    loss = F.cross_entropy(component.head(component.joiner(b.inputs)), b.labels)
    return list(torch.autograd.grad(loss, list(component.parameters())))


def late_gradient(component: Component, x: Tensor, g: Tensor) -> list[Tensor]:
    pulled = (component.joiner(x) * g).sum()
    found = torch.autograd.grad(pulled, list(component.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if each is None else each for p, each in zip(component.parameters(), found, strict=True)
    ]


def moved(learner: Learner, before: Component) -> list[Tensor]:
    """The gradient of the step just made."""
    rows = zip(before.parameters(), learner.component.parameters(), strict=True)
    return [(old - new).detach() / LR for old, new in rows]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def added(*parts: list[Tensor]) -> list[Tensor]:
    return [torch.stack(rows).sum(dim=0) for rows in zip(*parts, strict=True)]


def times(part: list[Tensor], factor: float) -> list[Tensor]:
    return [factor * each for each in part]


@pytest.mark.parametrize("late", ["stash", "recompute"])
def test_a_late_gradient_meets_the_weights_that_its_way_says_after_steps_taken_meanwhile(late: str) -> None:
    learner = learner_with(Staleness(late=late))  # type: ignore[arg-type]
    inputs, then = {}, {}
    for id in range(3):  # three answers, each of other weights
        then[id] = copy.deepcopy(learner.component)
        inputs[id] = asked(learner, id)
        learner.step(batch(id), 0.0)
    for id in (1, 0):  # two come back, in another order, after one more step
        pay(learner, id)
    today = copy.deepcopy(learner.component)
    learner.step(batch(9), 0.0)
    nets = then if late == "stash" else dict.fromkeys(then, today)
    expected = added(own_gradient(today, batch(9)), *(late_gradient(nets[id], inputs[id], g_of(id)) for id in (0, 1)))
    assert_equal(moved(learner, today), expected)


def test_copies_of_weights_live_as_long_as_answers_that_are_owed_a_gradient() -> None:
    learner = learner_with(Staleness(late="stash"))
    way = learner.late
    assert isinstance(way, Stash)
    for id in range(3):
        asked(learner, id)
        asked(learner, 10 + id)
        learner.step(batch(id), 0.0)
    assert way.copies == 3, "one a version, however many answers"
    for id in (0, 10, 1):
        pay(learner, id)
    learner.step(batch(9), 0.0)
    assert way.copies == 2
    for id in range(100, 200):
        asked(learner, id)
        learner.step(batch(id), 0.0)
    assert way.copies <= learner.memory.capacity + 1


def test_bound_refuses_what_is_too_late_and_the_step_goes_on_without_it() -> None:
    learner = learner_with(Staleness(policies=("bound",), max_versions=1))
    for id in range(3):
        asked(learner, id)
        learner.step(batch(id), 0.0)
    x = asked(learner, 3)
    for id in (0, 3):
        pay(learner, id)
    today = copy.deepcopy(learner.component)
    step = learner.step(batch(9), 0.0)
    assert step is not None
    assert [age.versions for age in step.gradient_ages] == [3, 0]
    assert_equal(moved(learner, today), added(own_gradient(today, batch(9)), late_gradient(today, x, g_of(3))))
    assert learner.staleness.counts == {"bound": 1}


def test_discount_and_shrink_scale_the_late_gradient_alone() -> None:
    learner = learner_with(Staleness(policies=("discount", "shrink"), power=1.0, shrink=0.5))
    x = asked(learner, 0)
    for id in range(4):
        learner.step(batch(id), 0.0)
    pay(learner, 0)
    today = copy.deepcopy(learner.component)
    learner.step(batch(9), 0.0)
    late = times(late_gradient(today, x, g_of(0)), 0.25 * 0.5)
    assert_equal(moved(learner, today), added(own_gradient(today, batch(9)), late))


def test_accumulate_waits_for_as_many_and_uses_their_mean() -> None:
    learner = learner_with(Staleness(policies=("accumulate",), accumulate=2))
    inputs = [asked(learner, id) for id in range(3)]
    pay(learner, 0)
    step = learner.step(batch(0), 0.0)
    assert step is not None
    assert not step.gradient_ages
    pay(learner, 1)
    pay(learner, 2)
    today = copy.deepcopy(learner.component)
    learner.step(batch(9), 0.0)
    late = [times(late_gradient(today, inputs[id], g_of(id)), 0.5) for id in (0, 1)]
    assert_equal(moved(learner, today), added(own_gradient(today, batch(9)), *late))
    assert learner.staleness.counts == {"accumulate": 1}
    assert len(learner.memory.late) == 1


def test_clip_holds_the_late_gradients_norm_down_to_the_own_ones() -> None:
    learner = learner_with(Staleness(policies=("clip",), clip=0.5), loss=Loss(late=100.0))
    x = asked(learner, 0)
    pay(learner, 0)
    today = copy.deepcopy(learner.component)
    learner.step(batch(9), 0.0)
    own, late = own_gradient(today, batch(9)), times(late_gradient(today, x, g_of(0)), 100.0)
    norms = [float(torch.cat([each.flatten() for each in part]).norm()) for part in (own, late)]
    assert norms[1] > norms[0]
    assert_equal(moved(learner, today), added(own, times(late, 0.5 * norms[0] / norms[1])))


def test_compensate_brings_a_stashed_gradient_to_todays_weights() -> None:
    learner = learner_with(Staleness(late="stash", policies=("compensate",), compensate=0.3))
    then = copy.deepcopy(learner.component)
    x = asked(learner, 0)
    for id in range(3):
        learner.step(batch(id), 0.0)
    pay(learner, 0)
    today = copy.deepcopy(learner.component)
    learner.step(batch(9), 0.0)
    rows = zip(late_gradient(then, x, g_of(0)), today.parameters(), then.parameters(), strict=True)
    late = [g + 0.3 * g * g * (now - old).detach() for g, now, old in rows]
    assert_equal(moved(learner, today), added(own_gradient(today, batch(9)), late))


def test_predict_answers_with_weights_of_the_future() -> None:
    learner = learner_with(Staleness(policies=("predict",)))
    asked(learner, 0)
    for id in range(2):
        before = copy.deepcopy(learner.component)
        learner.step(batch(id), 0.0)
    pay(learner, 0)
    before = copy.deepcopy(learner.component)
    learner.step(batch(2), 0.0)  # E[τ] is 2 now
    future = copy.deepcopy(learner.component)
    with torch.no_grad():
        for to, old in zip(future.parameters(), before.parameters(), strict=True):
            to += 2.0 * (to - old)
    x = batch(77).inputs
    answer = learner.answer("c0", Activation(77, 0, x), 0.0)
    assert answer is not None
    torch.testing.assert_close(answer.embedding, future.joiner(x).detach(), rtol=1e-12, atol=1e-12)
    assert learner.staleness.counts == {"predict": 1}


def test_with_update_every_k_a_step_is_the_mean_of_k_batches_and_the_version_counts_steps() -> None:
    learner = learner_with(method=Method(update_every=3))
    today = copy.deepcopy(learner.component)
    versions, updated = [], []
    for id in range(3):
        step = learner.step(batch(id), 0.0)
        assert step is not None
        versions.append(step.version)
        updated.append(step.updated)
    assert (versions, updated) == ([0, 0, 1], [False, False, True])
    assert_equal(moved(learner, today), times(added(*(own_gradient(today, batch(id)) for id in range(3))), 1 / 3))


def test_gradients_gathered_so_far_go_on_with_the_state() -> None:
    first, second = learner_with(method=Method(update_every=2)), learner_with(method=Method(update_every=2))
    first.step(batch(0), 0.0)
    second.restore(first.state(0.0), 0.0)
    for learner in (first, second):
        learner.step(batch(1), 0.0)
        assert learner.version == 1
    assert_equal(list(first.component.parameters()), list(second.component.parameters()))


def test_what_is_examined_may_be_a_moving_average_of_the_weights() -> None:
    plain = learner_with()
    assert plain.examined is plain.component
    torch.manual_seed(0)
    component = build(Model(embedding=E, joiner=(8,)), (5,), K).double()
    optimiser = torch.optim.SGD(component.parameters(), lr=LR)
    learner = Learner(component, optimiser, Loss(), window=W, device=CPU, sample_shape=(5,), average=0.75)
    expected: Tensor | None = None
    for id in range(4):
        learner.step(batch(id), 0.0)
        weight = component.head.weight.detach().clone()
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    assert expected is not None
    assert not torch.equal(learner.examined.head.weight, component.head.weight)
    torch.testing.assert_close(learner.examined.head.weight.detach(), expected, rtol=1e-12, atol=1e-12)
    other = Learner(copy.deepcopy(component), optimiser, Loss(), window=W, device=CPU, sample_shape=(5,), average=0.75)
    other.restore(learner.state(0.0), 0.0)
    torch.testing.assert_close(other.examined.head.weight.detach(), expected, rtol=1e-12, atol=1e-12)
