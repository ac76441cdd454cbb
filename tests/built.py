"""Components for tests, straight from a model and the shape of the data."""

from collections.abc import Sequence
from typing import Any

from configs.tree import Model
from mach.component import Component
from mach.networks import made, place_of


def build(
    model: Model, sample_shape: Sequence[int], classes: int, children: Sequence[str] = (), **where: Any
) -> Component:
    """The component that `model` describes, with a student for each of `children`; `where`: as of `place_of`."""
    return made(place_of(model, sample_shape, classes, children, **where))
