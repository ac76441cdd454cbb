"""A comparison as a picture of its curves. Knows no model and runs nothing.

Needs matplotlib, which is the extra `plot`.
"""

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from configs.errors import ConfigError
from workers.compare import Comparison, Mark
from workers.scoreboard import asked, timed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


POINTS = {"stream": "o", "skip": "s"}
"""How a curve of one point is drawn; a control's is hollow."""


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
    """The curves into a PNG.

    Raises:
        ConfigError: there is no matplotlib, or the file cannot be written.
    """
    check_plot(file)
    try:
        drawn(comparison).savefig(file, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"--png {file}: cannot be written ({error.strerror}); choose another place") from error


def drawn(comparison: Comparison) -> "Figure":
    """The curves: mean over seeds, controls dashed, the band one standard deviation wide. Whose times are not known is
    drawn as a level: what it ended with.
    """
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
        if len(middle) == 1:  # no line is drawn through it, and colours come again after ten rows
            line.set(marker=POINTS[row.wiring], fillstyle="none" if row.control else "full")
        low, high = zip(*((m - s, m + s) for m, s in zip(middle, around, strict=True)), strict=True)
        axes.fill_between(seconds, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_title(headline(comparison), fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


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


def headline(comparison: Comparison) -> str:
    """What was compared, and how."""
    seeds, timing = len(comparison.rows[0].results), comparison.timing
    how = "real processes" if timing is None else f"latency {1e3 * timing.latency_s:g} ms"
    return f"{comparison.title}: {asked(comparison):,} steps, {how}, {seeds} seed{'s' if seeds > 1 else ''}"
