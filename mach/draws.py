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


@contextlib.contextmanager
def aside(seed: int | None = None) -> Iterator[None]:
    """What is drawn on the CPU inside leaves the generators as they were, and goes by `seed` if one is given."""
    before = held()
    try:
        if seed is not None:
            sow(seed)
        yield
    finally:
        put(before)


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
