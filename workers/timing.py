"""How long things take in a simulation: words of the command line into seconds. Knows no torch and no bus.

50ms, 0.2s, 80us       a duration
8steps                 so many times the time of one step (`--compute`, its general value)
5ms,c2=50ms            a general value, and exceptions by component
c1=10x                 a component that is so many times slower than it would be
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from configs.errors import ConfigError
from mach.graph import name_of

UNITS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
STEPS = ("step", "steps")
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


@dataclass(frozen=True, slots=True)
class Timing:
    """All the time there is in a simulated run, in seconds."""

    latency_s: float
    """Of every message, each way."""
    jitter_s: float
    """Uniform extra latency, 0 to this."""
    compute_s: tuple[tuple[float, ...], ...]
    """By component: of its steps, answers included, one after the other and then from the first again; above 0."""
    start_s: tuple[float, ...] = ()
    """By component: when it begins; all at once without."""

    @property
    def quiet_s(self) -> float:
        """So long nothing may happen where all is well: until the last begins, in a step, on the way there and back."""
        step_s = max(max(each) for each in self.compute_s)
        return max(self.start_s, default=0.0) + step_s + 2 * (self.latency_s + self.jitter_s)


def timing_of(latency: str, jitter: str, compute: str, stragglers: Iterable[str], n_components: int) -> Timing:
    """The timing that options describe.

    Raises:
        ConfigError: a word that is no duration, a component that is not there, a step that takes no time.
    """
    general, exceptions = by_component("--compute", compute, n_components)
    step_s = seconds("--compute", general)
    times = {name: seconds("--compute", text) for name, text in exceptions.items()}
    steps_s = {name_of(i): times.get(name_of(i), step_s) for i in range(n_components)}
    for text in stragglers:
        name, factor = straggler(text, n_components)
        steps_s[name] *= factor
    if min(steps_s.values()) <= 0.0:
        raise ConfigError(f"--compute {compute}: a step takes time; give more than 0")
    return Timing(
        seconds("--latency", latency, step_s),
        seconds("--jitter", jitter, step_s),
        tuple((each,) for each in steps_s.values()),
    )


def seconds(option: str, text: str, step_s: float | None = None) -> float:
    """`text` in seconds; in steps, too, where `step_s` says how long one is."""
    found = re.fullmatch(NUMBER + r"\s*([a-z]*)", text.strip())
    if found is not None:
        number, unit = float(found[1]), found[2]
        if unit in UNITS:
            return number * UNITS[unit]
        if unit in STEPS and step_s is not None:
            return number * step_s
        if not number and not unit:
            return 0.0
    steps = ", 8steps" if step_s is not None else ""
    raise ConfigError(f"{option} {text}: is no duration; write a number and its unit, as in 50ms, 0.2s, 80us{steps}")


def by_component(option: str, text: str, n_components: int) -> tuple[str, dict[str, str]]:
    """`5ms,c2=50ms`: the general value, and the exceptions by name."""
    general: list[str] = []
    exceptions: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if equals:
            exceptions[_component(option, text, name, n_components)] = value
        else:
            general.append(name)
    if len(general) != 1:
        raise ConfigError(f"{option} {text}: give one value for all, then exceptions, as in 5ms,c2=50ms")
    return general[0], exceptions


def straggler(text: str, n_components: int) -> tuple[str, float]:
    """`c1=10x`: who, and how many times slower."""
    name, _, value = text.partition("=")
    found = re.fullmatch(NUMBER + "x", value.strip())
    if found is None or float(found[1]) < 1.0:  # who is faster has a time of its own: --compute 5ms,c1=2ms
        raise ConfigError(f"--straggler {text}: write who is how many times slower, 1x or more, as in c1=10x")
    return _component("--straggler", text, name, n_components), float(found[1])


def _component(option: str, text: str, name: str, n_components: int) -> str:
    if name not in map(name_of, range(n_components)):
        raise ConfigError(f"{option} {text}: there is no component {name!r}; this run has c0 to c{n_components - 1}")
    return name
