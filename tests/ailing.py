"""A family of networks that fall ill on command: `--set model.family=ailing:mlp`, with $AILING naming a directory.

A test writes the name of an ailment into `$AILING/<pid>`; the process of that number removes the file, which proves
that the fault has fired, and falls ill in the middle of its step.
"""

import ctypes
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from mach.component import Component
from mach.networks.mlp import mlp as healthy
from mach.networks.place import Place


def hang() -> None:
    """Sleep while holding the lock of the interpreter, which no other thread gets then."""
    ctypes.PyDLL(None).sleep(1000)


def no_memory() -> None:
    """Ask for more than the limit of the process."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
    torch.ones(1 << 40)


def error() -> None:
    raise ValueError("ill")


AILMENTS: Mapping[str, Callable[[], Any]] = {
    "hang": hang,
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(0),
    "error": error,
    "memory": no_memory,
}


def mlp(place: Place) -> Component:
    component = healthy(place)
    note = Path(os.environ["AILING"]) / str(os.getpid())

    def activation(self: Component, *come: Tensor) -> Tensor:
        if note.exists():
            ailment = AILMENTS[note.read_text()]
            note.unlink()
            ailment()
        return Component.activation(self, *come)

    component.activation = MethodType(activation, component)  # type: ignore[method-assign]
    return component
