"""Networks of one's own, tried out: what could not learn, or would not be what was trained once it is loaded."""

import math
import sys
import types
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from built import build
from configs.errors import ConfigError
from configs.tree import Model
from mach.component import Component
from mach.networks.place import Place

E, K = 8, 5
OWN = Model(family="own:make", embedding=E)
PARTS: dict[str, Any] = {
    "encoder": lambda: nn.Flatten(),
    "joiner": lambda: nn.Linear(4 + E, E),
    "head": lambda: nn.Linear(E, K),
    "student": lambda: nn.Linear(4, E),
}


class Few(nn.Linear):
    """Never answers more than two at once."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:2])


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)
    return module


class Centred(nn.Module):
    """Takes off a running mean, which it keeps in a buffer or in an attribute."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.moves = kept != "constant"
        if kept != "attribute":
            self.register_buffer("mean", torch.zeros(E), persistent=kept == "persistent")
        else:
            self.mean: Any = torch.zeros(E)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.moves:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return x - self.mean


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ("persistent", ""),
        ("constant", ""),
        ("passing", r"its buffer (joiner|head)\.\d\.mean \(persistent=False\) changes .*: leave out persistent=False$"),
        ("attribute", r"something that is no buffer, .*: register_buffer what must last$"),
    ],
)
def test_what_changes_in_training_and_is_in_no_state_dict_is_refused(
    own: types.ModuleType, kept: str, said: str, part: int
) -> None:
    """What is loaded or resumed would compute something else. Also where zeros would not change it."""
    ends = [nn.Linear(4, E, bias=False), nn.Linear(E, K, bias=False)]
    ends[part] = nn.Sequential(*(ends[part], Centred(kept))[:: 1 - 2 * part])
    own.__dict__["make"] = lambda place: Component(nn.Flatten(), *ends, {})
    drawn = torch.get_rng_state()
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        build(OWN, (4,), K)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_one_that_always_draws_from_its_own_generator_is_not_refused(own: types.ModuleType) -> None:
    class Noisy(nn.Linear):
        drawn = 0

        def forward(self, x: Tensor) -> Tensor:
            self.drawn += 1
            return super().forward(x) + torch.randn(E, generator=torch.Generator().manual_seed(self.drawn))

    own.__dict__["make"] = lambda place: Component(nn.Flatten(), Noisy(4, E), nn.Linear(E, K), {})
    build(OWN, (4,), K)


class Detached(nn.Linear):
    """Learns nothing, and hides what is before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Blind(nn.Linear):
    """Keeps no graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


@pytest.mark.parametrize("part", list(PARTS))
def test_a_part_with_weights_that_could_never_learn_is_refused_and_may_be_frozen(
    own: types.ModuleType, part: str
) -> None:
    wide = {"encoder": (4, 4), "joiner": (4 + E, E), "head": (E, K), "student": (4, E)}

    def make(place: Place, *, freezes: bool = False) -> Component:
        blind: nn.Module = (Detached if part == "head" else Blind)(*wide[part])
        parts = {name: each() for name, each in PARTS.items()} | {part: blind.requires_grad_(not freezes)}
        return Component(parts["encoder"], parts["joiner"], parts["head"], {"c1": parts["student"]})

    own.__dict__["make"] = make
    with pytest.raises(ConfigError, match=rf"what the {part}.* gives has no gradient, though .*: leave torch\.no_grad"):
        build(OWN, (4,), K, ("c1",))
    own.__dict__["make"] = partial(make, freezes=True)
    with pytest.raises(ConfigError, match="the head gives") if part == "head" else nullcontext():
        build(OWN, (4,), K, ("c1",))


class First(nn.Module):
    """As many as asked for of what comes."""

    def __init__(self, many: int) -> None:
        super().__init__()
        self.many = many

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.many]


def frozen(component: Component) -> Component:
    return component.requires_grad_(requires_grad=False)


def spoilt(component: Component) -> Component:
    nn.init.constant_(component.head.bias, math.nan)  # type: ignore[arg-type]
    return component


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda *parts: Component(nn.Flatten(), First(E), First(K), {}), "no part has weights, so that it would learn"),
        (lambda *parts: frozen(Component(*parts, {})), "all of its weights are frozen, so that it would learn nothing"),
        (lambda *parts: spoilt(Component(*parts, {})), "its weight head.bias is not finite before the first step"),
    ],
)
def test_a_network_that_nothing_could_be_learnt_with_is_refused(own: types.ModuleType, make: Any, said: str) -> None:
    own.__dict__["make"] = lambda place: make(nn.Flatten(), nn.Linear(9, E), nn.Linear(E, K))
    with pytest.raises(ConfigError, match=f"'own:make' makes no component c0 that works: {said}"):
        build(OWN, (9,), K)


def test_a_section_without_a_loss_of_its_own_may_be_frozen(own: types.ModuleType) -> None:
    own.__dict__["make"] = lambda place: frozen(Component(nn.Flatten(), nn.Linear(4, E), nn.Linear(E, K), {}))
    assert build(OWN, (4,), K, judged=False).training


@pytest.mark.parametrize(
    ("rows", "head", "said"),
    [
        (
            1,
            nn.BatchNorm1d(E),
            r"a batch of 1 \(train\.batch_size\) the head does not take \[1, 8\]: Expected more than 1 value per",
        ),
        (
            3,
            Few(E, K),
            r"in training with a batch of 3 \(train\.batch_size\) the head gives \[2, 5\] for \[3, 8\], where",
        ),
        (2, nn.Sequential(nn.BatchNorm1d(E), Few(E, K)), ""),
    ],
)
def test_a_batch_is_tried_out_that_is_as_large_as_in_training(
    own: types.ModuleType, rows: int, head: nn.Module, said: str
) -> None:
    ends = nn.Linear(4, E), nn.Sequential(head, nn.Linear(E, K) if isinstance(head, nn.BatchNorm1d) else nn.Identity())
    own.__dict__["make"] = lambda place: Component(nn.Flatten(), *ends, {})
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        build(OWN, (4,), K, rows=rows)


class Skipped(nn.Module):
    """Stochastic depth: by chance it lets through what came."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.body = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand(()) < 0.5 else x + self.body(x)


class Clipped(nn.Linear):
    """Clips the gradient that passes it."""

    def forward(self, x: Tensor) -> Tensor:
        e = super().forward(x)
        if self.training:
            e.register_hook(lambda g: g.clamp(-1, 1))
        return e


class Rates(nn.Module):
    """Draws spikes: takes nothing but rates from 0 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bernoulli(x.flatten(1))


class Late(nn.Module):
    """A scale that is None until the first batch."""

    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = x.detach().mean(dim=0) + 1
        return x if self.scale is None else x * self.scale


class Aside(nn.Linear):
    """A layer more, in training alone, which gets its shape there."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.aside = nn.LazyLinear(size)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.aside(x) if self.training else 0)


@pytest.mark.parametrize("seed", range(6))
def test_what_passes_layers_over_by_chance_is_not_taken_for_what_has_no_gradient(
    own: types.ModuleType, seed: int
) -> None:
    own.__dict__["make"] = lambda place: Component(Skipped(4), nn.Linear(4, E), nn.Linear(E, K), {})
    torch.manual_seed(seed)
    build(OWN, (4,), K)


@pytest.mark.parametrize(("encoder", "joiner"), [(Rates, nn.Linear), (nn.Flatten, Clipped)])
def test_what_takes_rates_alone_or_hooks_a_gradient_is_tried_with_what_it_would_get(
    own: types.ModuleType, encoder: Any, joiner: Any
) -> None:
    own.__dict__["make"] = lambda place: Component(encoder(), joiner(4, E), nn.Linear(E, K), {})
    build(OWN, (4,), K)


@pytest.mark.parametrize(
    ("joiner", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(4, E), Late()), r"its buffer joiner\.1\.scale \(persistent=False\) changes"),
        (lambda: nn.Sequential(nn.Linear(4, E), Aside(E)), r"joiner\.1\.aside\.weight has no shape yet: let something"),
    ],
)
def test_what_gets_its_shape_in_training_alone_is_one_sentence(own: types.ModuleType, joiner: Any, said: str) -> None:
    own.__dict__["make"] = lambda place: Component(nn.Flatten(), joiner(), nn.Linear(E, K), {})
    with pytest.raises(ConfigError, match=said):
        build(OWN, (4,), K)
