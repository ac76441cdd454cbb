"""Multilayer perceptrons for the skip wiring: x itself, flattened, is the activation.

Every embedding, the student's imitation too, ends in a LayerNorm without weights: embeddings then keep their
scale while their makers move on, which is what makes staleness harmless (measured; see configs/digits.yaml).
"""

import math
from collections.abc import Sequence

from torch import nn

from configs.tree import Model
from mach.component import Component


def mlp(model: Model, sample_shape: Sequence[int], classes: int, children: Sequence[str]) -> Component:
    """A component of perceptrons: joiner D + E·children → E, student D → E, head E → K."""
    features = math.prod(sample_shape)
    width = model.embedding
    return Component(
        encoder=nn.Flatten(),
        joiner=perceptron(features + width * len(children), model.joiner, width),
        head=nn.Linear(width, classes),
        students={child: perceptron(features, model.student, width) for child in children},
    )


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear and GELU for every hidden width, a last Linear, LayerNorm without weights."""
    widths = (inputs, *hidden)
    layers: list[nn.Module] = []
    for i in range(len(hidden)):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs), nn.LayerNorm(outputs, elementwise_affine=False))
