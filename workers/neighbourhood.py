"""A test's neighbourhood: one real component between stub neighbours, in one process and in virtual time.

The component is the one that a launch would run (`Trainer.turn`, the same learner, the same mailbox); only
the clock and the transport are virtual, so a test is exact, fast, and the same on every machine. The stubs
follow the scripts of `components.N.stub`. `mach.pytest_plugin` offers it as the fixture `neighbourhood`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from bus.faults import FaultyTransport
from bus.mailbox import Mailbox, MailboxRelay
from bus.virtual import Actor, VirtualBus
from configs import tree
from configs.load import load
from mach.assemble import learner_of, samples_of
from mach.component import Component
from mach.data import load as load_data
from mach.learner import Step
from mach.messages import Activation, Gradient, Letter, Message, Target
from mach.recipes import RECIPES
from workers.plan import make_plan
from workers.stub import Stub, faults_of
from workers.trainer import Trainer, assemble

PARENT, SELF, CHILD = "c0", "c1", "c2"
TICK_S = 0.0005
"""How often a stub looks into its mailbox, in virtual seconds: nothing wakes it there."""

M = TypeVar("M", Activation, Target, Gradient)
Script = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A message that the component under test sent."""

    at_s: float
    to: str
    message: Message


class Ledger(MailboxRelay):
    """The component's mailbox, which writes down what goes out and what comes in."""

    def __init__(self, inner: Mailbox) -> None:
        super().__init__(inner)
        self.outgoing: list[Sent] = []
        self.incoming: list[Letter] = []

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        """Pass on, and keep."""
        letters = self.inner.receive(wait_s)
        self.incoming += letters
        return letters

    def send(self, peer: str, message: Message) -> bool:
        """Pass on, and keep what left."""
        left = self.inner.send(peer, message)
        if left:
            self.outgoing.append(Sent(self.now(), peer, message))
        return left


class StubActor:
    """A stub's turns in virtual time; none after its script crashed it."""

    def __init__(self, name: str, bus: VirtualBus) -> None:
        self.name = name
        self.bus = bus
        self.stub: Stub | None = None

    def turn(self, now: float) -> float:
        """Look into the mailbox, do what is due."""
        assert self.stub is not None
        self.stub.turn()
        return TICK_S

    def crash(self) -> None:
        """What `crash_at` does: as by SIGKILL."""
        self.bus.kill(self.name)


class TrainerActor:
    """The component's turns in virtual time, each taking `compute_s`."""

    name = SELF

    def __init__(self, trainer: Trainer, compute_s: float) -> None:
        self.trainer = trainer
        self.compute_s = compute_s
        self.wanted = 0
        self.steps: list[Step] = []

    def turn(self, now: float) -> float:
        """One step, until as many as were wanted are done."""
        step = self.trainer.turn()
        if step is not None:
            self.steps.append(step)
        return self.compute_s if len(self.steps) < self.wanted else math.inf


class Neighbourhood:
    """One real component `c1` between the stubs `c0`, its parent, and `c2`, its child.

    Args:
        config: a shipped configuration or a file, as `mach launch --config`.
        settings: `key=value` strings, as `--set`; `model.family=package.module:factory` puts your own network
            under test.
        parent, child: scripts as under `components.N.stub`.
        compute_ms: virtual duration of one step of the component.
        latency_ms: virtual latency of the bus, each way.
    """

    def __init__(
        self,
        config: str = "digits",
        settings: Sequence[str] = (),
        *,
        parent: Script | None = None,
        child: Script | None = None,
        compute_ms: float = 5.0,
        latency_ms: float = 1.0,
    ) -> None:
        base = load(config, (*settings, "n_components=3", "graph=chain"), RECIPES)
        scripts = {0: {"stub": dict(parent or {})}, 2: {"stub": dict(child or {})}}
        self.config = msgspec.convert(msgspec.to_builtins(base) | {"components": scripts}, tree.Config)
        self.plan = make_plan(self.config, run="test", directory=Path(), sockets=Path())
        self.dataset = load_data(self.config.data)
        self.bus = VirtualBus(latency_s=latency_ms / 1000.0, seed=self.config.seed)
        self.faults: dict[str, Counter[str]] = {PARENT: Counter(), CHILD: Counter()}
        self._stubs = [self._stub(name) for name in (PARENT, CHILD)]
        self._trainer = TrainerActor(self._component(), compute_ms / 1000.0)

    @property
    def trainer(self) -> Trainer:
        """The component's trainer; `trainer.learner` is its learner."""
        return self._trainer.trainer

    @property
    def component(self) -> Component:
        """The networks under test."""
        return self.trainer.learner.component

    def run(self, steps: int) -> list[Step]:
        """Let everybody take turns until the component has made `steps` steps more; returns those."""
        before = len(self._trainer.steps)
        self._trainer.wanted = before + steps
        actors: list[Actor] = [self._trainer, *self._stubs]
        self.bus.run(actors, until_s=self.bus.clock.now + (steps - 0.5) * self._trainer.compute_s)
        return self._trainer.steps[before:]

    def sent(self, kind: type[M], to: str | None = None) -> list[M]:
        """What the component sent, of one kind, oldest first."""
        return [
            sent.message for sent in self._ledger.outgoing if isinstance(sent.message, kind) and to in (None, sent.to)
        ]

    def received(self, kind: type[M], sender: str | None = None) -> list[M]:
        """What the component received, of one kind, oldest first."""
        return [
            letter.message
            for letter in self._ledger.incoming
            if isinstance(letter.message, kind) and sender in (None, letter.sender)
        ]

    def dropped(self) -> dict[str, int]:
        """Messages that the component's mailbox dropped, by reason."""
        return dict(self._ledger.counts.dropped)

    def close(self) -> None:
        """Leave the virtual bus."""
        self._ledger.close()

    def _component(self) -> Trainer:
        process = self.plan.process(SELF)
        samples = samples_of(self.config, self.dataset)
        mailbox = self.bus.mailbox(
            SELF, children=process.children, parents=process.parents, bus=self.config.bus, samples=samples
        )
        self._ledger = Ledger(mailbox)
        learner = learner_of(self.config, process.index, process.children, self.dataset, torch.device("cpu"))
        return assemble(self.plan, process, learner, self._ledger, self.dataset)

    def _stub(self, name: str) -> StubActor:
        process = self.plan.process(name)
        script = self.config.components[process.index].stub
        assert script is not None
        mailbox = self.bus.mailbox(
            name,
            children=process.children,
            parents=process.parents,
            bus=self.config.bus,
            wrap=lambda inner: FaultyTransport(inner, faults_of(script), process.index, self.faults[name]),
            samples=samples_of(self.config, self.dataset),
        )
        actor = StubActor(name, self.bus)
        actor.stub = Stub(
            script,
            mailbox,
            children=process.children,
            embedding=self.config.model.embedding,
            sample_shape=self.dataset.train_inputs.shape[1:],
            batch_size=self.config.train.batch_size,
            seed=process.index,
            fired=self.faults[name],
            crash=actor.crash,
        )
        return actor
