"""What depth and lag are worth: bits, or accuracy, against the number of components, and against steps of lag a hop.

    python -m benchmarks.depth                     tables, and benchmarks/depth.png
    python -m benchmarks.depth --quick --json      minutes, few and short runs; one object

Every point is what `mach compare --simulate` would say of the whole depth: recipes in virtual time, controls as plain
loops, the same data, sizes, steps and seeds (`workers/compare.py`). Depth is measured at the latency of processes of
one machine; `backprop` is the control of that name, to whose sections x comes along as to those of `mach-stream`, and
`independent` the average of as many components, each alone. Lag is measured at a fixed depth: every message takes so
many steps, each way, and windows have room for all that is then under way, so that nobody starves. Lock-step has no
staleness, so that `backprop` learns the same at every lag, at (1 + 2·lag·hops) times the price in time; it is drawn
as a line.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import torch
from msgspec import structs

from configs.load import load
from configs.tree import Config
from mach.data import Dataset
from mach.data import load as load_data
from mach.recipes import RECIPES
from workers.compare import Result, Virtual, control_rows, recipe, told
from workers.picture import check_plot
from workers.scoreboard import deviation
from workers.timing import timing_of

DEPTHS, LAGS = (1, 2, 4, 8), (0, 1, 2, 4, 8, 16, 32, 64)
QUICK_DEPTHS, QUICK_LAGS, QUICK_STEPS = (1, 2, 4), (0, 8), 60
LEARNERS = ("mach-stream", "dgl")
CONTROLS = ("backprop", "independent")
AT = 4
"""Components, where lag is measured."""
NATIVE = "1ms"
"""Latency where depth is measured; a step takes 5."""


@dataclass(frozen=True, slots=True)
class Point:
    """One recipe or control at one depth and lag, over seeds."""

    axis: str
    name: str
    x: int
    values: tuple[float, ...]
    """By seed: bits, of data that are no symbols accuracy."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.values)


class Bench:
    """All that the points have in common."""

    def __init__(self, config: str, settings: Sequence[str], seeds: int, folder: Path) -> None:
        self.config = config
        self.settings = tuple(settings)
        self.seeds = range(seeds)
        self.folder = folder
        self.dataset: Dataset = load_data(self.configured("backprop", AT, 0).data)

    def configured(self, name: str, depth: int, seed: int, lag: int = 0) -> Config:
        """A recipe on a chain, as `mach compare` has it, with room for so many steps of lag."""
        words = (f"recipe={name}", "graph=chain", f"n_components={depth}", f"seed={seed}", *self.settings)
        config = load(self.config, words, RECIPES)
        window = 2 * lag + 2
        return (
            config
            if lag == 0 or window <= config.bus.window
            else load(self.config, (*words, f"bus.window={window}"), RECIPES)
        )

    def learner(self, axis: str, name: str, depth: int, latency: str, x: int, lag: int = 0) -> Point:
        """One recipe, simulated."""
        runner = Virtual(timing_of(latency, "0", "5ms", (), depth))
        results = []
        for seed in self.seeds:
            directory = self.folder / f"{axis}-{name}-{x}-{seed}"
            # what a recipe computes is `mach compare`'s to say
            results.append(recipe(self.configured(name, depth, seed, lag), self.dataset, runner, directory, 1.0))
            say(f"{axis} {x}: {told(name, results[-1], 0.0).rpartition(',')[0]}")
        return self.point(axis, name, x, results)

    def controls(self, axis: str, names: Sequence[str], depth: int, x: int) -> Iterator[Point]:
        """Plain loops."""
        runner = Virtual(timing_of(NATIVE, "0", "5ms", (), depth))
        # x comes along in what they are compared with
        configs = [
            structs.replace(config, method=structs.replace(config.method, context=True))
            for config in (self.configured("backprop", depth, seed) for seed in self.seeds)
        ]
        for row in control_rows(
            "stream", configs, self.dataset, runner, lambda line: say(f"{axis} {x}: {line}"), names
        ):
            yield self.point(axis, row.name, x, row.results)

    def point(self, axis: str, name: str, x: int, results: Sequence[Result]) -> Point:
        """What was found."""
        full = [result.readings["full"] for result in results]
        return Point(axis, name, x, tuple(each.bits if self.dataset.symbols else each.accuracy for each in full))

    def against_depth(self, depths: Sequence[int]) -> Iterator[Point]:
        """Learners and controls at every depth."""
        for depth in depths:
            for name in LEARNERS:
                yield self.learner("depth", name, depth, NATIVE, depth)
            yield from self.controls("depth", CONTROLS, depth, depth)

    def against_lag(self, lags: Sequence[int]) -> Iterator[Point]:
        """Learners at every lag; the control once."""
        for lag in lags:
            for name in LEARNERS:
                yield self.learner("lag", name, AT, f"{lag}steps", lag, lag)
        if lags:
            yield from self.controls("lag", ("backprop",), AT, 0)


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def table(points: Sequence[Point], axis: str, unit: str) -> str:
    """Names down, depths or lags across, mean ± deviation."""
    mine = [point for point in points if point.axis == axis]
    across = sorted({point.x for point in mine})
    names = list(dict.fromkeys(point.name for point in mine))
    lines = [f"| {unit} by {axis} | " + " | ".join(map(str, across)) + " |", "|---" * (len(across) + 1) + "|"]
    for name in names:
        cells = {point.x: cell(point) for point in mine if point.name == name}
        lines.append(f"| {name} | " + " | ".join(cells.get(x, "") for x in across) + " |")
    return "\n".join(lines)


def cell(point: Point) -> str:
    """Mean ± deviation."""
    around = deviation(point.values)
    return f"{point.mean:.3f}" + ("" if around is None else f" ± {around:.3f}")


def document(points: Sequence[Point], unit: str) -> dict[str, Any]:
    """Axis → name → x → {mean, sd, seeds}."""
    found: dict[str, Any] = {"unit": unit}
    for point in points:
        row = {"mean": point.mean, "sd": deviation(point.values), "seeds": len(point.values)}
        found.setdefault(point.axis, {}).setdefault(point.name, {})[str(point.x)] = row
    return found


def draw(points: Sequence[Point], shown: Sequence[str], unit: str, file: Path) -> None:
    """The pictures side by side: mean over seeds, bars of one standard deviation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(shown), 4), layout="constrained")
    titles = {"depth": "components", "lag": f"steps of lag a hop, {AT} components"}
    for place, axis in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1, xlabel=titles[axis], ylabel=unit)
        mine = [point for point in points if point.axis == axis]
        for name in dict.fromkeys(point.name for point in mine):
            row = sorted((point for point in mine if point.name == name), key=lambda point: point.x)
            if axis == "lag" and name in CONTROLS:
                axes.axhline(row[0].mean, linestyle="--", color="C2", label=f"{name} (lock-step)")
                continue
            bars = [deviation(point.values) or 0.0 for point in row]
            axes.errorbar([p.x for p in row], [p.mean for p in row], bars, marker=".", capsize=3, label=name)
        axes.set_xscale("log" if axis == "depth" else "symlog", base=2)
        axes.set_xticks(sorted({point.x for point in mine}), [str(x) for x in sorted({point.x for point in mine})])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(file, dpi=120, format="png")


@click.command()
@click.option("--config", default="bytes-lm", show_default=True, help="As of mach compare.")
@click.option("--seeds", default=1, show_default=True, help="Runs of every point.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As of mach compare; repeatable.")
@click.option("--quick", is_flag=True, help=f"Depths {QUICK_DEPTHS}, lags {QUICK_LAGS}, {QUICK_STEPS} steps.")
@click.option("--only", type=click.Choice(["depth", "lag"]), help="One axis; without it both.")
@click.option("--png", type=click.Path(path_type=Path), help="The figure; without --quick benchmarks/depth.png.")
@click.option("--json", "as_json", is_flag=True, help="One object instead of tables.")
def main(
    config: str,
    seeds: int,
    settings: tuple[str, ...],
    only: str | None,
    png: Path | None,
    *,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure depth, then lag."""
    torch.set_num_threads(1)
    depths: Sequence[int] = () if only == "lag" else QUICK_DEPTHS if quick else DEPTHS
    lags: Sequence[int] = () if only == "depth" else QUICK_LAGS if quick else LAGS
    short = (f"train.steps={QUICK_STEPS}",) if quick else ()
    png = png or (None if quick else Path(__file__).with_suffix(".png"))
    if png is not None:
        check_plot(png)
    with tempfile.TemporaryDirectory(prefix="mach-depth-") as folder:
        bench = Bench(config, (*short, "evaluate.every_steps=1000000", *settings), seeds, Path(folder))
        unit = "bits a byte" if bench.dataset.symbols else "accuracy"
        points = [*bench.against_depth(depths), *bench.against_lag(lags)]
    axes = [axis for axis in ("depth", "lag") if only in (None, axis)]
    if as_json:
        click.echo(json.dumps(document(points, unit)))
    else:
        click.echo("\n\n".join(table(points, axis, unit) for axis in axes))
    if png is not None:
        draw(points, axes, unit, png)
        say(f"figure: {png}")


if __name__ == "__main__":
    main()
