"""Families of networks: one a file. A factory makes a whole `Component`; users' own join by `package.module:factory`.

factory(model: configs.tree.Model, sample_shape: tuple[int, ...], classes: int, children: Sequence[str]) -> Component
"""

from collections.abc import Callable, Mapping, Sequence

from configs.errors import ConfigError
from configs.tree import Model
from mach.component import Component
from mach.networks import mlp
from mach.registry import find

FAMILIES: Mapping[str, Callable[..., Component]] = {"mlp": mlp.mlp}


def build(model: Model, sample_shape: Sequence[int], classes: int, children: Sequence[str]) -> Component:
    """The component that `model` describes, with a student for each of `children`.

    Raises:
        ConfigError: an unknown family, or a factory that returned something else than a `Component`.
    """
    component = find("model.family", model.family, FAMILIES)(model, tuple(sample_shape), classes, tuple(children))
    if not isinstance(component, Component):
        raise ConfigError(f"model.family: {model.family!r} made a {type(component).__name__}, not a mach Component")
    return component
