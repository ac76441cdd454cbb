"""What is drawn by nobody's own generator: networks as they compute, as for dropout, and whatever users' code draws.

It comes from generators that all of a process share: torch's, numpy's and Python's. Laws: what a component draws goes
by the run's seed and its own number alone, whoever shares its process; a component that goes on from a checkpoint draws
on from there (`mach/state.py`); what is built or tried out leaves the generators as they were.
"""

import contextlib
import random
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from mach.seeds import seed_of

DRAWS = "draws"
"""The purpose that their seeds are derived for."""
CPU = torch.device("cpu")


class Generators(NamedTuple):
    """The states of those that the CPU draws from."""

    torch: Tensor
    numpy: Any = None
    python: Any = None


def held() -> Generators:
    """As they are now."""
    return Generators(torch.get_rng_state(), np.random.get_state(), random.getstate())


def torchs() -> Generators:
    """That of torch alone."""
    return Generators(torch.get_rng_state())


def put(states: Generators) -> None:
    """Let them be as they were then; what is None stays as it is."""
    if states.numpy is not None:
        np.random.set_state(states.numpy)
    if states.python is not None:
        random.setstate(states.python)
    torch.set_rng_state(states.torch)


def sow(seed: int) -> None:
    """Seed all of the CPU's."""
    torch.default_generator.manual_seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    random.seed(seed)


def of_device(device: torch.device) -> Tensor | None:
    """The state of the one that a device draws from by itself; None for the CPU, whose are held above."""
    return None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def put_on_device(device: torch.device, state: Tensor | None) -> None:
    """Let it be as it was then; it stays as it is for None."""
    if state is not None:
        torch.get_device_module(device).set_rng_state(state, device)


@contextlib.contextmanager
def aside(seed: int | None = None, device: torch.device = CPU) -> Iterator[None]:
    """What is drawn inside, on the CPU and on `device`, leaves the generators as they were; on the CPU it goes by
    `seed` if one is given.
    """
    before, there = held(), of_device(device)
    try:
        if seed is not None:
            sow(seed)
        yield
    finally:
        put(before)
        put_on_device(device, there)


def begin(seed: int, component: int) -> None:
    """From now on this process, of one component alone, draws by these, on every device."""
    sow(seed_of(seed, component, DRAWS))
    torch.manual_seed(seed_of(seed, component, DRAWS))


class Draws:
    """The CPU's generators as they would be in a process of one component's own, in every `with`; others find them as
    they left them.
    """

    def __init__(self, seed: int, component: int, *, ours: bool = False) -> None:
        """`ours`: no code takes part that may draw from others than torch's; to put those aside takes 0.2 ms."""
        self._held = torchs if ours else held
        with aside(seed_of(seed, component, DRAWS)):
            self._own = self._held()

    def __enter__(self) -> Self:
        self._theirs = self._held()
        put(self._own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = self._held()
        put(self._theirs)
