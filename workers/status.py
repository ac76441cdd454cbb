"""The state of a run: what the supervisor writes to `status.json`, and what `mach status` reads from it.

Knows no process but by number, no torch, no zmq. Ages are recomputed when read: a file that nobody writes any
more grows old in plain sight. Ages and identities never come from the clock on the wall, which can be set: they are
of the monotonic clock, which all processes of one boot share, and of the boot itself.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from bus import address
from configs.errors import ConfigError, RunError
from configs.load import load
from configs.tree import Supervise
from workers.attempt import frozen
from workers.holder import Holder, noted
from workers.plan import Plan
from workers.policy import patience_s
from workers.report import Checkpoint, Record, Report, older
from workers.rundir import RunDir, replace

RunState = Literal["starting", "training", "stopping", "finished", "stopped", "failed"]
FINAL = ("finished", "stopped", "failed")
"""States, of runs and of components, that nothing follows."""
STALE_S = 5.0
"""A status.json that is older says so, while its launcher lives: normally it is at most a second old."""


class Failure(Record):
    """How a life of a component ended otherwise than it should."""

    reason: str
    """Why, for people, and what to do."""
    incarnation: int
    """Which life it was."""
    at_s: float
    """Seconds after the launch."""
    exit_code: int | None
    """Negative: the signal that killed it."""
    log: str
    """Path of that life's log, relative to the run directory."""


class ComponentStatus(Report, kw_only=True, forbid_unknown_fields=True):
    """A component's newest report, and what the supervisor knows about its process."""

    last_seen_s: float | None = None
    """Age of the newest report of its present life; None before the first."""
    exit_code: int | None = None
    """None while it runs or is restarted; negative: the signal that killed it."""
    log: str = ""
    """Path of the log of its present life, relative to the run directory."""
    restarts: int = 0
    """How often it began again in this launch, after a failure or because somebody asked."""
    restart_s: list[float] = msgspec.field(default_factory=list)
    """Of the newest 100 restarts, newest last: from noticing the end to the first step of the next life."""
    failure: Failure | None = None
    """The newest."""
    below: str = ""
    """In stream wiring the highest stub above it: examinations, which come down from component 0, end there, so that it
    has no accuracy. Empty: none."""


class Status(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A run at one moment."""

    run: str
    """Its name."""
    state: RunState
    """Of the run as a whole; the last three are final."""
    reason: str = ""
    """Why, for people: the root cause of a failure."""
    exit_code: int | None = None
    """What the launcher ended with; None while it runs."""
    lockstep: bool = False
    """Whether every step waits for its messages."""
    launcher_pid: int
    """Process number of the launcher."""
    launcher_started: str
    """When the launcher's process began, in ticks since the boot: tells it from a later one with its number."""
    boot: str
    """Which boot of which machine."""
    clock: str = ""
    """Which time namespace `written_s` is of; empty: an older version has not said so."""
    host: str = ""
    """What the launcher's host or container calls itself."""
    started_at: float
    """Seconds since 1970, by the clock on the wall."""
    written_s: float
    """When this was written, on the monotonic clock of the boot."""
    stale: str = ""
    """Why all this is older than it should be though the launcher lives, for people, and what to do; empty: it is not.
    Components are then shown as they were."""
    elapsed_s: float
    """From the launch, or the newest resume, to `written_s`."""
    before_s: float = 0.0
    """Of a resumed run: seconds that it had lasted before, in all its launches together."""
    elsewhere: dict[str, str] = msgspec.field(default_factory=dict)
    """Of a run over several machines: by component that this launch has not started, the machine that it is on."""
    trouble: str = ""
    """What is wrong with the run as a whole though it trains, for people, and what mends it; empty: nothing."""
    components: list[ComponentStatus]
    """One row a component that this launch has started, in their order."""


def write(run: RunDir, status: Status) -> None:
    """Replace status.json (OSError: the disk is full or gone)."""
    replace(run.status, msgspec.json.format(msgspec.json.encode(status)))


def read(run: RunDir, now: float | None = None) -> Status:
    """The run as it is now, from its files alone; `now` on the monotonic clock. While a launcher that has its lock has
    written no status of its processes yet, it is starting, whatever an earlier one wrote.

    Raises:
        RunError: status.json is missing or is none of ours.
    """
    now = time.monotonic() if now is None else now
    # before: who writes status.json then, or has written it, is known to have the lock, or to have had it
    holder, held = noted(run.lock_file), run.locked()
    status = recorded(run, missing_ok=holder is not None)
    early = status is None or (held and (holder_of(status) != holder or is_unborn(status)))
    if status is not None:
        status.run = run.name  # its directory's, which may have been renamed or copied
        bring_up(status, run, now, held=held)
    if holder is not None and early:
        rows = status.components if status is not None else planned(plan_of(run))
        return starting(run, holder, rows, now, held=held)
    assert status is not None
    return status


def recorded(run: RunDir, *, missing_ok: bool) -> Status | None:
    """What status.json says; None if it is not there, but a plan is, and that is well."""
    try:
        return msgspec.json.decode(run.status.read_bytes(), type=Status)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and run.plan.is_file():
            if missing_ok:
                return None
            raise RunError(
                f"{run.status} is not written yet, or there was no room for it; where nobody trains any more, make "
                f"room, then mach resume {run.called}"
            ) from error
        raise RunError(
            f"{run.status}: cannot be read ({error.strerror}); is {run.path} a run of mach launch?"
        ) from error
    except msgspec.ValidationError as error:
        raise RunError(
            f"{run.status}: is no status of this version ({error}); its metrics/ and logs/ remain"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{run.status}: is damaged ({error}); where nobody trains any more, mach resume {run.called} goes on all "
            "the same"
        ) from error


def bring_up(status: Status, run: RunDir, now: float, *, held: bool) -> None:
    """Make what was written what is so `now`: ages, who is not heard of, a launcher that is gone, and with it its hold
    of the run's lock (`held`). Its number tells less: in a copy of the run it is another's, in another container
    nobody's. But where the file of the lock was replaced, one that lives and trains in this very place has the run.
    """
    # the monotonic clocks of two boots are never compared, nor those of two time namespaces
    same = status.boot == address.boot() and status.clock in ("", address.clock())
    age = max(0.0, now - status.written_s) if same else 0.0
    lost = status.state not in FINAL and not held and not trains_in(run, holder_of(status))
    rules = rules_of(run)
    if age > STALE_S and status.state not in FINAL and not lost:
        old = f"{run.status.name} is {age:.0f} s old, and so is what stands here"
        status.stale = unwritten(run, holder_of(status), old)
    for row in status.components:
        mark(row, patience_s(rules.stalled_ms, row.step_ms_p99), 0.0 if status.stale else age, lost=lost)
        if row.last_seen_s is not None:
            row.last_seen_s = round(row.last_seen_s + age, 3)
        row.checkpoint = older(row.checkpoint, age if same else None)
        row.pid = row.pid or None  # of an older version
        for name in row.loss.not_finite:  # JSON has taken it for None
            setattr(row.loss, name, math.nan)
    if lost:
        status.state = "failed"
        status.reason = (
            f"{gone(run, holder_of(status))}; what stands here is from {status.elapsed_s:.1f} s after its start, when "
            f"{run.status.name} was last written; go on with mach resume {run.called}"
        )


def starting(run: RunDir, holder: Holder, rows: Sequence[ComponentStatus], now: float, *, held: bool) -> Status:
    """Of a launcher that has written no status yet, and has the run's lock (`held`) or is gone. `rows`: the components
    as they were when the run was left, or as planned.
    """
    same = holder.boot == address.boot() and holder.clock in ("", address.clock())
    since_s = max(0.0, now - holder.since_s) if held and same else 0.0
    status = Status(
        run=run.name,
        state="starting" if held else "failed",
        launcher_pid=holder.pid,
        launcher_started=holder.started,
        boot=holder.boot,
        clock=address.clock(),
        host=holder.host,
        started_at=holder.noted_at,
        written_s=now,
        elapsed_s=since_s,
        components=[unborn(row) for row in rows],
    )
    if not held:
        status.reason = (
            f"{gone(run, holder)}, before {run.status.name} was written; mach resume {run.called} begins anew"
        )
        for row in status.components:
            mark(row, math.inf, 0.0, lost=True)
    elif since_s > rules_of(run).starting_ms / 1000 or (holder.alive and frozen(holder.pid)):
        status.stale = unwritten(run, holder, f"{run.status.name} is not written {since_s:.0f} s after the start")
    return status


def unborn(row: ComponentStatus) -> ComponentStatus:
    """A row of a component whose process is yet to be started."""
    its = {name: getattr(row, name) for name in ("component", "kind", "incarnation", "device", *REACHED)}
    return ComponentStatus(pid=None, state="starting", **its)


def is_unborn(status: Status) -> bool:
    """Whether its launcher has taken the run up, and was yet to start its first process."""
    return status.state == "starting" and all(row.state == "starting" and not row.pid for row in status.components)


def planned(plan: Plan | None, before: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> list[ComponentStatus]:
    """Rows of the components that are to be; none without a plan. `before`: what they had come to, as of `reached`."""
    return [
        ComponentStatus(
            component=one.name,
            kind=one.kind,
            incarnation=one.incarnation,
            pid=None,
            device=one.device,
            state="starting",
            **before.get(one.name, {}),
        )
        for one in (plan.here if plan is not None else ())
    ]


def plan_of(run: RunDir) -> Plan | None:
    """The plan of the run; None where it cannot be read."""
    try:
        return msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def holder_of(status: Status) -> Holder:
    """The launcher that wrote it."""
    return Holder(status.launcher_pid, status.launcher_started, status.boot, host=status.host)


def called(status: Status) -> str:
    """The launcher's number, and its host if it is not to be seen here."""
    return f"pid {status.launcher_pid}{holder_of(status).where}"


def trains_in(run: RunDir, holder: Holder) -> bool:
    """Whether a launcher lives, and the run was planned where it lies."""
    plan = plan_of(run) if holder.alive else None
    return plan is not None and Path(plan.directory).resolve() == run.path.resolve()


def gone(run: RunDir, holder: Holder) -> str:
    """What to say of a launcher that has ended without a verdict, or never had this run, or not in this place."""
    if holder.alive:
        plan = plan_of(run)
        where = "elsewhere" if plan is None else f"in {plan.directory}"
        return f"this is a copy of a run that its launcher (pid {holder.pid}) trains {where}, or was moved from there"
    if holder.boot != address.boot():
        return "the machine was started anew since, or this is another one"
    return f"the launcher (pid {holder.pid}) is gone, and its processes with it"


REACHED = ("step", "samples", "child_steps", "child_share", "loss", "accuracy", "checkpoint")


def reached(run: RunDir) -> dict[str, dict[str, Any]]:
    """What the components of a run that has ended had come to, as fields of a `Report` by their names: a later life
    goes on from there, or fails before its first word. None, where that cannot be read.
    """
    try:
        rows = read(run).components
    except RunError:
        return {}
    for row in rows:
        row.checkpoint = Checkpoint(step=row.checkpoint.step, age_s=row.checkpoint.age_s)  # its troubles are over
    return {row.component: {name: getattr(row, name) for name in REACHED} for row in rows}


def unwritten(run: RunDir, holder: Holder, old: str) -> str:
    """What to say of a status.json that a living launcher does not write; `old`: since when."""
    launcher = holder.pid
    if holder.alive and frozen(launcher):
        return (
            f"{old}: the launcher (pid {launcher}) is stopped (SIGSTOP, or Ctrl-Z), and nobody watches its components; "
            f"kill -CONT {launcher} has it go on, or fg where Ctrl-Z was pressed"
        )
    return (
        f"{old}: the launcher (pid {launcher}{holder.where}) lives and cannot write it; if there is no room in "
        f"{run.path}, make some"
    )


def mark(row: ComponentStatus, limit_s: float, age: float, *, lost: bool) -> None:
    """Show a row as what it is that had not been heard of when status.json was written, `age` seconds ago."""
    if row.state in FINAL and row.exit_code is not None:
        return
    if lost:
        row.state, row.reason, row.pid = "failed", "ended with its launcher", None
    elif row.state == "restarting" and age <= limit_s:
        return
    elif (unheard := age + (row.last_seen_s or 0.0)) > limit_s:
        row.state, row.reason = "stalled", f"not heard of for {unheard:.0f} s"


def rules_of(run: RunDir) -> Supervise:
    """`supervise` of the run; the default if its config.yaml is gone."""
    try:
        return load(str(run.config)).supervise
    except ConfigError:
        return Supervise()


def launcher_alive(run: RunDir, status: Status) -> bool:
    """Whether the launcher of a run that goes on is there still, to be sent a signal.

    Raises:
        RunError: it lives where its number says nothing here.
    """
    if holder_of(status).alive:
        return True
    if not run.locked():
        return False  # it has ended since
    raise RunError(
        f"run {run.name}: its launcher (pid {status.launcher_pid}) is {holder_of(status).away}: give the command there"
    )
