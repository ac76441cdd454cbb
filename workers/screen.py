"""`Status` on a screen: tables for a terminal, lines for a pipe, and the documentation of the JSON.

Every field that the JSON has stands here too, but where a person has no use for it. Knows no file and no process.
"""

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from workers.health import cut_edges, lacking, untrained
from workers.report import Accuracies, Checkpoint, Losses, Messages, Peer, Spread, Staleness, Window
from workers.status import FINAL, ComponentStatus, Failure, Status, holder_of

OWN = "own"
"""Among saliences, what comes of a component's own input."""

STYLES = {
    "training": "green",
    "finished": "green",
    "waiting": "cyan",
    "starting": "cyan",
    "stopping": "yellow",
    "stopped": "yellow",
    "stalled": "bold yellow",
    "restarting": "bold yellow",
    "failed": "bold red",
}


def state(row: ComponentStatus) -> Text:
    """A component's state, in its colour; a stub that answers is a stub."""
    return Text("stub" if row.kind == "stub" and row.state == "waiting" else row.state, STYLES[row.state])


Column = Callable[[ComponentStatus], str | Text]
PROCESS: Mapping[str, Column] = {
    "state": state,
    "dev": lambda row: row.device,
    "pid": lambda row: "–" if row.pid is None else str(row.pid),
    "restarts": lambda row: str(row.restarts or "–"),
    "step": lambda row: f"{row.step:,}",
    "samples": lambda row: f"{row.samples:,}",
    "steps/s": lambda row: number(row.rate, ".0f"),
    "saved": lambda row: saved(row),
    "seen": lambda row: seen(row),
}
LEARNING: Mapping[str, Column] = {
    "loss": lambda row: number(row.loss.target, ".4f") + arrow(row.loss.trend),
    "distill": lambda row: number(row.loss.distill, ".4f"),
    "student": lambda row: percent(row.accuracy.student),
    "child": lambda row: percent(row.accuracy.child),
    "on child": lambda row: percent(row.child_share, 0),
}
STALENESS: Mapping[str, Column] = {
    "target staleness": lambda row: versions(row.staleness.target),
    "in ms": lambda row: millis(row.staleness.target),
    "gradient staleness": lambda row: versions(row.staleness.gradient),
    "in  ms": lambda row: millis(row.staleness.gradient),
}
TRAFFIC: Mapping[str, Column] = {
    "window": lambda row: f"{row.window.in_use}/{row.window.size}",
    "out": lambda row: f"{sum(row.messages.sent.values()):,}",
    "in": lambda row: f"{sum(row.messages.received.values()):,}",
    "dropped": lambda row: dropped(row),
}
WIDE = 105
"""Columns from which a component's process and learning fit on one row."""


def tables(status: Status, width: int = 200) -> RenderableType:
    """What `mach status` shows: training above, the bus below, reasons last."""
    parts = [headline(status), *all_tables(status, width)]
    reasons = [f"{row.component}: {row.reason}" for row in status.components if row.reason and row.state != "finished"]
    setbacks = [setback(row) for row in status.components if row.restarts and row.failure]
    troubles = [f"{row.component}: {row.checkpoint.trouble}" for row in status.components if row.checkpoint.trouble]
    why = [f"run {status.run}: {status.reason}"] if status.state == "failed" and status.reason else []
    stale = [f"run {status.run}: {words}" for words in (status.trouble, status.stale) if words]
    lack = lacking(status.components) if status.state in FINAL else untrained(status.components)
    idle = [lack] if lack else []
    parts += away(status.elsewhere)
    return Group(*parts, *idle, *reasons, *setbacks, *troubles, *cut_edges(status), *stale, *why)


def setback(row: ComponentStatus) -> str:
    """What a component that goes on has survived."""
    assert row.failure is not None
    times = "once" if row.restarts == 1 else f"{row.restarts} times"
    return f"{row.component}: restarted {times}; its life {row.failure.incarnation} {row.failure.reason}"


def away(elsewhere: Mapping[str, str]) -> list[str]:
    """Who is on other machines, a line for each of these."""
    return [
        f"on {machine}: {', '.join(name for name, its in elsewhere.items() if its == machine)}"
        for machine in dict.fromkeys(elsewhere.values())
    ]


def verdict(status: Status, width: int = 200) -> RenderableType:
    """The end of a launch: the tables. The root cause comes last, after them."""
    return Group(headline(status), *all_tables(status, width), *cut_edges(status))


def headline(status: Status) -> Text:
    """Run, state, duration."""
    text = Text.assemble(
        ("run ", "dim"),
        (status.run, "bold"),
        "  ",
        (status.state, STYLES[status.state]),
        f"  {status.elapsed_s:.1f} s",
    )
    if status.before_s:
        text.append(f" since it was resumed, {status.before_s + status.elapsed_s:.1f} s in all")
    if status.lockstep:
        text.append("  lock-step")
    return text


def all_tables(status: Status, width: int) -> Sequence[RenderableType]:
    """Process, learning and bus of every component; the first two side by side where they fit. Then whose accuracy
    cannot be known, whose messages are too large, who began from an older checkpoint than its newest, and what children
    are worth, where `probes.salience` tells.
    """
    if width >= WIDE:
        shown = [table(status, {**PROCESS, **LEARNING}), table(status, {**STALENESS, **TRAFFIC})]
    else:
        shown = [table(status, columns) for columns in (PROCESS, LEARNING, STALENESS, TRAFFIC)]
    fallbacks = [f"{row.component}: {row.checkpoint.fallback}" for row in status.components if row.checkpoint.fallback]
    return [*shown, *unexamined(status), *oversized(status), *fallbacks, *worth(status)]


def unexamined(status: Status) -> list[str]:
    """Why there is no accuracy where stubs stand above: they answer examinations themselves."""
    below: dict[str, list[str]] = {}
    for row in status.components:
        if row.below and row.kind == "trainer":
            below.setdefault(row.below, []).append(row.component)
    return [
        f"{', '.join(names)}: no accuracy, since examinations come down from component 0 as far as {stub}, a stub"
        for stub, names in below.items()
    ]


def oversized(status: Status) -> list[str]:
    """Whose messages were dropped for their size: nothing else tells that what they carry never arrives."""
    lost = {row.component: count for row in status.components if (count := row.messages.dropped.get("too-large", 0))}
    many = f"{sum(lost.values()):,} messages were dropped, being larger than bus.max_message_mb; raise it"
    return [f"{', '.join(lost)}: {many}"] if lost else []


def worth(status: Status) -> list[Table]:
    """Every edge whose child's worth is known, as an arrow that is the thicker the more of what the parent makes of its
    inputs comes from there; a table or none.
    """
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("worth", no_wrap=True)
    for name in ("of inputs", *MEASURES):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in status.components:
        for child in children_known(row):
            share = share_of(row, child)
            line = Text.assemble((row.component, "bold"), f" {arrow_to(share)} ", (child, "bold"))
            values = (number(row.probes.get(f"salience/{measure}/{child}"), ".3g") for measure in MEASURES)
            shown.add_row(line, percent(share, 0), *values)
    return [shown] if shown.row_count else []


MEASURES = ("pruning", "gradient", "weight", "integrated")
"""Of `mach/salience.py`; the first and the last in nats."""
ARROW = 10
"""Places of an edge's arrow."""


def children_known(row: ComponentStatus) -> list[str]:
    """Children of which a salience is known, by number: c2 before c10."""
    told = (name.split("/") for name in row.probes if name.startswith("salience/"))
    return sorted({child for _, _, child in told if child != OWN}, key=lambda child: (len(child), child))


def share_of(row: ComponentStatus, child: str) -> float | None:
    """A child's part in what own input and targets come to together, each without its sign (integrated gradients)."""
    parts = {name: abs(value) for name, value in row.probes.items() if name.startswith("salience/integrated/")}
    total = sum(parts.values())
    return parts.get(f"salience/integrated/{child}", 0.0) / total if total > 0.0 else None


def arrow_to(share: float | None) -> str:
    """As heavy as the share."""
    heavy = round(ARROW * (share or 0.0))
    return "━" * heavy + "╌" * (ARROW - heavy) + "→"


def table(status: Status, columns: Mapping[str, Column]) -> Table:
    """One row a component."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("")
    for name in columns:
        left = name in ("state", "dropped")
        shown.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for row in status.components:
        shown.add_row(Text(row.component, "bold"), *(cell(row) for cell in columns.values()))
    return shown


def plain_lines(status: Status) -> list[str]:
    """One line a component, for a pipe or a log."""
    return [f"{status.elapsed_s:6.1f} s  {plain_line(row)}" for row in status.components]


def plain_line(row: ComponentStatus) -> str:
    """A component in one line."""
    last = f" (life {row.failure.incarnation} {row.failure.reason})" if row.failure and not row.reason else ""
    ages = row.staleness
    late = ages.gradient.count > 0 and not ages.target.count  # as where no answer is a target
    kind, age = ("gradient ", ages.gradient) if late else ("", ages.target)
    return (
        f"{row.component} {row.state} step {row.step} {number(row.rate, '.0f')} steps/s "
        f"loss {number(row.loss.target, '.4f')} student {percent(row.accuracy.student)} "
        f"child {percent(row.accuracy.child)} on child {percent(row.child_share, 0)} "
        f"{kind}staleness {versions(age)} versions {millis(age)} ms"
        + (f" restarts {row.restarts}{last}" if row.restarts else "")
        + (f" ({row.reason})" if row.reason else "")
    )


def run_lines(found: list[Status]) -> Table:
    """What `mach runs` shows, one row a run."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "state", "components", "steps", "lasted"):
        table.add_column(name, overflow="fold")  # a name that is cut could be given to no command
    for status in found:
        table.add_row(
            Text(status.run, "bold"),
            Text(status.state + place(status), STYLES[status.state]),
            str(len(status.components)),
            f"{min((row.step for row in status.components if row.kind == 'trainer'), default=0):,}",
            f"{status.before_s + status.elapsed_s:.0f} s",
        )
    return table


def place(status: Status) -> str:
    """Where a run goes on, if not where it can be seen from here."""
    return "" if status.state in FINAL else holder_of(status).where


class Screen(Console):
    """A console on which it is an error, not the end of the program, that nobody reads any more. What is no terminal is
    given lines as they are, however long: `grep` and whoever copies a command or a path want them whole.
    """

    def print(self, *objects: typing.Any, **how: typing.Any) -> None:
        """Print as `Console` does."""
        super().print(*objects, **({} if self.is_terminal else {"soft_wrap": True}) | how)

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError on: what it means is for whoever prints to say."""
        raise


def console(*, stderr: bool = False) -> Console:
    """The terminal, or a pipe at a width in which every table fits."""
    terminal = Screen(stderr=stderr)
    return terminal if terminal.is_terminal else Screen(width=200, stderr=stderr)


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


def saved(row: ComponentStatus) -> str:
    """Age of the newest checkpoint, marked if there is trouble with it; its step once the component has ended."""
    kept = row.checkpoint
    mark = " !" if kept.trouble else ""
    if kept.age_s is None or row.exit_code is not None:
        return ("–" if kept.step is None else f"at {kept.step:,}") + mark
    return f"{kept.age_s:.0f} s ago{mark}"


def versions(spread: Spread) -> str:
    """p50/p99/max in versions."""
    return "–" if spread.p50 is None else f"{spread.p50:.0f}/{spread.p99:.0f}/{spread.max:.0f}"


def millis(spread: Spread) -> str:
    """p50/p99/max in milliseconds."""
    return "–" if spread.p50_ms is None else f"{spread.p50_ms:.0f}/{spread.p99_ms:.0f}/{spread.max_ms:.0f}"


def dropped(row: ComponentStatus) -> str:
    """What its mailbox dropped, by reason; of a stub, also the faults that it made."""
    faults = counts(row.messages.faults)
    return counts(row.messages.dropped) + (f"; faults: {faults}" if faults != "–" else "")


def counts(of: dict[str, int]) -> str:
    """Name and number of what happened at all."""
    return " ".join(f"{name} {count}" for name, count in sorted(of.items()) if count) or "–"


RECORDS: tuple[type[msgspec.Struct], ...] = (
    *(Status, ComponentStatus, Failure, Losses, Accuracies, Staleness, Spread, Checkpoint, Window, Messages, Peer),
)
"""The records of the JSON, outermost first."""


def fields_help(records: Sequence[type[msgspec.Struct]] = RECORDS) -> str:
    """Documentation of JSON, from the records themselves."""
    lines: list[str] = []
    for record in records:
        lines.append(f"{record.__name__}: {' '.join((inspect.getdoc(record) or '').split())}")
        meant = meanings(record)
        for field in msgspec.structs.fields(record):
            lines.append(f"  {field.name}: {type_name(field.type)}  {meant.get(field.name, '')}".rstrip())
        lines.append("")
    return re.sub(r"\bNone\b", "null", "\n".join(lines))  # as JSON has it


def meanings(record: type) -> dict[str, str]:
    """What the fields of a record mean, from the strings below them in its source and in that of its bases; where an
    installation came without sources, nothing.
    """
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        if not issubclass(kind, msgspec.Struct) or kind is msgspec.Struct:
            continue
        try:
            source = inspect.getsource(kind)
        except OSError:
            return {}
        (body,) = ast.parse(textwrap.dedent(source)).body
        assert isinstance(body, ast.ClassDef)
        for field, below in pairwise(body.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


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
