"""What `mach simulate` puts on the screen. Knows no option; results come from `workers/simulate.py`."""

import resource
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from rich.live import Live

from configs.tree import Config
from workers import curves, screen
from workers.simulate import Outcome, simulate
from workers.status import Status
from workers.timing import Timing


def simulation(config: Config, timing: Timing, *, lockstep: bool, target: float | None, as_json: bool) -> None:
    """Run, watched on a terminal, and print what came out; its cost in real time and memory goes to stderr."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mach-simulation-") as folder:
        directory = Path(folder) / "run"
        if sys.stderr.isatty():
            terminal = screen.console(stderr=True)
            with Live(console=terminal, transient=True) as live:

                def watcher(status: Status) -> None:
                    live.update(screen.tables(status, terminal.width))

                outcome = simulate(config, timing, directory, lockstep=lockstep, watcher=watcher)
        else:
            outcome = simulate(config, timing, directory, lockstep=lockstep)
    marks = curves.MARKS if target is None else (target,)
    times = {kind: curves.reached(outcome.curves, marks, kind) for kind in ("student", "child")}
    if as_json:
        document = msgspec.to_builtins(outcome) | {"time_to": msgspec.to_builtins(times)}
        print(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        print_outcome(outcome, times)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"simulated in {time.monotonic() - began:.1f} s of real time, {peak_mb:.0f} MB at most", file=sys.stderr)


def print_outcome(outcome: Outcome, times: dict[str, list[curves.Reached]]) -> None:
    """The table of `mach status`, the times, the digest."""
    terminal = screen.console()
    terminal.print(screen.tables(outcome.status, terminal.width))
    terminal.print(curves.table(times, "virtual s"))
    terminal.print(f"digest {outcome.digest}: the same for the same configuration, timing and machine", style="dim")
