"""What networks draw as they compute, as dropout does: of torch's global generators, which all of a process share.

Laws: what a component draws goes by the run's seed and its own number alone, whoever shares its process; a component
that goes on from a checkpoint draws on from there (`mach/state.py`).
"""

from types import TracebackType
from typing import Self

import torch

from mach.seeds import seed_of

DRAWS = "draws"
"""The purpose that their seeds are derived for."""


def begin(seed: int, component: int) -> None:
    """From now on this process, of one component alone, draws by these, on every device."""
    torch.manual_seed(seed_of(seed, component, DRAWS))


class Draws:
    """The CPU's generator as it would be in a process of one component's own, in every `with`; others find it as they
    left it.
    """

    def __init__(self, seed: int, component: int) -> None:
        self._own = torch.Generator().manual_seed(seed_of(seed, component, DRAWS)).get_state()

    def __enter__(self) -> Self:
        self._theirs = torch.get_rng_state()
        torch.set_rng_state(self._own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = torch.get_rng_state()
        torch.set_rng_state(self._theirs)
