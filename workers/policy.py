"""When a component that failed lives on, and when it has failed for good. No process, no clock, no I/O.

    began()        its first step of this launch
    saved(step)    the newest checkpoint that is known of
    failed()       one life ended otherwise than it should  →  Restart(after_s) or GiveUp(why)

Laws: the first restart is immediate. The pause grows only while it fails again without a new checkpoint, and a new
checkpoint resets it. Three budgets, `BUDGETS`, each of which alone ends it: a bad configuration is not retried for
ever, a step that always fails is not either, and nothing is restarted without end. What somebody asked for
(`mach restart`) is no failure and costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_S = 0.5
"""Before the second restart in a row; every further one doubles it."""
LONGEST_PAUSE_S = 30.0
AFAR_S = 60.0
"""Who is on another machine and is not heard for so long is not waited for at the end: it may be gone for good."""
STEPS_OF_PATIENCE = 5.0
"""A component without progress for so many times the p99 of its step time may be stalled."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it anew."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It has failed for good."""

    why: str
    """For people, after the reason of its last failure."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How often something may be; what has been spent of it, and what to say when it is spent."""

    most: Callable[["Restarts"], int]
    spent: Callable[["Restarts"], int]
    why: str


class Restarts:
    """The account of one component."""

    def __init__(self, max_restarts: int) -> None:
        self.max_restarts = max_restarts
        self.failures = 0
        self.restarts = 0
        """After failures: the ones somebody asked for are not here."""
        self.in_a_row = 0
        """Restarts since the last new checkpoint."""
        self.trained = False
        """Whether any of its lives made a step."""
        self.checkpoint: int | None = None
        """Step of the newest."""

    def began(self) -> None:
        """It has made a step, in this life or an earlier one."""
        self.trained = True

    def saved(self, step: int | None) -> None:
        """The newest checkpoint is of `step`. An older one than before, in place of a damaged one, is no progress."""
        if step is not None and (self.checkpoint is None or step > self.checkpoint):
            self.checkpoint = step
            self.in_a_row = 0

    def failed(self) -> Restart | GiveUp:
        """One life failed: what now."""
        self.failures += 1
        for budget in BUDGETS:
            most = budget.most(self)
            if budget.spent(self) >= most:
                return GiveUp(budget.why.format(most=most))
        pause = Restart(pause_s(self.in_a_row))
        self.restarts += 1
        self.in_a_row += 1
        return pause


BUDGETS = (
    Budget(
        most=lambda of: 2,
        spent=lambda of: 0 if of.trained else of.failures,
        why="{most} times before its first step",
    ),
    Budget(
        most=lambda of: 3,
        spent=lambda of: of.in_a_row,
        why="again after {most} restarts in a row that brought no new checkpoint",
    ),
    Budget(
        most=lambda of: of.max_restarts,
        spent=lambda of: of.restarts,
        why="with no restart left of {most} (supervise.max_restarts)",
    ),
)
"""Any of them, spent, ends it."""


def pause_s(in_a_row: int) -> float:
    """Before a restart that follows so many others without a new checkpoint between them."""
    return min(FIRST_PAUSE_S * 2.0 ** (in_a_row - 1), LONGEST_PAUSE_S) if in_a_row else 0.0


def patience_s(stalled_ms: int, step_ms_p99: float | None) -> float:
    """How long a component may make no progress, in seconds, given the p99 of its step time."""
    return max(stalled_ms, STEPS_OF_PATIENCE * (step_ms_p99 or 0.0)) / 1000.0
