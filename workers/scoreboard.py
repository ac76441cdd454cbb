"""A comparison for people and programs: one table with its footnotes, one JSON document.

Knows no model and runs nothing. Values are means over seeds, with the standard deviation (of one seed: none) behind ±.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import msgspec
from rich.table import Table

from mach.controls import CEILING, FLOOR
from workers.compare import Comparison, Result, Row, gap_closed, time_to
from workers.origin import versions
from workers.tally import Found, RowOf, SeedOf
from workers.timing import Timing

KINDS = ("student", "child", "full")
ACCOUNT = (
    "student: c0 alone, as it ships; child: c0 with its true child; full: the whole depth. To target: {clock} until "
    "the curve first was at {target}, on average over seeds if all came there, else how many did; without --target, "
    "where the control alone ends with its worst seed, so that all of its seeds come there. Staleness: versions, the "
    "median of all that came late and was used, then {ms} from sending to use. Of a late gradient they are those that "
    "the component has made since it answered; of a child's answer those alone that the parent has heard of, and no "
    "more answers are under way than the window (bus.window) has places: a full one bounds them, at any latency. "
    "Effort: multiply-adds a step and sample, all components together, in those of backprop. Gap closed: of the bits "
    "from alone+student to backprop; none where those are as good as equal."
)

UNTIMED = (
    "Controls have no time to target: they are trained on the CPU, in one process, and the recipes on other devices; "
    "--gpus cpu, or --simulate, makes times that compare."
)


FEW = 0.9
"""A row in which some component made a smaller share of its steps is told of."""
FEWER = (
    "Fewer steps than the others: {rows}. In stream wiring a section learns from what it is sent, and nothing is sent "
    "before the edge is open, which takes a round trip, nor where its window (bus.window) has no room, as when a round "
    "trip takes more steps than that has places, or the section below is slower.{trip} More steps, a larger bus.window "
    "or less latency makes less of it."
)
TRIP = " Here one to the next section takes {steps:.0f} steps."


def document(comparison: Comparison, target: float) -> dict[str, Any]:
    """By row its record, and what else there is (`workers/tally.py`)."""
    controls: dict[str, dict[str, RowOf]] = {}
    for row in comparison.rows:
        if row.control:
            controls.setdefault(row.wiring, {})[row.name] = record(row, comparison, target)
    found = Found(
        controls=controls,
        gap_closed=gap_closed(comparison),
        target=target,
        clock=comparison.clock,
        left_out=left_out(comparison),
        configuration=comparison.title,
        steps=asked(comparison),
        timing=comparison.timing,
        devices=comparison.devices,
        set_for_all=comparison.shared,
        x_again=x_again(comparison),
        versions=versions(),
    )
    records = {row.name: record(row, comparison, target) for row in comparison.rows if not row.control}
    document: dict[str, Any] = msgspec.to_builtins({**records, **msgspec.structs.asdict(found)}, str_keys=True)
    return document


def left_out(comparison: Comparison) -> dict[str, str]:
    """What a program looks for in vain: its path in the document, and why it is not there, or null."""
    every = comparison.unmade.items()
    missing = {f"controls.{wiring}.{name}": why for wiring, unmade in every for name, why in unmade.items()}
    level = f"{CEILING} ends with no fewer bits than {FLOOR}, but for noise: there is no distance to close"
    return missing | {f"gap_closed.{name}": level for name, share in gap_closed(comparison).items() if share is None}


def asked(comparison: Comparison) -> int:
    """Steps that everybody was asked for."""
    return comparison.rows[0].config.train.steps


def x_again(comparison: Comparison) -> dict[str, list[str]]:
    """By wiring the rows, not controls, whose sections read x again."""
    found: dict[str, list[str]] = {}
    for row in comparison.rows:
        if not row.control and row.config.method.context:
            found.setdefault(row.wiring, []).append(row.name)
    return found


def record(row: Row, comparison: Comparison, target: float) -> RowOf:
    """One row: means over seeds, deviations, and every seed."""
    reached, results = times(row, comparison, target), row.results
    quality: dict[str, Any] = {}
    for kind in KINDS:
        for key, values in (
            (named("loss_bits", kind), bits_of(row, kind)),
            (named("accuracy", kind), shares(row, kind)),
        ):
            quality[key], quality[f"{key}_sd"] = mean(values), deviation(values)
    return RowOf(
        seeds=[result.seed for result in results],
        wiring=row.wiring,
        staleness_p50=mean([result.staleness_p50 for result in results]),
        staleness_p50_ms=mean([result.staleness_p50_ms for result in results]),
        seconds_to_target=mean(reached),
        multiply_adds=fmean(result.multiply_adds for result in results),
        fewest_steps=fewest(row)[0],
        by_seed=[seed_of(result, seconds) for result, seconds in zip(results, reached, strict=True)],
        config=msgspec.to_builtins(row.config, str_keys=True),
        **quality,
    )


def seed_of(result: Result, to_target: float | None) -> SeedOf:
    """One seed of a row."""
    read: dict[str, float | None] = {}
    for kind in KINDS:
        reading = result.readings.get(kind)
        read[named("loss_bits", kind)] = None if reading is None else reading.bits
        read[named("accuracy", kind)] = None if reading is None else reading.accuracy
    return SeedOf(
        seed=result.seed,
        seconds_to_target=to_target,
        seconds=result.seconds,
        steps=result.steps,
        staleness_p50=result.staleness_p50,
        staleness_p50_ms=result.staleness_p50_ms,
        **read,
    )


def named(key: str, kind: str) -> str:
    """A reading's name; the whole depth goes without saying."""
    return key if kind == "full" else f"{key}_{kind}"


def fewest(row: Row) -> tuple[int, str]:
    """The fewest steps that a component made with any seed, and which did."""
    return min((steps, name) for result in row.results for name, steps in result.steps.items())


def table(comparison: Comparison, target: float) -> Table:
    """One line a recipe, then one a control."""
    unit = "bits" if comparison.symbols else "%"
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("")
    for name in (
        *(f"{kind} {unit}" for kind in KINDS),
        f"to target, {comparison.clock}",
        "staleness",
        milliseconds(comparison),
        "effort",
        "gap closed",
    ):
        shown.add_column(name, justify="right")
    wirings = {row.wiring for row in comparison.rows}
    closed = gap_closed(comparison)
    for row in comparison.rows:
        label = f"control {row.name}" + (f" ({row.wiring})" if len(wirings) > 1 else "") if row.control else row.name
        share = None if row.control else closed[row.name]
        shown.add_row(
            label,
            *(quality(row, kind, comparison) for kind in KINDS),
            spread(times(row, comparison, target), ".2f"),
            spread([result.staleness_p50 for result in row.results], ".0f"),
            spread([result.staleness_p50_ms for result in row.results], ".0f"),
            spread([effort(row, comparison)], ".2f"),
            "" if row.control else spread([share], ".2f"),
            style="dim" if row.control else None,
        )
    return shown


def milliseconds(comparison: Comparison) -> str:
    """Of its clock: `virtual ms`, or `ms`."""
    return comparison.clock.removesuffix("s") + "ms"


def account(comparison: Comparison, target: float) -> str:
    """What the columns of the table mean, and, a line each, what has to be known of rows to compare them."""
    wanted = f"{target:.4f} bits" if comparison.symbols else f"{100 * target:.2f} %"
    lines = [ACCOUNT.format(clock=comparison.clock, target=wanted, ms=milliseconds(comparison))]
    lines += [] if all(timed(row) for row in comparison.rows) else [UNTIMED]
    lines += fewer(comparison)
    lines += [again(comparison, wiring, rows) for wiring, rows in x_again(comparison).items()]
    lines += set_for_all(comparison)
    unmade = [(f"{name} ({wiring})", why) for wiring, each in comparison.unmade.items() for name, why in each.items()]
    return "\n".join([*lines, *(f"No control {name}: {why}." for name, why in unmade)])


def fewer(comparison: Comparison) -> list[str]:
    """Who made fewer steps than were asked for, and why."""
    steps = asked(comparison)
    rows = [
        f"{row.name} ({name} made {made:,} of {steps:,}, bus.window {row.config.bus.window})"
        for row in comparison.rows
        for made, name in [fewest(row)]
        if made < FEW * steps
    ]
    return [FEWER.format(rows=", ".join(rows), trip=trip(comparison.timing))] if rows else []


def trip(timing: Timing | None) -> str:
    """How long a round trip is, if that is known: there, a step, and back."""
    if timing is None:
        return ""
    return TRIP.format(steps=1 + (2 * timing.latency_s + timing.jitter_s) / min(map(min, timing.compute_s)))


def again(comparison: Comparison, wiring: str, readers: Sequence[str]) -> str:
    """Why the controls of a wiring read x again, and whose figures that changes."""
    told = (
        f"Every section of {', '.join(readers)} reads x again (method.context), so that the {wiring} controls do, too"
    )
    others = [row.name for row in comparison.rows if not row.control and row.wiring == wiring]
    others = [name for name in others if name not in readers]
    figures = f": effort and gap closed of {', '.join(others)} are against networks that read x again"
    return told + (figures if others else "") + "."


def set_for_all(comparison: Comparison) -> list[str]:
    """Which keys make other methods of recipes and controls."""
    if not comparison.shared:
        return []
    keys = ", ".join(f"{key} ({where})" for key, where in comparison.shared.items())
    return [
        f"Not the recipes' own: {keys}. What a file sets holds for every recipe that does not set it itself, and for "
        "controls, and --set for all rows; a row of its own, mach compare my.yaml …, keeps its settings to itself."
    ]


def timed(row: Row) -> bool:
    """Whether it is known when it was how good."""
    return all(mark.seconds is not None for result in row.results for mark in result.curve)


def quality(row: Row, kind: str, comparison: Comparison) -> str:
    """A reading's cell."""
    if comparison.symbols:
        return spread(bits_of(row, kind), ".3f")
    return spread([None if value is None else 100 * value for value in shares(row, kind)], ".2f")


def effort(row: Row, comparison: Comparison) -> float:
    """Multiply-adds, in those of backpropagation of the same wiring."""
    (ceiling,) = [
        other for other in comparison.rows if other.control and (other.name, other.wiring) == (CEILING, row.wiring)
    ]
    return fmean(each.multiply_adds for each in row.results) / fmean(each.multiply_adds for each in ceiling.results)


def times(row: Row, comparison: Comparison, target: float) -> list[float | None]:
    """Seconds to the target, by seed."""
    return [time_to(target, result.curve, bits=comparison.symbols) for result in row.results]


def bits_of(row: Row, kind: str) -> list[float | None]:
    """A reading by seed."""
    return [None if (reading := each.readings.get(kind)) is None else reading.bits for each in row.results]


def shares(row: Row, kind: str) -> list[float | None]:
    """A reading by seed."""
    return [None if (reading := each.readings.get(kind)) is None else reading.accuracy for each in row.results]


def mean(values: Sequence[float | None]) -> float | None:
    """Of all values; None if one is missing: a mean over those that made it would flatter."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def deviation(values: Sequence[float | None]) -> float | None:
    """Standard deviation of the sample; None for fewer than two values."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 and len(known) == len(values) else None


def spread(values: Sequence[float | None], form: str) -> str:
    """Mean ± deviation; a dash where nothing is known, and how many are where some are missing."""
    centre, around = mean(values), deviation(values)
    if centre is None:
        known = sum(value is not None for value in values)
        return f"{known} of {len(values)}" if known else "–"
    return f"{centre:{form}}" + ("" if around is None else f" ± {around:{form}}")
