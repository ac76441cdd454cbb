"""A run on this terminal: shown while it goes on, judged when it has ended, stopped when nobody reads any more. A disk
that has no room for what is printed stops none.

Knows no option, and nothing of how a run is planned.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from configs.errors import ConfigError, RunError
from workers import screen
from workers.background import BEGUN
from workers.health import cut_edges
from workers.output import Unwritable, in_passing, lost, print_nowhere
from workers.plan import Plan
from workers.rundir import RunDir
from workers.status import FINAL, Status, read
from workers.supervisor import Supervisor
from workers.verdict import STOPPED

PLAIN_S = 2.0
"""Time between two blocks of plain lines."""
LOOK_S = 1.0
"""Time between two looks at a run that another terminal trains."""


Opening = Callable[[], object] | None
"""What to do, or to say, once the run is ours."""


def supervised(plan: Plan, opening: Opening = None) -> int:
    """Start, do the `opening`, show, judge. A reader that leaves stops the run; one that leaves when it has ended
    misses its verdict.

    Raises:
        ConfigError: it cannot be run as asked.
        RunError: it was stopped, for nobody reads any more.
    """
    console, why = screen.console(), ""
    with Supervisor(plan) as supervisor:
        try:
            if opening is not None:
                opening()
            follow(supervisor, console)
        except BrokenPipeError as error:
            print_nowhere()
            why = lost(error)
            supervisor.stop(f"since {why}")
            for _ in supervisor.watch():
                continue
        status = supervisor.status
    if status.exit_code == 2:
        raise ConfigError(status.reason)
    if why and status.reason.startswith(f"since {why}"):
        raise unread(status, plan, why)
    try:
        conclude(status, plan, console)
    except BrokenPipeError as error:
        print_nowhere()
        if isinstance(error, Unwritable):
            print(f"mach: {lost(error)}", file=sys.stderr)
        if status.reason:
            print(f"mach: {status.reason}", file=sys.stderr)
    return status.exit_code or 0


def opened(words: str, begun: Callable[[bytes], None] | None) -> None:
    """The first words on a run that goes on, to its reader and to whoever started us in the background."""
    if words:
        in_passing(words)
    if begun is not None:
        begun(BEGUN)


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


def unread(status: Status, plan: Plan, why: str) -> RunError:
    """What to say, where there still is somebody, of a run that was stopped since nothing could be printed."""
    error = RunError(
        f"{why}, so run {status.run} was stopped{status.reason.removeprefix(f'since {why}')}; "
        f"mach resume {RunDir(Path(plan.directory)).called} goes on with it, and --detach needs no reader"
    )
    error.exit_code = status.exit_code or STOPPED
    return error


def follow_plainly(supervisor: Supervisor) -> None:
    """A block of lines now and then, and as soon as everybody has made a step; of a run that goes on, a step more than
    it had come to. And a line for every edge that is cut, when it is.
    """
    shown, met, cut = time.monotonic(), False, dict[str, str]()
    for status in supervisor.watch():
        was, cut = cut, {edge_of(line): line for line in cut_edges(status, patient=True)}
        for edge in cut.keys() - was.keys():
            in_passing(f"mach: {cut[edge]}")
        everybody = all((row.step > 0 and row.state != "starting") or row.kind == "stub" for row in status.components)
        if time.monotonic() - shown >= PLAIN_S or (everybody and not met):
            shown, met = time.monotonic(), met or everybody
            in_passing("\n".join(screen.plain_lines(status)))


def edge_of(line: str) -> str:
    """Which edge a line of `cut_edges` is about, however long it has been cut."""
    return " ".join(line.split()[:3])


def shown(run: RunDir, *, watch: bool, as_json: bool) -> Status:
    """Show a run that another terminal trains, to `watch` again and again until it ends; its last status. JSON to watch
    is one object a line.
    """
    console = screen.console()

    def show(status: Status) -> None:
        if as_json:
            told = msgspec.json.encode(status)
            print((told if watch else msgspec.json.format(told)).decode(), flush=True)
        else:
            console.print(screen.tables(status, console.width))

    if watch and console.is_terminal and not as_json:
        with Live(console=console, refresh_per_second=4, screen=True) as live:
            while (status := read(run)).state not in FINAL:
                live.update(screen.tables(status, console.width))
                time.sleep(LOOK_S)
    else:
        while (status := read(run)).state not in FINAL and watch:
            show(status)
            time.sleep(LOOK_S)
    show(status)
    return status
