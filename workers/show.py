"""What `mach simulate` and `mach compare` put on the screen. Knows no option; what they do lies in
`workers/simulate.py` and `workers/compare.py`. Results go to stdout, progress to stderr.
"""

import math
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path

import msgspec
from rich.live import Live

from configs.errors import ConfigError
from configs.tree import Config
from mach.data import load
from workers import curves, picture, scoreboard, screen
from workers.compare import Runner, check, compare, default_target
from workers.rows import Rows
from workers.scratch import scratch
from workers.simulate import Outcome, simulate
from workers.status import Status
from workers.timing import Timing


def simulation(config: Config, timing: Timing, *, lockstep: bool, target: float | None, as_json: bool) -> int:
    """Run, watched on a terminal, and print what came out; its cost in real time and memory goes to stderr. The exit
    code.

    Raises:
        ConfigError: a target that nobody can reach.
    """
    with aside(on=as_json):
        check_target(target, bits=target is not None and load(config.data).symbols > 0)
    began = time.monotonic()
    with scratch() as folder, aside(on=as_json):
        directory = folder / "run"
        if sys.stderr.isatty():
            terminal = screen.console(stderr=True)
            with Live(console=terminal, transient=True) as live:

                def watcher(status: Status) -> None:
                    live.update(screen.tables(status, terminal.width))

                outcome = simulate(config, timing, directory, lockstep=lockstep, watcher=watcher)
        else:
            outcome = simulate(config, timing, directory, lockstep=lockstep)
    bits = outcome.symbols
    marks = (curves.MARKS_BITS if bits else curves.MARKS) if target is None else (target,)
    times = {kind: curves.reached(outcome.curves, marks, kind, bits=bits) for kind in ("student", "child")}
    if as_json:
        document = msgspec.to_builtins(outcome) | {"time_to": msgspec.to_builtins(times)}
        print(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        print_outcome(outcome, times)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"simulated in {time.monotonic() - began:.1f} s of real time, {peak_mb:.0f} MB at most", file=sys.stderr)
    return outcome.status.exit_code or 0


def aside(*, on: bool) -> AbstractContextManager[object]:
    """Where stdout is one JSON document, what a user's own data and networks print meanwhile goes to stderr."""
    return redirect_stdout(sys.stderr) if on else nullcontext()


def check_target(target: float | None, *, bits: bool) -> None:
    """Raise a ConfigError for an accuracy, or bits, that no training comes to."""
    if target is None or (target > 0.0 and (math.isfinite(target) if bits else target <= 1.0)):
        return
    what = "bits a label, more than 0" if bits else "an accuracy, more than 0 and at most 1, as in 0.95"
    raise ConfigError(f"--target {target:g}: of these data give {what}")


def print_outcome(outcome: Outcome, times: dict[str, list[curves.Reached]]) -> None:
    """The table of `mach status`, the times, the digest."""
    terminal = screen.console()
    terminal.print(screen.tables(outcome.status, terminal.width))
    terminal.print(curves.table(times, "virtual s", bits=outcome.symbols))
    terminal.print(f"digest {outcome.digest}: the same for the same configuration, timing and machine", style="dim")


def comparison(
    rows: Rows, runner: Runner, runs: Path | None, *, target: float | None, as_json: bool, png: Path | None
) -> None:
    """Run all rows and their controls, and print what came out. Without `runs` no run is left behind."""
    if png is not None:
        picture.check_plot(png)
    check(rows.every())
    with aside(on=as_json):
        check_target(target, bits=target is not None and load(rows.first.data).symbols > 0)
    with scratch() if runs is None else nullcontext(runs) as folder, aside(on=as_json):
        found = compare(rows, runner, folder, say)
    target = default_target(found) if target is None else target
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(scoreboard.document(found, target))).decode())
    else:
        terminal = screen.console()
        terminal.print(scoreboard.table(found, target))
        terminal.print(scoreboard.account(found, target), style="dim")
    if png is not None:
        picture.draw(found, png)
        say(f"curves: {png}")


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)
