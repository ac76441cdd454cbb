"""A test's neighbourhood: one real component between stub neighbours, in one process and in virtual time.

The component is the one that a launch would run (`Trainer.turn`, the same learner, the same mailbox); only
the clock and the transport are virtual, so a test is exact, fast, and the same on every machine. The stubs
follow the scripts of `components.N.stub`. `mach.pytest_plugin` offers it as the fixture `neighbourhood`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bus.mailbox import Mailbox, MailboxRelay
from bus.virtual import VirtualBus
from configs.errors import ConfigError
from configs.load import check_keys, convert, load, parse_setting
from mach.component import Component
from mach.learner import Step
from mach.messages import Activation, Gradient, Letter, Message, Target
from mach.recipes import RECIPES
from workers.plan import ProcessPlan
from workers.stage import Stage
from workers.stub import Stub
from workers.timing import Timing

PARENT, SELF, CHILD = "c0", "c1", "c2"
REST = 0.25
"""How far into the step after the last one a run goes, as a share of a step: the last one has then ended."""
PATIENCE_S = 10.0
"""Virtual seconds without a step, after which a run ends with fewer than were wanted."""
LEAST_S = 0.001
"""Virtual seconds between two looks whether there are enough: time passes also where a step takes none."""

KINDS = (Activation, Target, Gradient)
THE_SAME = ("n_components", "graph", "components")
"""Keys that a neighbourhood has its own values for."""

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


class Neighbourhood:
    """One real component `c1` between the stubs `c0`, its parent, and `c2`, its child.

    Args:
        config: a shipped configuration or a file, as `mach launch --config`.
        settings: one `key=value`, or several, as `--set`; `model.family=package.module:factory` puts your own network
            under test. Who is there is not to be set: it is always the three.
        parent, child: scripts as under `components.N.stub`.
        compute_ms: virtual duration of one step of the component.
        latency_ms: virtual latency of the bus, each way.

    Raises:
        ConfigError: a key, in a setting or a script, that there is not, or a wrong value.
    """

    def __init__(
        self,
        config: str = "digits",
        settings: str | Sequence[str] = (),
        *,
        parent: Script | None = None,
        child: Script | None = None,
        compute_ms: float = 5.0,
        latency_ms: float = 1.0,
    ) -> None:
        settings = (settings,) if isinstance(settings, str) else settings
        check(settings)
        base = load(config, (*settings, "n_components=3", "graph=chain"), RECIPES)
        scripts = {0: {"stub": dict(parent or {})}, 2: {"stub": dict(child or {})}}
        for where, number in (("parent", 0), ("child", 2)):
            script = {"components": {number: scripts[number]}}
            check_keys(script, where)
            convert(script, where)
        self.config = convert(msgspec.to_builtins(base) | {"components": scripts}, config)
        self._compute_s = compute_ms / 1000.0
        self._stage = Stage(self.config, Timing(latency_ms / 1000.0, 0.0, ((self._compute_s,),) * 3), Path())
        self.faults = self._stage.faults
        self._wanted = 0
        self._steps: list[Step] = []
        for name in (SELF, PARENT, CHILD):
            self._join(self._stage.plan.process(name))

    @property
    def bus(self) -> VirtualBus:
        """The virtual bus."""
        return self._stage.bus

    @property
    def component(self) -> Component:
        """The networks under test."""
        return self.trainer.learner.component

    def run(self, steps: int) -> list[Step]:
        """Let everybody take turns until the component has made `steps` steps more; returns those.

        In skip wiring it makes one after the other. In stream wiring it waits for what its parent sends, so a run takes
        longer, and one in which nothing comes any more, or no answer where the recipe needs it, returns fewer, and
        `ended` says why.
        """
        before = len(self._steps)
        self._wanted = before + steps
        fibres = list(self._stage.fibres.values())
        self.bus.run(fibres, until_s=self.bus.clock.now + (steps + REST) * self._compute_s)
        made, since = len(self._steps), self.bus.clock.now
        while len(self._steps) < self._wanted and self.bus.clock.now - since < PATIENCE_S:
            self.bus.run(fibres, until_s=self.bus.clock.now + max(self._compute_s, LEAST_S))
            if len(self._steps) > made:
                made, since = len(self._steps), self.bus.clock.now
        return self._steps[before:]

    @property
    def ended(self) -> str:
        """Why the last run ended with fewer steps than were wanted; empty: it did not."""
        if len(self._steps) == self._wanted:
            return ""
        return (
            f"no step in {PATIENCE_S:g} virtual s: {SELF} waits {self.trainer.wanting()}; see dropped(), faults, and "
            "the scripts of the stubs"
        )

    def sent(self, kind: type[M], to: str | None = None) -> list[M]:
        """What the component sent, of one kind, oldest first.

        Raises:
            ConfigError: it is no kind of message, or `to` no neighbour.
        """
        check_question("sent", kind, to)
        return [
            sent.message for sent in self._ledger.outgoing if isinstance(sent.message, kind) and to in (None, sent.to)
        ]

    def received(self, kind: type[M], sender: str | None = None) -> list[M]:
        """What the component received, of one kind, oldest first.

        Raises:
            ConfigError: it is no kind of message, or `sender` no neighbour.
        """
        check_question("received", kind, sender)
        return [
            letter.message
            for letter in self._ledger.incoming
            if isinstance(letter.message, kind) and sender in (None, letter.sender)
        ]

    def dropped(self) -> dict[str, int]:
        """Messages that the component's mailbox dropped, by reason."""
        return dict(self._ledger.counts.dropped)

    def close(self) -> None:
        """End the turns of everybody, and leave the virtual bus."""
        self._stage.close()
        self._ledger.close()

    def _join(self, process: ProcessPlan) -> None:
        """Put a process of the plan onto the stage: the component, or a stub."""
        mailbox = self._stage.mailbox(process)
        if process.kind == "stub":
            stub = self._stage.stub(process, mailbox)
            self._stage.enact(process, lambda: self._live_as(stub))
            return
        self._ledger = Ledger(mailbox)
        self.trainer = self._stage.trainer(process, self._ledger)
        """The component's trainer; `trainer.learner` is its learner."""
        self._stage.enact(process, self._live)

    def _live(self) -> None:
        """The component: a step after the other, as many as were wanted so far."""
        while True:
            while len(self._steps) < self._wanted:
                step = self.trainer.turn()
                if step is not None:
                    self._steps.append(step)
            self._stage.fibres[SELF].pause()

    def _live_as(self, stub: Stub) -> None:
        """A stub, for ever."""
        while True:
            stub.turn(stub.idle_s())


def check(settings: Sequence[str]) -> None:
    """Raise a ConfigError for a setting that would have others in the neighbourhood."""
    for text in settings:
        if (key := next(iter(parse_setting(text)))) in THE_SAME:
            raise ConfigError(
                f"settings: {text}: a neighbourhood is always a chain of {PARENT}, {SELF} and {CHILD}; leave "
                f"{key} out, and give the scripts of the stubs as parent={{…}} and child={{…}}"
            )


def check_question(asked: str, kind: object, neighbour: str | None) -> None:
    """Raise a ConfigError for messages that there cannot be any of."""
    if kind not in KINDS:
        names = ", ".join(each.__name__ for each in KINDS)
        raise ConfigError(f"{asked}({kind!r}): is no kind of message; give one of {names}, from mach.messages")
    if neighbour not in (None, PARENT, CHILD):
        raise ConfigError(
            f"{asked}({kind.__name__}, {neighbour!r}): there is none; give {PARENT} or {CHILD}, or nobody"
        )
