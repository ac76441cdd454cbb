"""Everybody of a plan on one virtual bus: the parts that simulations and the test harness are made of.

The learner, the trainer's turns, the mailbox, the stub and the examination are those of a launch; only clock and
transport are virtual, and a step takes the time that `Timing` says. Laws: one data set in memory, whatever the number
of components; everything is a function of configuration and timing, to the last bit on one machine.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bus.faults import FaultyTransport
from bus.fibre import Fibre
from bus.mailbox import Mailbox
from bus.post import EdgeMailbox
from bus.virtual import VirtualBus
from configs.errors import ConfigError
from configs.tree import Config
from mach.assemble import learner_of, samples_of
from mach.data import load
from mach.draws import CPU, Draws
from mach.learner import Step
from workers.part import part_of
from workers.plan import ProcessPlan, bus_of, make_plan
from workers.stub import Stub, faults_of
from workers.timing import Timing
from workers.trainer import assemble
from workers.turns import Trainer


class Paced(Trainer):
    """A trainer whose steps take virtual time: what a step owes leaves when the step is over."""

    def __init__(self, *args: Any, spend: Callable[[], None], **options: Any) -> None:
        """`spend` lets the time of one step pass; the rest is the trainer's."""
        super().__init__(*args, **options)
        self.spend = spend

    def pay(self, step: Step) -> None:
        """Let the step's time pass, then pay."""
        self.spend()
        super().pay(step)


class Drawing(Fibre):
    """A body that draws by itself, as in a process of its own, whoever draws between its turns."""

    def __init__(self, bus: VirtualBus, name: str, body: Callable[[], None], draws: Draws) -> None:
        super().__init__(bus, name, body)
        self._draws = draws

    def turn(self, now: float) -> float:
        """Run the body on to its next wait."""
        with self._draws:
            return super().turn(now)


class Stage:
    """A plan's components in one process. Not theirs: when they take turns (see `bus/fibre.py`)."""

    def __init__(
        self, config: Config, timing: Timing, directory: Path, *, lockstep: bool = False, device: torch.device = CPU
    ) -> None:
        """`device`: what everybody computes on."""
        self.config = config
        self.timing = timing
        self.device = device
        self.plan = make_plan(config, run="simulated", directory=directory, sockets=Path(), lockstep=lockstep)
        if len(timing.compute_s) != len(self.plan.processes):
            raise ConfigError(f"the timing is for {len(timing.compute_s)} components, not {len(self.plan.processes)}")
        self.dataset = load(config.data).to(device)
        self.samples = samples_of(config, self.dataset)
        self.bus = VirtualBus(latency_s=timing.latency_s, jitter_s=timing.jitter_s, seed=config.seed)
        self.faults: dict[str, Counter[str]] = {process.name: Counter() for process in self.plan.processes}
        """By stub: the faults that fired."""
        self.fibres: dict[str, Fibre] = {}

    def enact(self, process: ProcessPlan, body: Callable[[], None]) -> None:
        """Give the component turns on the bus: `body` is what its process would do. It needs its mailbox first."""
        start_s = self.timing.start_s[process.index] if self.timing.start_s else 0.0

        def in_time() -> None:
            self.fibres[process.name].spend(start_s)
            body()

        draws = Draws(self.config.seed, process.index, ours=":" not in self.config.model.family)
        self.fibres[process.name] = Drawing(self.bus, process.name, in_time, draws)

    def close(self) -> None:
        """End every body where it waits."""
        for fibre in self.fibres.values():
            fibre.close()

    def mailbox(self, process: ProcessPlan) -> EdgeMailbox:
        """The component's door; a stub's messages meet the faults of its script."""
        script = self.config.components[process.index].stub if process.kind == "stub" else None
        faults = None if script is None else faults_of(script)
        fired = self.faults[process.name]
        return self.bus.mailbox(
            process.name,
            children=process.children,
            parents=process.parents,
            bus=bus_of(self.plan),
            wrap=None if faults is None else lambda inner: FaultyTransport(inner, faults, process.index, fired),
            samples=self.samples,
        )

    def trainer(self, process: ProcessPlan, mailbox: Mailbox) -> Trainer:
        """A component with its own weights, optimiser, data order and examination, on the shared data set."""
        learner = learner_of(self.config, process.index, process.children, self.dataset, self.device)
        times = itertools.cycle(self.timing.compute_s[process.index])
        paced = partial(Paced, spend=lambda: self.fibres[process.name].spend(next(times)))
        return assemble(self.plan, process, learner, mailbox, self.dataset, paced)

    def stub(self, process: ProcessPlan, mailbox: Mailbox) -> Stub:
        """A scripted neighbour; it dies as by SIGKILL where its script says so."""
        script = self.config.components[process.index].stub
        if script is None:
            raise ValueError(f"{process.name} is no stub")
        return Stub(
            script,
            mailbox,
            part_of(self.config, process.index, self.dataset, seed=process.index),
            fired=self.faults[process.name],
            crash=lambda: self.bus.kill(process.name),
        )
