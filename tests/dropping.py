"""Networks that draw in every step: `--set model.family=dropping:mlp`, with this folder on PYTHONPATH."""

from torch import nn

from mach.component import Component
from mach.networks.mlp import mlp as plain
from mach.networks.place import Place


def mlp(place: Place) -> Component:
    """The networks of `mlp`, with dropout in joiner and students."""
    component = plain(place)
    component.joiner = nn.Sequential(component.joiner, nn.Dropout(0.3))
    component.students = nn.ModuleDict(
        {child: nn.Sequential(student, nn.Dropout(0.3)) for child, student in component.students.items()}
    )
    return component
