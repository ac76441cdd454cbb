"""`Status` on a screen: two tables for a terminal, lines for a pipe, and the documentation of the JSON.

Every field that the JSON has stands here too, but where a person has no use for it. Knows no file and no process.
"""

import inspect
import typing

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from workers.report import Accuracies, Losses, Messages, Peer, Spread, Staleness, Window
from workers.status import ComponentStatus, Status

STYLES = {
    "training": "green",
    "finished": "green",
    "waiting": "cyan",
    "starting": "cyan",
    "stopping": "yellow",
    "stopped": "yellow",
    "stalled": "bold yellow",
    "failed": "bold red",
}


def tables(status: Status) -> RenderableType:
    """What `mach status` shows: training above, the bus below, reasons last."""
    parts: list[RenderableType] = [headline(status), training_table(status), bus_table(status)]
    reasons = [f"{row.component}: {row.reason}" for row in status.components if row.reason and row.state != "finished"]
    return Group(*parts, *reasons)


def verdict(status: Status) -> RenderableType:
    """The end of a launch: the tables, and the root cause last."""
    parts: list[RenderableType] = [headline(status), training_table(status), bus_table(status)]
    if status.reason:
        parts.append(Text(status.reason, style=STYLES.get(status.state, "")))
    return Group(*parts)


def headline(status: Status) -> Text:
    """Run, state, duration."""
    text = Text.assemble(
        ("run ", "dim"),
        (status.run, "bold"),
        "  ",
        (status.state, STYLES[status.state]),
        f"  {status.elapsed_s:.1f} s",
    )
    if status.lockstep:
        text.append("  lock-step")
    return text


def training_table(status: Status) -> Table:
    """How training goes, one row a component."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("state")
    for name in ("dev", "pid", "step", "samples", "steps/s", "loss", "distill", "student", "child", "on child", "seen"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in status.components:
        table.add_row(
            Text(row.component, "bold"),
            Text("stub" if row.kind == "stub" and row.state == "waiting" else row.state, STYLES[row.state]),
            row.device,
            str(row.pid or "–"),
            f"{row.step:,}",
            f"{row.samples:,}",
            number(row.rate, ".0f"),
            number(row.loss.target, ".4f") + arrow(row.loss.trend),
            number(row.loss.distill, ".4f"),
            percent(row.accuracy.student),
            percent(row.accuracy.child),
            percent(row.child_share, 0),
            seen(row),
        )
    return table


def bus_table(status: Status) -> Table:
    """How messages travel, one row a component: quantiles as p50/p99/max."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("target staleness", "ms", "gradient staleness", "ms", "window", "out", "in"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("dropped")
    for row in status.components:
        target, gradient = row.staleness.target, row.staleness.gradient
        table.add_row(
            Text(row.component, "bold"),
            versions(target),
            millis(target),
            versions(gradient),
            millis(gradient),
            f"{row.window.in_use}/{row.window.size}",
            f"{sum(row.messages.sent.values()):,}",
            f"{sum(row.messages.received.values()):,}",
            counts(row.messages.dropped)
            + (f"  faults: {counts(row.messages.faults)}" if any(row.messages.faults.values()) else ""),
        )
    return table


def plain_lines(status: Status) -> list[str]:
    """One line a component, for a pipe or a log."""
    return [f"{status.elapsed_s:6.1f} s  {plain_line(row)}" for row in status.components]


def plain_line(row: ComponentStatus) -> str:
    """A component in one line."""
    return (
        f"{row.component} {row.state} step {row.step} {number(row.rate, '.0f')} steps/s "
        f"loss {number(row.loss.target, '.4f')} student {percent(row.accuracy.student)} "
        f"child {percent(row.accuracy.child)} on child {percent(row.child_share, 0)} "
        f"staleness {versions(row.staleness.target)} versions {millis(row.staleness.target)} ms"
        + (f" ({row.reason})" if row.reason else "")
    )


def run_lines(found: list[Status]) -> Table:
    """What `mach runs` shows, one row a run."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "state", "components", "steps", "lasted"):
        table.add_column(name)
    for status in found:
        table.add_row(
            Text(status.run, "bold"),
            Text(status.state, STYLES[status.state]),
            str(len(status.components)),
            f"{min((row.step for row in status.components), default=0):,}",
            f"{status.elapsed_s:.0f} s",
        )
    return table


def show(renderable: RenderableType) -> None:
    """Print to the terminal, or at a width that wraps nothing into a pipe."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(renderable)


def number(value: float | None, form: str) -> str:
    """A number, or a dash for none."""
    return "–" if value is None else format(value, form)


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def arrow(trend: float | None) -> str:
    """Where the loss goes: down is good."""
    if trend is None:
        return ""
    return " ↓" if trend < -0.01 else " ↑" if trend > 0.01 else " →"


def seen(row: ComponentStatus) -> str:
    """Age of the newest report while the component lives."""
    if row.last_seen_s is None or row.exit_code is not None:
        return "–"
    return f"{row.last_seen_s:.1f} s"


def versions(spread: Spread) -> str:
    """p50/p99/max in versions."""
    return "–" if spread.p50 is None else f"{spread.p50:.0f}/{spread.p99:.0f}/{spread.max:.0f}"


def millis(spread: Spread) -> str:
    """p50/p99/max in milliseconds."""
    return "–" if spread.p50_ms is None else f"{spread.p50_ms:.0f}/{spread.p99_ms:.0f}/{spread.max_ms:.0f}"


def counts(of: dict[str, int]) -> str:
    """Name and number of what happened at all."""
    return " ".join(f"{name} {count}" for name, count in sorted(of.items()) if count) or "–"


RECORDS: tuple[type[msgspec.Struct], ...] = (
    *(Status, ComponentStatus, Losses, Accuracies, Staleness, Spread, Window, Messages, Peer),
)
"""The records of the JSON, outermost first."""


def fields_help() -> str:
    """Documentation of the JSON, from the records themselves."""
    lines: list[str] = []
    for record in RECORDS:
        lines.append(f"{record.__name__}: {' '.join((inspect.getdoc(record) or '').split())}")
        for field in msgspec.structs.fields(record):
            lines.append(f"  {field.name}: {type_name(field.type)}")
        lines.append("")
    return "\n".join(lines)


def type_name(kind: typing.Any) -> str:
    """A type as a reader of JSON would write it."""
    if kind is type(None):
        return "null"
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(f'"{argument}"' for argument in arguments)
    if typing.get_origin(kind) is list:
        return f"[{type_name(arguments[0])}]"
    if typing.get_origin(kind) is dict:
        return f"{{{type_name(arguments[0])}: {type_name(arguments[1])}}}"
    if arguments:
        return " | ".join(type_name(argument) for argument in arguments)
    names = {"str": "string", "float": "number", "int": "integer", "bool": "true | false"}
    return names.get(kind.__name__, str(kind.__name__))
