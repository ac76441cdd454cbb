"""A small comparison as it could have been found, for those who show one."""

from collections.abc import Sequence

from msgspec.structs import replace

from configs.load import load
from mach.recipes import RECIPES
from mach.whole import Reading
from workers.compare import Comparison, Mark, Result, Row


def result(seed: int, *, curve: bool = True, **bits: float) -> Result:
    readings = {kind: Reading(1.0 - value / 10, value) for kind, value in bits.items()}
    marks = [Mark(seconds=s, step=s, accuracy=0.4 + s / 10, bits=4.0 - s + seed / 10) for s in (1, 2)] if curve else []
    return Result(
        seed=seed,
        readings=readings,
        curve=marks,
        staleness_p50=2.0,
        staleness_p50_ms=16.0,
        multiply_adds=300.0,
        steps={"c0": 8, "c1": 8},
        seconds=3.0,
    )


def row(name: str, results: Sequence[Result], *, control: bool = True, settings: Sequence[str] = ()) -> Row:
    config = load("digits", ("recipe=dgl", "train.steps=8", *settings), RECIPES)
    return Row(name=name, control=control, wiring="stream", results=list(results), config=config)


def comparison(*, symbols: bool = True) -> Comparison:
    two = [result(0, student=2.6, child=2.5, full=2.4), result(1, student=2.8, child=2.7, full=2.6)]
    plain = [result(0, full=2.0), result(1, full=2.2)]
    floor = [result(0, student=3.0, full=3.0), result(1, student=3.2, full=3.2)]
    rows = [
        row("mach-stream", two, control=False),
        row("backprop", plain),
        row("alone+student", floor),
    ]
    return Comparison(rows=rows, symbols=symbols, clock="virtual s", title="digits")


def untimed() -> Comparison:
    """Recipes on GPUs, controls on the CPU."""
    found = comparison()
    for row in found.rows:
        for one in row.results if row.control else ():
            one.curve[:] = [replace(mark, seconds=None) for mark in one.curve]
    return found
