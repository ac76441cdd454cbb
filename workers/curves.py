"""How good a component was, when: points of an examination, and the first time that a mark was reached.

Knows no model and no torch. Seconds are those of the run's own clock, virtual or real.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import msgspec
from rich.table import Table

MARKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Accuracies whose times are shown where no target is given."""
MARKS_BITS = (6.0, 5.0, 4.0, 3.5, 3.0, 2.75, 2.5, 2.25, 2.0)
"""The same in bits, for data that are judged by them."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One examination of one component."""

    seconds: float
    """When it was over: since the start of the run."""
    step: int
    """The version that was examined."""
    student: float
    """Accuracy with the student standing in, 0 to 1."""
    child: float | None = None
    """With the true children; None without children, or while they have not all answered."""
    student_bits: float | None = None
    """Cross-entropy in bits a label, as `student`."""
    child_bits: float | None = None


Curves = Mapping[str, Sequence[Point]]
"""By component, oldest first."""


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """When components reached a mark, in seconds; the times are of those that did."""

    mark: float
    by: int
    """How many components."""
    of: int
    first_s: float | None
    median_s: float | None
    last_s: float | None


def time_to(mark: float, curve: Iterable[Point], kind: str = "student", *, bits: bool = False) -> float | None:
    """Seconds until a component was first at `mark`: at least such an accuracy, or at most so many bits.

    `kind` is `student` or `child`.
    """
    for point in curve:
        value = getattr(point, f"{kind}_bits" if bits else kind)
        if value is not None and (value <= mark if bits else value >= mark):
            return point.seconds
    return None


def reached(curves: Curves, marks: Sequence[float], kind: str = "student", *, bits: bool = False) -> list[Reached]:
    """One row a mark. Who was examined and never had such a reading is left out: the last of a chain has no child."""
    rows = []
    name = f"{kind}_bits" if bits else kind
    of = sum(not curve or any(getattr(point, name) is not None for point in curve) for curve in curves.values())
    for mark in marks:
        found = [time_to(mark, curve, kind, bits=bits) for curve in curves.values()]
        times = sorted(time for time in found if time is not None)
        rows.append(
            Reached(
                mark=mark,
                by=len(times),
                of=of,
                first_s=times[0] if times else None,
                median_s=median(times) if times else None,
                last_s=times[-1] if times else None,
            )
        )
    return rows


def table(rows: Mapping[str, Sequence[Reached]], clock: str, *, bits: bool = False) -> Table:
    """The rows by kind, on a screen; marks that nobody reached are left out, but the lowest."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    what = "time to bits" if bits else "time to accuracy"
    for name in (what, "with", "reached by", f"first, {clock}", "median", "last"):
        shown.add_column(name, justify="left" if name in (what, "with") else "right")
    for kind, marks in rows.items():
        for row in marks:
            if row.by or row is marks[0]:
                times = (row.first_s, row.median_s, row.last_s)
                shown.add_row(
                    f"{row.mark:g}" if bits else f"{100 * row.mark:g} %",
                    kind,
                    f"{row.by}/{row.of}",
                    *("–" if t is None else f"{t:.2f}" for t in times),
                )
    return shown
