"""Multilayer perceptrons for x of any shape.

    skip     x itself, flattened, is the activation; the joiner does the work
    stream   every encoder is a perceptron of the joiner's hidden widths, from what comes to an activation [B, E]

Every embedding, the student's imitation too, ends in a LayerNorm without weights: embeddings then keep their
scale while their makers move on, which is what makes staleness harmless (measured; see configs/digits.yaml).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from mach.component import Component
from mach.networks.place import Place


def mlp(place: Place) -> Component:
    """A component of perceptrons: joiner D + E·children → E, student D → E, head E → K.

    Raises:
        ConfigError: the data are symbols, which are no quantities to be multiplied.
    """
    if place.symbols:
        raise ConfigError("model.family: mlp takes quantities, and the data are symbols; choose transformer")
    model, width = place.model, place.model.embedding
    encoder: nn.Module = nn.Flatten()
    features = place.features
    if place.wiring == "stream":
        encoder, features = Section(place), width
    return Component(
        encoder=encoder,
        joiner=perceptron(place.joined(features) + width * len(place.children), model.joiner, width),
        head=nn.Linear(width, place.classes),
        students={child: perceptron(features, model.student, width) for child in place.children},
    )


class Section(nn.Module):
    """[B, ...] x or a parent's activation, and x where it comes along → a [B, E]."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        features = place.features if place.incoming is None else math.prod(place.incoming)
        if place.context and place.incoming is not None:
            features += place.features
        self.net = perceptron(features, place.model.joiner, place.model.embedding)
        self.own = features if place.incoming is None else math.prod(place.incoming)

    def forward(self, *come: Tensor) -> Tensor:
        """One tensor, or a parent's activation and x."""
        a: Tensor = self.net(torch.cat([each.flatten(1) for each in come], dim=1))
        return a

    def opening(self) -> nn.Module:
        """The first Linear, of it the columns for the activation, and what follows it."""
        first, after = self.net[0], self.net[1]
        assert isinstance(first, nn.Linear)
        if first.in_features > self.own:
            whole, first = first, nn.Linear(self.own, first.out_features, device="meta")
            first.weight = nn.Parameter(whole.weight[:, : self.own].detach())
            first.bias = whole.bias
        return nn.Sequential(first, after)


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear and GELU for every hidden width, a last Linear, LayerNorm without weights; over the last dimension."""
    widths = (inputs, *hidden)
    layers: list[nn.Module] = []
    for i in range(len(hidden)):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs), nn.LayerNorm(outputs, elementwise_affine=False))
