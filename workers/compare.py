"""Recipes side by side: the same data, sizes, seeds and steps for all, beside the honest controls (`mach/controls.py`).

A recipe is run in virtual time (`Virtual`) or in real processes (`Real`); either leaves a run directory, and from there
on both are the same: the readings come from the saved weights, put together as one network (`mach/whole.py`). A
control's step takes, in virtual time, as much longer than that of one component alone as it has more to compute.

Laws: every recipe and control sees the same test set, and takes the same number of steps on batches of the same size.
"""

import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, Protocol

import msgspec

from configs.errors import ConfigError, RunError
from configs.tree import Config
from mach import controls
from mach.checkpoint import load_weights
from mach.controls import CEILING, CONTROLS, FLOOR, Trained, whole_of
from mach.data import Dataset, load
from mach.draws import Draws
from mach.graph import name_of
from mach.whole import Reading, readings
from workers.commands import run_quietly
from workers.curves import Point
from workers.devices import CPU
from workers.report import Report, Spread
from workers.rows import Rows
from workers.rundir import RunDir
from workers.simulate import simulate
from workers.spent import effort_of
from workers.status import Status
from workers.timing import Timing
from workers.verdict import FAILED, STOPPED

Say = Callable[[str], None]
"""Tells the user how far it is."""


NOISE = 0.02
"""A distance below this share of the bits is none; so is one of fewer bits than this: near 100 % there are few left."""
LATENCY_S = 1e-4
"""Of a message between processes of one machine."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a curve: how good the whole was, when."""

    seconds: float | None
    """None: nobody knows what time it would have taken beside the others."""
    step: int
    accuracy: float
    bits: float | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe or control with one seed."""

    seed: int
    readings: dict[str, Reading]
    """Of the final weights: `student`, `child` and `full`, as far as there are such."""
    curve: list[Mark]
    staleness_p50: float | None
    """Versions, over everything late that was used; None where nothing was."""
    staleness_p50_ms: float | None = None
    """The same in milliseconds."""
    multiply_adds: float
    """A step of component 0 and a sample, of all components together."""
    steps: dict[str, int]
    """That each component made; a control by its own name."""
    seconds: float | None = None
    """That it took, with its examinations."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe or control, by seed."""

    name: str
    control: bool
    wiring: str
    results: list[Result]
    config: Config
    """Of the first seed."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found."""

    rows: list[Row]
    symbols: bool
    """Whether the data are symbols, which are judged by bits, others by accuracy."""
    clock: str
    """Whose seconds: `virtual s` or `s`."""
    unmade: dict[str, dict[str, str]] = {}
    """By wiring the controls that are left out, and why."""
    title: str = ""
    """The configuration that rows have in common, as it was named."""
    shared: dict[str, str] = {}
    """Keys that tell methods apart and hold for all recipes, and who sets them (`workers/rows.py`)."""
    timing: Timing | None = None
    """Of virtual time."""
    devices: list[str] = []
    """Of real processes."""


class Runner(Protocol):
    """How a recipe is run."""

    clock: str

    @property
    def timing(self) -> Timing | None:
        """What was asked for, in virtual time."""
        ...

    @property
    def devices(self) -> Sequence[str]:
        """Of processes."""
        ...

    def run(self, config: Config, directory: Path) -> tuple[Status, dict[str, list[Point]]]:
        """To its end, leaving a run directory; its last status, and every examination by component."""
        ...

    def timing_of(self, status: Status) -> Timing:
        """How long things took."""
        ...

    def step_s(self, found: Trained, alone: Trained, networks: int, wall_s: float) -> float | None:
        """Seconds of one step of a control, whose step took `wall_s` here; None if that tells nothing of it."""
        ...


@dataclass(frozen=True, slots=True)
class Virtual:
    """In virtual time."""

    timing: Timing
    clock = "virtual s"
    devices = ()

    def run(self, config: Config, directory: Path) -> tuple[Status, dict[str, list[Point]]]:
        """By simulation."""
        outcome = simulate(config, self.timing, directory)
        return outcome.status, outcome.curves

    def timing_of(self, status: Status) -> Timing:
        """As was asked for."""
        return self.timing

    def step_s(self, found: Trained, alone: Trained, networks: int, wall_s: float) -> float:
        """In proportion to multiply-adds; several networks learn side by side, as components do."""
        return self.timing.compute_s[0][0] * found.multiply_adds / networks / alone.multiply_adds


@dataclass(frozen=True, slots=True)
class Real:
    """In processes, as `mach launch` does."""

    devices: tuple[str, ...]
    clock = "s"
    timing = None

    def run(self, config: Config, directory: Path) -> tuple[Status, dict[str, list[Point]]]:
        """By launching; examinations as the reports tell them, all of which are written down for that."""
        config = msgspec.structs.replace(config, report=msgspec.structs.replace(config.report, thin=0.0))
        status = run_quietly(config, directory.parent, directory.name, self.devices)
        if status.exit_code != 0 and any(row.state != "finished" for row in status.components):
            error = RunError(f"{directory.name} {status.state}: {status.reason or 'see its logs'}; nothing to compare")
            error.exit_code = STOPPED if status.state == "stopped" else FAILED
            raise error
        names = [row.component for row in status.components if row.kind == "trainer"]
        return status, {name: reported(RunDir(directory).metrics(name)) for name in names}

    def timing_of(self, status: Status) -> Timing:
        """From the rates; a message takes next to nothing."""
        return Timing(LATENCY_S, 0.0, tuple((1.0 / (row.rate or 1.0),) for row in status.components))

    def step_s(self, found: Trained, alone: Trained, networks: int, wall_s: float) -> float | None:
        """As it took here; several networks would have learned side by side. None beside recipes on other devices:
        controls are trained on the CPU, in this process.
        """
        return wall_s / networks if self.devices == CPU else None


def compare(rows: Rows, runner: Runner, folder: Path, say: Say) -> Comparison:
    """Run every row with every seed, and the controls of every wiring.

    Raises:
        ConfigError, DataError, RunError: as a launch would.
    """
    dataset = load(rows.first.data)
    found = []
    for name, seeds in rows.configs.items():
        results: list[Result] = []
        for config in seeds:
            began = time.monotonic()
            spent = results[0].multiply_adds if results else None
            results.append(recipe(config, dataset, runner, folder / f"{name}-{config.seed}", spent))
            say(told(name, results[-1], time.monotonic() - began))
        found.append(Row(name=name, control=False, wiring=seeds[0].wiring, results=results, config=seeds[0]))
    unmade = {wiring: controls.unmade(seeds[0], dataset) for wiring, seeds in rows.base.items()}
    for wiring, seeds in rows.base.items():
        names = [name for name in CONTROLS if name not in unmade[wiring]]
        found += control_rows(wiring, seeds, dataset, runner, say, names)
    return Comparison(
        rows=found,
        symbols=dataset.symbols > 0,
        clock=runner.clock,
        unmade=unmade,
        title=rows.title,
        shared=dict(rows.shared),
        timing=runner.timing,
        devices=list(runner.devices),
    )


def recipe(
    config: Config, dataset: Dataset, runner: Runner, directory: Path, multiply_adds: float | None = None
) -> Result:
    """One recipe with one seed; what it computes is counted, unless it is known from another seed."""
    status, curves = runner.run(config, directory)
    if status.reason:
        print(f"{directory.name}: {status.reason}", file=sys.stderr)
    whole = whole_of(config, dataset)
    for index in range(config.n_components):
        whole.part(index).load_state_dict(load_weights(RunDir(directory).weights(name_of(index))))
    with Draws(config.seed, 0):
        read = readings(whole, dataset, config.train.batch_size, heads=config.method.heads == "every")
    return Result(
        seed=config.seed,
        readings=read,
        curve=curve_of(config, curves, whole.path[-1]),
        staleness_p50=staleness(status, "p50"),
        staleness_p50_ms=staleness(status, "p50_ms"),
        multiply_adds=multiply_adds or effort_of(config, runner.timing_of(status), directory),
        steps={row.component: row.step for row in status.components},
        seconds=status.elapsed_s,
    )


def control_rows(
    wiring: str,
    seeds: Sequence[Config],
    dataset: Dataset,
    runner: Runner,
    say: Say,
    names: Collection[str] = tuple(CONTROLS),
) -> list[Row]:
    """Controls, for the wiring of some recipe: all, or those of these names, the first of them the measure of time."""
    rows: dict[str, list[Result]] = {name: [] for name in names}
    for config in seeds:
        alone: Trained | None = None
        for name in sorted(names, key=lambda name: name != "alone"):  # the measure of the others' time comes first
            began = time.monotonic()
            found = controls.train(name, config, dataset)
            alone = alone or found
            wall_s = time.monotonic() - began
            networks = config.n_components if name == "independent" else 1
            step_s = runner.step_s(found, alone, networks, wall_s / config.train.steps)
            curve = [
                Mark(seconds=at_s, step=step, accuracy=read.accuracy, bits=read.bits)
                for step, read in found.curve
                for at_s in [None if step_s is None else step * step_s]
            ]
            kind = "student" if name == FLOOR else "full"
            result = Result(
                seed=config.seed,
                readings={kind: found.reading, "full": found.reading},
                curve=curve,
                staleness_p50=None,
                multiply_adds=found.multiply_adds,
                steps={name: config.train.steps},
                seconds=curve[-1].seconds,
            )
            rows[name].append(result)
            say(told(f"control {name} ({wiring})", result, wall_s))
    return [
        Row(name=name, control=True, wiring=wiring, results=results, config=seeds[0]) for name, results in rows.items()
    ]


def told(name: str, result: Result, wall_s: float) -> str:
    """One line about what was just done."""
    full = result.readings["full"]
    return f"{name}, seed {result.seed}: {100 * full.accuracy:.2f} %, {full.bits:.4f} bits, in {wall_s:.0f} s"


def curve_of(config: Config, curves: dict[str, list[Point]], last: int) -> list[Mark]:
    """How good the whole was on its way, as examined: in skip wiring c0 with its child, in stream the last one."""
    own = config.wiring == "stream" or config.n_components == 1
    points = curves[name_of(last if config.wiring == "stream" else 0)]
    return [
        Mark(
            seconds=point.seconds,
            step=point.step,
            accuracy=point.student if own else point.child or 0.0,
            bits=point.student_bits if own else point.child_bits,
        )
        for point in points
        if own or point.child is not None
    ]


def staleness(status: Status, age: Literal["p50", "p50_ms"]) -> float | None:
    """The median age of what was late: of the medians of every component and kind, by how often."""
    spreads = [
        spread
        for row in status.components
        for spread in (getattr(row.staleness, field) for field in row.staleness.__struct_fields__)
        if isinstance(spread, Spread)
    ]
    ages = sorted((at, spread.count) for spread in spreads if (at := getattr(spread, age)) is not None)
    half, so_far = sum(count for _, count in ages) / 2, 0
    for at, count in ages:
        so_far += count
        if so_far >= half:
            return float(at)
    return None


def reported(metrics: Path) -> list[Point]:
    """Examinations, from a component's reports: each as of the first report that knows it."""
    points: list[Point] = []
    for line in metrics.read_bytes().splitlines():
        report = msgspec.json.decode(line, type=Report)
        seen = report.accuracy
        if seen.student is None or seen.step is None:
            continue
        point = Point(
            seconds=report.elapsed_s,
            step=seen.step,
            student=seen.student,
            child=seen.child,
            student_bits=seen.student_bits,
            child_bits=seen.child_bits,
        )
        if not points or msgspec.structs.replace(points[-1], seconds=point.seconds) != point:
            points.append(point)
    return points


def gap_closed(comparison: Comparison) -> dict[str, float | None]:
    """By recipe: the share of the distance in bits from one alone with its student to backpropagation, of its wiring.

    None where there is no distance to close: backpropagation is no better than one alone, by more than NOISE.
    """
    bits = {(row.name, row.wiring): mean_bits(row) for row in comparison.rows if row.control}
    closed: dict[str, float | None] = {}
    for row in comparison.rows:
        if not row.control:
            floor, ceiling = bits[FLOOR, row.wiring], bits[CEILING, row.wiring]
            closed[row.name] = (
                (floor - mean_bits(row)) / (floor - ceiling) if floor - ceiling > NOISE * max(floor, 1.0) else None
            )
    return closed


def mean_bits(row: Row, kind: str = "full") -> float:
    """Mean over seeds of a reading."""
    return fmean(result.readings[kind].bits for result in row.results)


def time_to(target: float, curve: Iterable[Mark], *, bits: bool) -> float | None:
    """Seconds until a curve first reached the target, if it did and they are known: at most so many bits, or at least
    such an accuracy.
    """
    for mark in curve:
        if bits and mark.bits is not None and mark.bits <= target:
            return mark.seconds
        if not bits and mark.accuracy >= target:
            return mark.seconds
    return None


def default_target(comparison: Comparison) -> float:
    """What one alone reached in the end with every seed, and in every wiring: all of its curves come to it."""
    ends = [
        result.readings["full"]
        for row in comparison.rows
        if row.control and row.name == "alone"
        for result in row.results
    ]
    return max(end.bits for end in ends) if comparison.symbols else min(end.accuracy for end in ends)


def check(configs: Iterable[Config]) -> None:
    """Raise a ConfigError for runs that cannot be compared."""
    for config in configs:
        if config.train.minutes is not None:
            raise ConfigError("train.minutes: runs are compared after the same number of steps; use --steps")
        if any(override.stub is not None for override in config.components.values()):
            raise ConfigError("components.N.stub: a stub is no component that could be compared; leave it out")
