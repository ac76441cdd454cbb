"""Networks that draw in every step: `--set model.family=dropping:mlp`, with this folder on PYTHONPATH."""

import random

import numpy as np
from torch import Tensor, nn

from mach.component import Component
from mach.networks.mlp import mlp as plain
from mach.networks.place import Place


class Scattered(nn.Module):
    """Draws from numpy's and Python's generators, as users' code does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 + 0.1 * np.random.randn() + 0.1 * random.gauss(0.0, 1.0)) if self.training else x


def mlp(place: Place) -> Component:
    """The networks of `mlp`, with dropout in joiner and students, and more that is drawn in the joiner."""
    component = plain(place)
    component.joiner = nn.Sequential(component.joiner, nn.Dropout(0.3), Scattered())
    component.students = nn.ModuleDict(
        {child: nn.Sequential(student, nn.Dropout(0.3)) for child, student in component.students.items()}
    )
    return component
