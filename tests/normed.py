"""A family for tests whose networks look at their mode: batch normalisation everywhere, and dropout."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mach.component import Component
from mach.networks.place import Place


class Dropping(nn.Module):
    """Dropout of its own, as a function."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] → [B, D]."""
        return F.dropout(x, 0.3, training=self.training)


class Both(nn.Module):
    """An encoder of an activation, with x where that comes along."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *come: Tensor) -> Tensor:
        """[B, …] each → [B, E]."""
        a: Tensor = self.net(torch.cat([each.flatten(1) for each in come], dim=1))
        return a


def layers(come: int, go: int) -> nn.Sequential:
    """[B, come] → [B, go]."""
    return nn.Sequential(Dropping(), nn.BatchNorm1d(come), nn.Linear(come, go), nn.Dropout(0.2), nn.BatchNorm1d(go))


def normed(place: Place) -> Component:
    """In either wiring; in skip wiring the encoder has statistics, and no weights."""
    e, a = place.model.embedding, place.features
    encoder: nn.Module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(a, affine=False))
    if place.wiring == "stream":
        come = a if place.reads_data else e + place.context * place.features
        encoder, a = Both(layers(come, e)), e
    return Component(
        encoder,
        layers(place.joined(a) + e * len(place.children), e),
        nn.Linear(e, place.classes),
        {child: layers(a, e) for child in place.children},
    )


def frozen(place: Place) -> Component:
    """The same, where the encoder's statistics are not to move."""
    component = normed(place)
    component.encoder.train(mode=False)
    return component
