"""A head that looks one layer further down: fed by a moving average of the child's first layer (MAN, arXiv 2407.05623).

    f(a)     = mean over children c of layer_c(a), + bias        stands in front of the joiner in place of a
    layer_c ← μⁿ·layer_c + (1 − μⁿ)·layer                        when c shows its layer, n versions after it last did

A local loss sees no further than its own section; through f it also asks what the next section makes of a. f learns
its bias alone: what the child has learnt meanwhile comes with one of its answers, every so many of its versions, and
nothing comes back. In the paper all sections step together and n is 1; n versions at once are the same average of a
layer that had stood still.

Laws: nobody waits: before the first layer came, the child's initial one stands there (its seed is known), and while a
child is gone its last. What comes is judged before it is taken (`mach/sieve.py`). All of it is part of a component's
state. Knows no message, no loss and no optimiser: the layer has no parameters, only buffers.

Shapes: B batch, D numbers of an activation, H of what the layer makes of it, P numbers of the layer.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mach.onto import onto


@runtime_checkable
class Opens(Protocol):
    """An encoder that can show its first layer."""

    def opening(self) -> nn.Module:
        """What it does first with a parent's activation, as a module [B, D] → [B, …, H] with today's weights.

        It takes the activation alone: where x comes along, that part is left out. Its parameters are what is shown.
        """


class Momentum(nn.Module):
    """(a [B, D]) → f(a) [B, H]; for sequences [B, T, …]."""

    shown: Tensor

    def __init__(self, layers: Mapping[str, nn.Module], width: int, decay: float) -> None:
        """`layers`: by child, its first layer as it is in the beginning. `width`: H. `decay`: μ."""
        super().__init__()
        self.decay = decay
        self.names = {child: names_of(layer) for child, layer in layers.items()}
        self.layers = nn.ModuleDict({child: frozen(layer) for child, layer in layers.items()})
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("shown", torch.full((len(layers),), -1))  # [children] versions; −1: nothing yet

    def forward(self, a: Tensor) -> Tensor:
        """[B, D] → [B, H]."""
        parts = [layer(a) for layer in self.layers.values()]
        made: Tensor = parts[0] if len(parts) == 1 else torch.stack(parts).mean(dim=0)
        return made + self.bias

    @property
    def children_names(self) -> tuple[str, ...]:
        """In the order of `shown`."""
        return tuple(self.names)

    def shape(self, child: str) -> torch.Size | None:
        """What `child` must show, [P]; None: it is no child of ours."""
        return torch.Size((sum(each.numel() for each in self._weights(child)),)) if child in self.names else None

    def take(self, child: str, layer: Tensor, version: int) -> None:
        """`child` at this version shows its layer [P], which fits.

        One that went back to an older checkpoint counts by how far: n = |version − the last one|.
        """
        place = list(self.names).index(child)
        approach(self._weights(child), layer, share_of(int(self.shown[place]), version, self.decay))
        tie(self.layers[child], self.names[child])
        self.shown[place] = version

    def _weights(self, child: str) -> list[Tensor]:
        layer = self.layers[child]
        return [layer.get_buffer(name) for name, *_ in self.names[child]]


class Showing:
    """The child's part: what it shows, and when."""

    def __init__(self, weights: Callable[[], list[Tensor]], every: int, *, on: bool) -> None:
        """`weights`: what is shown, as it is today. `every`: versions from one time to the next. `on`: whether anybody
        looks.
        """
        self.weights = weights
        self.every = every
        self.on = on
        self._last: int | None = None

    def due(self, version: int) -> Tensor | None:
        """The weights [P] for the answer about to be given, if it is time; a life begins by showing them."""
        if not self.on or (self._last is not None and version - self._last < self.every):
            return None
        self._last = version
        return flat(self.weights())


def first_layer(component: nn.Module) -> list[Tensor]:
    """Its weights, of a component whose encoder shows it."""
    encoder = component.get_submodule("encoder")
    assert isinstance(encoder, Opens), "the parent's head was built of this very opening"
    return list(encoder.opening().parameters())


def share_of(before: int, version: int, decay: float) -> float:
    """1 − μⁿ: how far an average goes to what is shown n versions after the last time; 1 if there was none."""
    return 1.0 if before < 0 else 1.0 - decay ** abs(version - before)


def approach(weights: Sequence[Tensor], shown: Tensor, share: float) -> None:
    """Move the averages by a share of the way to what was shown [P], all of them one after the other."""
    shown = onto(weights[0].device, shown, weights[0].dtype)
    for weight, part in zip(weights, torch.split(shown, [each.numel() for each in weights]), strict=True):
        weight.lerp_(part.view_as(weight), share)


def flat(weights: Sequence[Tensor]) -> Tensor:
    """[P] a copy of all, one after the other, without graphs."""
    return torch.cat([each.detach().flatten() for each in weights])


def names_of(layer: nn.Module) -> list[list[str]]:
    """Of every parameter, in the order of `parameters()`, its names: of a tied one each, of which a copy of the layer
    (`frozen`) has as many buffers.
    """
    names: dict[int, list[str]] = {}
    for name, weight in layer.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return list(names.values())


def tie(layer: nn.Module, names: Iterable[Sequence[str]]) -> None:
    """Make all buffers of a tied weight what its first one is, the only one that is shown."""
    for first, *others in names:
        for other in others:
            layer.get_buffer(other).copy_(layer.get_buffer(first))


def frozen(layer: nn.Module) -> nn.Module:
    """A copy whose parameters are buffers: part of the state, and nothing that is learnt."""
    layer = copy.deepcopy(layer)
    for name, weight in list(layer.named_parameters(remove_duplicate=False)):
        owner, _, own = name.rpartition(".")
        module = layer.get_submodule(owner)
        delattr(module, own)
        module.register_buffer(own, weight.detach().clone())
    return layer
