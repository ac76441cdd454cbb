"""A run on this terminal: shown while it goes on, judged when it has ended, stopped when nobody reads any more.

Knows no option, and nothing of how a run is planned.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from configs.errors import ConfigError, RunError
from workers import screen
from workers.plan import Plan
from workers.rundir import RunDir
from workers.status import Status
from workers.supervisor import Supervisor
from workers.verdict import STOPPED

PLAIN_S = 2.0
"""Time between two blocks of plain lines."""
UNREAD = "since nobody reads what it prints any more"
"""Why a run was stopped whose reader has left."""


Opening = Callable[[], object] | None
"""What to do, or to say, once the run is ours."""


def supervised(plan: Plan, opening: Opening = None) -> int:
    """Start, do the `opening`, show, judge. A reader that leaves stops the run; one that leaves when it has ended
    misses its verdict.

    Raises:
        ConfigError: it cannot be run as asked.
        RunError: it was stopped, for nobody reads any more.
    """
    console = screen.console()
    with Supervisor(plan) as supervisor:
        try:
            if opening is not None:
                opening()
            follow(supervisor, console)
        except BrokenPipeError:
            print_nowhere()
            supervisor.stop(UNREAD)
            for _ in supervisor.watch():
                continue
        status = supervisor.status
    if status.exit_code == 2:
        raise ConfigError(status.reason)
    if status.reason.startswith(UNREAD):
        raise unread(status, plan)
    try:
        conclude(status, plan, console)
    except BrokenPipeError:
        print_nowhere()
        if status.reason:
            print(f"mach: {status.reason}", file=sys.stderr)
    return status.exit_code or 0


def follow(supervisor: Supervisor, console: Console) -> None:
    """Show a run until it ends."""
    if not console.is_terminal:
        follow_plainly(supervisor)
        return
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        for status in supervisor.watch():
            live.update(screen.tables(status, console.width))


def conclude(status: Status, plan: Plan, console: Console) -> None:
    """The last words on a run; the root cause comes last, and of one that was stopped the way on."""
    console.print(screen.verdict(status, console.width))
    if status.reason:  # in one line, however long: it has a path in it
        console.print(Text(status.reason, style=screen.STYLES.get(status.state, "")), soft_wrap=True)
    if status.state == "stopped" and any(row.checkpoint.step is not None for row in status.components):
        way = RunDir(Path(plan.directory)).called
        print(f"run {status.run}: {plan.directory}; go on with mach resume {way}", flush=True)
    elif not status.reason:
        print(f"run {status.run}: {plan.directory}", flush=True)


def unread(status: Status, plan: Plan) -> RunError:
    """What to say, where there still is somebody, of a run whose reader has left."""
    error = RunError(
        f"nobody reads what is printed any more, so run {status.run} was stopped{status.reason.removeprefix(UNREAD)}; "
        f"mach resume {RunDir(Path(plan.directory)).called} goes on with it, and --detach needs no reader"
    )
    error.exit_code = status.exit_code or STOPPED
    return error


def print_nowhere() -> None:
    """From now on, so that what still waits to be printed raises no second time."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def follow_plainly(supervisor: Supervisor) -> None:
    """A block of lines now and then, and as soon as everybody has made a step."""
    shown, met = time.monotonic(), False
    for status in supervisor.watch():
        everybody = all(row.step > 0 or row.kind == "stub" for row in status.components)
        if time.monotonic() - shown >= PLAIN_S or (everybody and not met):
            shown, met = time.monotonic(), met or everybody
            print("\n".join(screen.plain_lines(status)), flush=True)
