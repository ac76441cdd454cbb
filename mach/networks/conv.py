"""Residual convolutions, over a line (x [L]) or over a picture (x [H, W] or [C, H, W]).

A section is `model.blocks` residual blocks of `model.channels` channels (pre-activation, arXiv 1603.05027; GroupNorm,
arXiv 1803.08494, in place of batch statistics, which differ between a component's batches and its neighbours'). A
stem in front of the first section halves the resolution.

    skip     the joiner is a whole network: stem, section, pooling, and a perceptron that joins the targets
    stream   component 0's encoder is stem and section, every other's a section; activations keep one shape all along

Activations are flat, [B, D], so that a joiner takes them beside targets [B, E].
Shapes: B batch, C channels, S… positions (L, or H and W), D numbers of an activation, E embedding.
"""

import math

import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from mach.component import Component
from mach.networks.mlp import perceptron
from mach.networks.place import Place

KERNEL = 3
GROUP = 8
"""Channels that are normalised together."""


def conv(place: Place) -> Component:
    """A component of residual convolutions.

    Raises:
        ConfigError: samples that are neither a line nor a picture, or are symbols.
    """
    x_shape = picture_of(place)
    model, width = place.model, place.model.embedding
    deep = place.wiring == "stream"
    a_shape = (model.channels, *((size + 1) // 2 for size in x_shape[1:])) if deep else x_shape

    def reader(blocks: int, targets: int, hidden: tuple[int, ...]) -> Reader:
        before = [] if deep else [stem(x_shape, model.channels)]
        body = nn.Sequential(*before, section(len(a_shape) - 1, model.channels, blocks))
        return Reader(a_shape, body, perceptron(2 * model.channels + targets, hidden, width))

    return Component(
        encoder=Encoder(place, x_shape, a_shape) if deep else nn.Flatten(),
        joiner=reader(0 if deep else model.blocks, width * len(place.children), model.joiner),
        head=nn.Linear(width, place.classes),
        students={child: reader(1, 0, model.student) for child in place.children},
    )


def picture_of(place: Place) -> tuple[int, ...]:
    """Shape of x with its channels in front, [C, S…]: one, where the data have none.

    Raises:
        ConfigError: no convolution goes over such x.
    """
    shape = place.sample_shape
    if place.symbols or not 1 <= len(shape) <= 3:
        raise ConfigError(
            "model.family: conv takes lines [L] and pictures [H, W] or [C, H, W] of quantities, and the data's "
            f"samples are {'symbols' if place.symbols else 'quantities'} {list(shape)}; choose another family"
        )
    return shape if len(shape) == 3 else (1, *shape)


class Encoder(nn.Module):
    """A section of a stream: x [B, …], or a parent's activation [B, D] with x where it comes along, → a [B, D]."""

    def __init__(self, place: Place, x_shape: tuple[int, ...], a_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes = (x_shape,) if place.incoming is None else (a_shape, x_shape)
        needs_stem = place.incoming is None or place.context
        self.stem = stem(x_shape, place.model.channels) if needs_stem else None
        self.section = section(len(a_shape) - 1, place.model.channels, place.model.blocks)

    def forward(self, *come: Tensor) -> Tensor:
        """What comes is added up at the activation's resolution."""
        *a, last = (each.reshape(-1, *shape) for each, shape in zip(come, self.shapes, strict=False))
        h = last if self.stem is None else self.stem(last)  # [B, C, S…]
        e: Tensor = self.section(a[0] + h if a else h)
        return e.flatten(1)

    def opening(self) -> nn.Module:
        """The first block."""
        return nn.Sequential(nn.Unflatten(1, self.shapes[0]), self.section[0], nn.Flatten(1))


class Reader(nn.Module):
    """[B, D + …], an activation and what is joined to it, → [B, E]: mean and maximum over positions, a perceptron."""

    def __init__(self, shape: tuple[int, ...], body: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.shape = shape
        self.body = body
        self.last = last

    def forward(self, joined: Tensor) -> Tensor:
        """Take the first D numbers as positions, the rest as they are."""
        features = math.prod(self.shape)
        a, targets = joined[:, :features], joined[:, features:]
        h = self.body(a.reshape(-1, *self.shape)).flatten(2)  # [B, C, S]
        e: Tensor = self.last(torch.cat([h.mean(dim=2), h.amax(dim=2), targets], dim=1))
        return e


class Block(nn.Module):
    """h + conv(act(norm(conv(act(norm(h))))))."""

    def __init__(self, directions: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                nn.GroupNorm(groups_of(channels), channels),
                nn.GELU(),
                convolution(directions, channels, channels),
            ]
        self.residual = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        """[B, C, S…] → [B, C, S…]."""
        added: Tensor = h + self.residual(h)
        return added


def section(directions: int, channels: int, blocks: int) -> nn.Sequential:
    """Residual blocks, [B, C, S…] → [B, C, S…]."""
    return nn.Sequential(*(Block(directions, channels) for _ in range(blocks)))


def stem(x_shape: tuple[int, ...], channels: int) -> nn.Module:
    """[B, C_x, S…] → [B, C, S…/2]."""
    return convolution(len(x_shape) - 1, x_shape[0], channels, stride=2)


def convolution(directions: int, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """Along a line or over a picture, padded so that stride alone changes the resolution."""
    kind = nn.Conv1d if directions == 1 else nn.Conv2d
    return kind(inputs, outputs, KERNEL, stride=stride, padding=KERNEL // 2)


def groups_of(channels: int) -> int:
    """How many groups of GROUP channels; one where they do not come out even."""
    return channels // GROUP if channels % GROUP == 0 else 1
