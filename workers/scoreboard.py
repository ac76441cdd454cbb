"""A comparison for people and programs: one table, one JSON document, one picture of the curves.

Knows no model and runs nothing. Values are means over seeds, with the standard deviation (of one seed: none) behind ±.
The picture needs matplotlib, which is the extra `plot`.
"""

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from configs.errors import ConfigError
from mach.controls import CEILING, FLOOR
from workers.compare import Comparison, Mark, Row, gap_closed, time_to

KINDS = ("student", "child", "full")
ACCOUNT = (
    "student: c0 alone, as it ships; child: c0 with its true child; full: the whole depth. To target: {clock} until "
    "the curve first was at {target}. Staleness: versions, the median of all that came late and was used. Effort: "
    "multiply-adds a step and sample, all components together, in those of backprop. Gap closed: of the bits "
    "from alone+student to backprop; none where those are as good as equal."
)

UNTIMED = (
    " Controls have no time to target: they are trained on the CPU, in one process, and the recipes on other devices; "
    "--gpus cpu, or --simulate, makes times that compare."
)


def document(comparison: Comparison, target: float) -> dict[str, Any]:
    """By recipe its record, then `controls`, `gap_closed`, `target`, `clock` and `left_out`: the paths of what is not
    there, or null, and why.
    """
    records = {row.name: record(row, comparison, target) for row in comparison.rows if not row.control}
    controls: dict[str, dict[str, Any]] = {}
    for row in comparison.rows:
        if row.control:
            controls.setdefault(row.wiring, {})[row.name] = record(row, comparison, target)
    last = {"controls": controls, "gap_closed": gap_closed(comparison), "target": target, "clock": comparison.clock}
    return {**records, **last, "left_out": left_out(comparison)}


def left_out(comparison: Comparison) -> dict[str, str]:
    """What a program looks for in vain: its path in the document, and why it is not there, or null."""
    every = comparison.unmade.items()
    missing = {f"controls.{wiring}.{name}": why for wiring, unmade in every for name, why in unmade.items()}
    level = f"{CEILING} ends with no fewer bits than {FLOOR}, but for noise: there is no distance to close"
    return missing | {f"gap_closed.{name}": level for name, share in gap_closed(comparison).items() if share is None}


def record(row: Row, comparison: Comparison, target: float) -> dict[str, Any]:
    """One row: means over seeds, deviations as `…_sd`, seconds to the target (None if a seed never got there, or of a
    control beside recipes on other devices).
    """
    found: dict[str, Any] = {"seeds": [result.seed for result in row.results], "wiring": row.wiring}
    for kind in KINDS:
        for key, values in (("loss_bits", bits_of(row, kind)), ("accuracy", accuracies_of(row, kind))):
            name = key if kind == "full" else f"{key}_{kind}"
            found[name], found[f"{name}_sd"] = mean(values), deviation(values)
    found["staleness_p50"] = mean([result.staleness_p50 for result in row.results])
    found["seconds_to_target"] = mean(times(row, comparison, target))
    found["multiply_adds"] = mean([result.multiply_adds for result in row.results])
    return found


def table(comparison: Comparison, target: float) -> Table:
    """One line a recipe, then one a control."""
    unit = "bits" if comparison.symbols else "%"
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("")
    for name in (
        *(f"{kind} {unit}" for kind in KINDS),
        f"to target, {comparison.clock}",
        "staleness",
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
            spread([effort(row, comparison)], ".2f"),
            "" if row.control else spread([share], ".2f"),
            style="dim" if row.control else None,
        )
    return shown


def account(comparison: Comparison, target: float) -> str:
    """What the columns of the table mean."""
    wanted = f"{target:.4f} bits" if comparison.symbols else f"{100 * target:.2f} %"
    told = ACCOUNT.format(clock=comparison.clock, target=wanted)
    told += "" if all(timed(row) for row in comparison.rows) else UNTIMED
    unmade = [(f"{name} ({wiring})", why) for wiring, each in comparison.unmade.items() for name, why in each.items()]
    return "".join([told, *(f" No control {name}: {why}." for name, why in unmade)])


def timed(row: Row) -> bool:
    """Whether it is known when it was how good."""
    return all(mark.seconds is not None for result in row.results for mark in result.curve)


def quality(row: Row, kind: str, comparison: Comparison) -> str:
    """A reading's cell."""
    if comparison.symbols:
        return spread(bits_of(row, kind), ".3f")
    return spread([None if value is None else 100 * value for value in accuracies_of(row, kind)], ".2f")


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


def accuracies_of(row: Row, kind: str) -> list[float | None]:
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


def check_plot(file: Path) -> None:
    """Raise a ConfigError where no picture can be drawn, or none put there: before an hour of training."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('--png: needs matplotlib, which is not installed; pip install "mach-train[plot]"')
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--png {file}: is drawn as a PNG; let its name end in .png")
    if file.is_dir():
        raise ConfigError(f"--png {file}: is a directory; name a file in it")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--png {file}: there is no directory {file.parent}; make it, or choose another place")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise ConfigError(f"--png {file}: may not be written; choose another place")


def draw(comparison: Comparison, file: Path) -> None:
    """The curves into a PNG: mean over seeds, controls dashed, the band one standard deviation wide. Whose times are
    not known is drawn as a level: what it ended with.

    Raises:
        ConfigError: there is no matplotlib, or the file cannot be written.
    """
    check_plot(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=comparison.clock, ylabel=unit_of(comparison))
    wirings = {row.wiring for row in comparison.rows}
    for row in comparison.rows:
        label = f"{row.name} (control{', ' + row.wiring if len(wirings) > 1 else ''})" if row.control else row.name
        seconds, middle, around = band([result.curve for result in row.results], bits=comparison.symbols)
        if not middle:
            continue
        if not timed(row):
            axes.axhline(middle[-1], linestyle="--", label=label, color=f"C{len(axes.lines)}")
            continue
        (line,) = axes.plot(seconds, middle, "--" if row.control else "-", label=label, marker=".")
        low, high = zip(*((m - s, m + s) for m, s in zip(middle, around, strict=True)), strict=True)
        axes.fill_between(seconds, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(file, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"--png {file}: cannot be written ({error.strerror}); choose another place") from error


def band(curves: Sequence[Iterable[Mark]], *, bits: bool) -> tuple[list[float], list[float], list[float]]:
    """Seconds (none if they are not known), means and deviations over seeds, at steps all of them were examined at."""
    by_step = [{mark.step: mark for mark in curve if not bits or mark.bits is not None} for curve in curves]
    common = sorted(set.intersection(*(set(marks) for marks in by_step)))
    seconds, middle, around = [], [], []
    for step in common:
        marks = [marks[step] for marks in by_step]
        values = [mark.bits if bits and mark.bits is not None else 100 * mark.accuracy for mark in marks]
        known = [mark.seconds for mark in marks if mark.seconds is not None]
        seconds += [fmean(known)] if known else []
        middle.append(fmean(values))
        around.append(stdev(values) if len(values) > 1 else 0.0)
    return seconds, middle, around


def unit_of(comparison: Comparison) -> str:
    """What the curves show."""
    return "bits a byte on the test set" if comparison.symbols else "test accuracy, %"
