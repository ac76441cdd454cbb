"""Faults on purpose: which, whom and when. `mach chaos` and the tests make the same ones.

    --kill 20/min --stop 4/min --slow c1=3x      words of the user      `rate_of`, `slowness_of`
        └──▶ Spec ──▶ schedule                   faults in the order of their times: a pure value
                        └──▶ Chaos.act(now)      the time in, signals out to whoever `find` finds

Knows no process, file or clock: `workers/victims.py` does. Laws: the same seed gives the same faults, and one kind's
do not depend on the other kinds. A fault is recorded when it has fired, never before. A life that was killed is hit no
more, though its process may take a while to be gone. Whoever was stopped is continued in time, or by `release`. Times
are seconds since the beginning.
"""

import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from configs.errors import ConfigError

Kind = Literal["kill", "stop", "slow"]
"""`kill`: SIGKILL. `stop`: SIGSTOP, and SIGCONT after a while. `slow`: one short stop of many in a row."""

RUN_S = 0.1
"""A slow component runs for this long, then it is stopped for so long that it gets on at the wanted share."""
RETRY_S = 0.05
"""Between two looks for a process that is not there just now."""
MOST_PER_S = 10.0
MOST_SLOWNESS = 50.0
"""A component fifty times slower is stopped for 4.9 s at a time; longer stops are what `stop` is for."""
UNITS: Mapping[str, float] = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is to happen, within `seconds`."""

    seconds: float
    seed: int = 0
    kill: float = 0.0
    """Faults a second, over all components together."""
    stop: float = 0.0
    stop_s: float = 3.0
    """How long a stop lasts, unless the end comes before."""
    slow: Mapping[str, float] = field(default_factory=dict)
    """How many times slower, by component."""
    among: tuple[str, ...] = ()
    """Who may be killed or stopped; without a name, everybody."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that is due."""

    at_s: float
    component: str
    kind: Kind
    lasts_s: float = 0.0
    """Until it is continued; 0 of a kill."""


class Fired(msgspec.Struct, frozen=True):
    """One fault that has happened."""

    at_s: float
    component: str
    incarnation: int
    """Which life of it was hit."""
    pid: int
    kind: Kind
    lasts_s: float


class Victim(Protocol):
    """A process that can be hit."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def incarnation(self) -> int:
        """Which life of its component it is."""
        ...

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal. False: it is gone."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def schedule(spec: Spec, components: Sequence[str]) -> tuple[Fault, ...]:
    """The faults of `spec` in a run of `components`, in the order of their times.

    A kind's number is its rate times `seconds`; a fraction of a fault happens with that probability. Given their
    number, the times of a Poisson process are independent and uniform (W. Feller, An Introduction to Probability
    Theory II, I.3), and so they are here; each hits any component of `among`.
    """
    among = spec.among or components
    faults = [*_scattered(spec, "kill", spec.kill, among), *_scattered(spec, "stop", spec.stop, among)]
    for component, times in spec.slow.items():
        faults += _pauses(component, times, spec.seconds)
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _scattered(spec: Spec, kind: Kind, per_s: float, components: Sequence[str]) -> Iterator[Fault]:
    chance = random.Random(f"{spec.seed}/{kind}")
    whole, part = divmod(round(per_s * spec.seconds, 9), 1.0)
    for _ in range(int(whole) + (chance.random() < part)):
        at_s = chance.uniform(0.0, spec.seconds)
        yield Fault(at_s, chance.choice(components), kind, spec.stop_s if kind == "stop" else 0.0)


def _pauses(component: str, times: float, seconds: float) -> Iterator[Fault]:
    cycle_s = RUN_S * times
    for i in range(int(round(seconds / cycle_s, 9))):
        yield Fault(i * cycle_s + RUN_S, component, "slow", cycle_s - RUN_S)


class Chaos:
    """Faults, as their times come. A kill or a stop of a component that has no process just now waits for the next."""

    def __init__(self, faults: Sequence[Fault], find: Callable[[str], Victim | None]) -> None:
        self.fired: list[Fired] = []
        self.waiting: list[Fault] = []
        """Due, and nobody there to be hit."""
        self._due = list(reversed(faults))
        self._find = find
        self._stopped: dict[str, tuple[Victim, float]] = {}
        self._killed: dict[str, int] = {}  # by component: the newest life that was killed

    def act(self, now: float) -> None:
        """Continue whose time it is, and make every fault that is due."""
        for component, (_, until) in tuple(self._stopped.items()):
            if now >= until:
                self._continue(component)
        due, self.waiting = self.waiting, []
        while self._due and self._due[-1].at_s <= now:
            due.append(self._due.pop())
        for fault in due:
            if not self._make(fault, now) and fault.kind != "slow":
                self.waiting.append(fault)

    def wake_at(self, now: float) -> float:
        """When to act next; infinite once everything has been done."""
        times = [until for _, until in self._stopped.values()]
        times += [self._due[-1].at_s] if self._due else []
        times += [now + RETRY_S] if self.waiting else []
        return min(times, default=float("inf"))

    def release(self) -> None:
        """The end: continue everybody. What was still to come does not."""
        for component in tuple(self._stopped):
            self._continue(component)
        self.waiting += reversed(self._due)
        self._due.clear()

    def _make(self, fault: Fault, now: float) -> bool:
        """Whether there was somebody to hit."""
        victim = self._find(fault.component)
        if victim is None:
            return False
        dying = victim.incarnation <= self._killed.get(fault.component, -1)
        if dying or not victim.send(signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP):
            victim.close()
            return False
        what = fault.component, victim.incarnation, victim.pid, fault.kind, fault.lasts_s
        self.fired.append(Fired(round(now, 3), *what))
        earlier = self._stopped.pop(fault.component, None)
        until = now + fault.lasts_s
        if earlier is not None:
            until = max(until, earlier[1]) if earlier[0].pid == victim.pid else until
            earlier[0].close()
        if fault.kind == "kill":
            self._killed[fault.component] = victim.incarnation
            victim.close()
        else:
            self._stopped[fault.component] = victim, until
        return True

    def _continue(self, component: str) -> None:
        victim, _ = self._stopped.pop(component)
        victim.send(signal.SIGCONT)  # if it is gone, whoever is next was never stopped
        victim.close()


def rate_of(option: str, words: str | None) -> float:
    """Faults a second, of `20/min`; 0 of None.

    Raises:
        ConfigError: not a number, a slash and a unit, or too many.
    """
    if words is None:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)/(s|min|h)", words)
    if found is None:
        raise ConfigError(f"{option} {words!r}: give a number of times per s, min or h, as in 20/min")
    per_s = float(found[1]) / UNITS[found[2]]
    if per_s > MOST_PER_S:
        raise ConfigError(f"{option} {words}: at most {MOST_PER_S:.0f}/s")
    return per_s


def slowness_of(words: Sequence[str], components: Sequence[str]) -> dict[str, float]:
    """How many times slower, by component, of `c1=3x`.

    Raises:
        ConfigError: not a component, an equals sign, a number from 1 to 50 and an x, or no component of the run.
    """
    slow: dict[str, float] = {}
    for word in words:
        found = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)x", word)
        if found is None or not 1.0 < float(found[2]) <= MOST_SLOWNESS:
            raise ConfigError(
                f"--slow {word!r}: give a component and how many times slower, at most {MOST_SLOWNESS:.0f}, as in c1=3x"
            )
        if found[1] not in components:
            raise ConfigError(f"--slow {word}: there is no {found[1]}; this run has {', '.join(components)}")
        slow[found[1]] = float(found[2])
    return slow
