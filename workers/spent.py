"""What a recipe computes: the multiply-adds of all its components, counted in short simulations (`mach/effort.py`).

Examinations are left out: they are the price of watching, not of training.
"""

import math
from pathlib import Path

import msgspec

from configs.tree import Config
from mach.effort import Effort
from workers.simulate import Examined, Simulation
from workers.timing import Timing


class Counted(Examined):
    """A life whose multiply-adds are counted while it trains."""

    def train(self) -> None:
        """Train, and count."""
        self.effort = Effort()
        with self.effort:
            super().train()


def effort_of(config: Config, timing: Timing, folder: Path, *, lockstep: bool = False) -> float:
    """Multiply-adds of all components together, a step of component 0 and a sample of its batch.

    Counted between two short simulations of which one is twice as long, so that what the beginning costs is not in it;
    of a length after which all that is done now and then has been done as often as in the long run, if the run itself
    is as long.
    """
    method = config.method
    cycle = min(config.train.steps, math.lcm(method.targets_every, method.student_every, method.update_every))
    steps = 8 + 4 * math.ceil((timing.latency_s + timing.jitter_s) / min(map(min, timing.compute_s)))
    steps = cycle * math.ceil(steps / cycle)
    totals = []
    for length in (steps, 2 * steps):
        train = msgspec.structs.replace(config.train, steps=length, minutes=None)
        never = msgspec.structs.replace(config.evaluate, every_steps=10 * steps)
        short = msgspec.structs.replace(config, train=train, evaluate=never)
        simulation = Simulation(short, timing, folder / f"effort-{length}", lockstep=lockstep, kind=Counted)
        simulation.run()
        lives = [life for life in simulation.lives.values() if isinstance(life, Counted)]
        totals.append(sum(life.effort.multiply_adds for life in lives))
    return (totals[1] - totals[0]) / steps / config.train.batch_size
