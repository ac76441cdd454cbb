"""Two optimisers on one component: equal to a plain loop that steps them by hand, own loss first, then late ones."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from built import build
from configs.tree import Loss, Method, Model, Optimiser, Staleness
from mach.component import Component
from mach.learner import Learner
from mach.messages import Activation, Batch, Gradient, Letter
from mach.optimisers import optimiser_of, optimiser_of_late

B, E, K, W = 4, 6, 3, 4
STEPS = 12


def component() -> Component:
    torch.manual_seed(0)
    return build(Model(embedding=E, joiner=(8,)), (5,), K).double()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(id: int) -> Batch:
    return Batch(id, drawn(id, B, 5), torch.randint(K, (B,), generator=torch.Generator().manual_seed(id)))


def learner_of(settings: Optimiser, method: Method | None = None, staleness: Staleness | None = None) -> Learner:
    net = component()
    return Learner(
        net,
        optimiser_of(settings, net),
        Loss(),
        window=W,
        device=torch.device("cpu"),
        sample_shape=(5,),
        method=method,
        staleness=staleness,
        apart=optimiser_of_late(settings, net),
    )


def is_late(id: int) -> bool:
    """Whether a late gradient is used in this step: not in every one."""
    return id % 3 != 0


def house(learner: Learner) -> Component:
    for id in range(STEPS):
        learner.answer("c0", Activation(id, 0, drawn(100 + id, B, 5)), 0.0)
        if is_late(id):
            learner.keep(Letter("c0", Gradient(id - 1, 0, drawn(200 + id, B, E))), 0.0)
        learner.step(batch(id), 0.0)
    return learner.component


def plain(settings: Optimiser, every: int = 1, late_at: str = "recompute") -> Component:
    """The same by hand: two lists of gradients, two optimisers of torch's, the second without decay."""
    net = component()
    first, second = optimiser_of(settings, net), torch_optimiser(settings, net)
    weights = list(net.parameters())
    own, late = ([torch.zeros_like(each) for each in weights] for _ in range(2))
    came = False
    answered: Component | None = None
    for id in range(STEPS):
        loss = F.cross_entropy(net.head(net.joiner(batch(id).inputs)), batch(id).labels)
        own = [a + b for a, b in zip(own, torch.autograd.grad(loss, weights), strict=True)]
        if is_late(id):
            met = net if late_at == "recompute" else answered
            assert met is not None
            pulled = (met.joiner(drawn(100 + id - 1, B, 5)) * drawn(200 + id, B, E)).sum()
            found = torch.autograd.grad(pulled, list(met.parameters()), allow_unused=True)
            late = [a if b is None else a + b for a, b in zip(late, found, strict=True)]
            came = True
        answered = copy.deepcopy(net)
        if (id + 1) % every == 0:
            step(first, weights, [each / every for each in own])
            if came:
                step(second, weights, [each / every for each in late])
            own, late = ([torch.zeros_like(each) for each in weights] for _ in range(2))
            came = False
    return net


def torch_optimiser(settings: Optimiser, net: Component) -> torch.optim.Optimizer:
    if settings.name == "sgd":
        return torch.optim.SGD(
            net.parameters(), lr=settings.lr, momentum=0.9 if settings.momentum is None else settings.momentum
        )
    return torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=0.0)


def step(optimiser: torch.optim.Optimizer, weights: list[Tensor], gradients: list[Tensor]) -> None:
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimiser.step()


def assert_same(one: Component, other: Component) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("late", ["recompute", "stash"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_late_gradients_have_moments_of_their_own(name: str, late: str) -> None:
    settings = Optimiser(name=name, lr=0.05, weight_decay=0.1, separate_late=True)  # type: ignore[arg-type]
    found = house(learner_of(settings, staleness=Staleness(late=late)))  # type: ignore[arg-type]
    assert_same(found, plain(settings, late_at=late))
    together = house(learner_of(Optimiser(name=name, lr=0.05, weight_decay=0.1)))  # type: ignore[arg-type]
    assert not torch.equal(found.head.weight, together.head.weight)


def test_of_what_is_gathered_each_gets_its_mean() -> None:
    settings = Optimiser(lr=0.05, separate_late=True)
    assert_same(house(learner_of(settings, Method(update_every=4))), plain(settings, 4))


def test_plain_descent_makes_no_difference_between_one_and_two() -> None:
    one, two = (
        Optimiser(name="sgd", lr=0.05, momentum=0.0, weight_decay=0.0, separate_late=apart) for apart in (False, True)
    )
    assert_same(house(learner_of(one)), house(learner_of(two)))


@pytest.mark.parametrize("name", ["adamw", "sgd", "nadam", "muon"])
def test_without_an_own_loss_only_the_late_gradients_step(name: str) -> None:
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9")
    learner = learner_of(Optimiser(name=name, lr=0.05, separate_late=True))  # type: ignore[arg-type]
    net, before = learner.component, copy.deepcopy(learner.component)
    pulled = (net.joiner(drawn(1, B, 5)) * drawn(2, B, E)).sum()
    learner.descent.down(None, pulled)
    assert learner.version == 1
    assert not learner.optimiser.state_dict()["state"]
    assert not torch.equal(next(net.joiner.parameters()), next(before.joiner.parameters()))


@pytest.mark.parametrize("settings", [{}, {"late": "stash", "policies": ("predict", "compensate", "clip")}])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("part", ["joiner", ""])
def test_what_is_frozen_is_left_alone_and_the_rest_learns(part: str, apart: bool, settings: dict[str, Any]) -> None:
    """Late gradients then have nowhere to go, and where all is frozen the own ones neither; nor does it decay."""
    learner = learner_of(
        Optimiser(lr=0.05, weight_decay=0.1, separate_late=apart), Method(update_every=2), Staleness(**settings)
    )
    net, before = learner.component, copy.deepcopy(learner.component)
    net.get_submodule(part).requires_grad_(requires_grad=False)
    house(learner)
    assert learner.version == STEPS // 2
    assert_same(net.joiner, before.joiner)
    assert torch.equal(net.head.weight, before.head.weight) != bool(part)


def test_the_rate_of_both_follows_the_schedule() -> None:
    learner = learner_of(Optimiser(lr=0.05, separate_late=True))
    learner.descent.schedule = lambda version: 0.5 / (1 + version)
    house(learner)
    apart = learner.descent.apart
    assert apart is not None
    assert [group["lr"] for each in (learner.optimiser, apart) for group in each.param_groups] == [0.5 / STEPS] * 2
