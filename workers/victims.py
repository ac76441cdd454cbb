"""The processes of a live run as victims of `workers/chaos.py`: found through its status, held by a pidfd, hit.

Laws: no signal goes to a process that is not of the run: a number in a file is not believed, but checked against the
run's launcher, and held by a descriptor that never means another process. Whoever was stopped is continued, also when
we are interrupted; if we are killed ourselves, the supervisor finds those that stay stopped. It waits on events and
times, never in a spin.
"""

import contextlib
import os
import select
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import msgspec
import psutil

from bus import kernel
from configs.errors import RunError
from workers.attempt import SIGNALS
from workers.chaos import Chaos, Fired, Kind, Spec, schedule
from workers.launcher import Launcher
from workers.rundir import RunDir
from workers.status import FINAL, ComponentStatus, Status, holder_of, launcher_alive, read

LATE_S = 10.0
"""How long after the end a fault may still wait for somebody to hit."""
BACK_S = 60.0
"""Longest wait for those that were hit to come back."""
LOOK_S = 0.1
"""Between two looks into a file that somebody else writes."""
OURS = "sent by this mach chaos; kill less often than checkpoints are written (checkpoint.every_s)"
"""In place of what a SIGKILL usually means."""
ABOVE = 4
"""A component is below the launcher by at most so many generations: it is a child of the forkserver."""
NAMES: Mapping[Kind, str] = {"kill": "SIGKILL", "stop": "SIGSTOP", "slow": "short pauses"}
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RestartTimes(msgspec.Struct, kw_only=True):
    """Seconds from noticing the end of a component to the first step of its next life."""

    p50: float
    max: float
    all: dict[str, list[float]]
    """By component, in the order of the restarts."""


class Account(msgspec.Struct, kw_only=True):
    """What was done to a run, and what came back."""

    run: str
    seed: int
    seconds: float
    faults: list[Fired]
    missed: int
    """Faults that found nobody alive to hit until it ended, or were still to come then."""
    restarts: dict[str, int]
    """During all this, by component."""
    restart_s: RestartTimes | None
    """None without a restart."""
    lost: dict[str, str]
    """Components that failed, or were hit and did not come back; what `mach status` says of them."""
    interrupted: bool


class Held:
    """One process, by a descriptor."""

    def __init__(self, pid: int, descriptor: int, incarnation: int) -> None:
        self.pid = pid
        self.incarnation = incarnation
        self._descriptor = descriptor

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal. False: it is gone, or a zombie."""
        if self.gone:
            return False
        with contextlib.suppress(ProcessLookupError):
            kernel.pidfd_send_signal(self._descriptor, number)
            return True
        return False

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def find(run: RunDir, component: str) -> Held | None:
    """The present process of a component; None while it has none, or while nobody can tell."""
    try:
        status = msgspec.json.decode(run.status.read_bytes(), type=Status)
    except (OSError, msgspec.MsgspecError):
        return None  # the file is gone for a while: so is what we know
    row = next((row for row in status.components if row.component == component), None)
    if row is None or row.pid is None or row.pid <= 0 or row.state in FINAL or not holder_of(status).alive:
        return None
    return hold(row.pid, status.launcher_pid, row.incarnation)


def hold(pid: int, launcher: int, incarnation: int) -> Held | None:
    """Process `pid`, if it lives and is below the process `launcher`."""
    try:
        held = Held(pid, kernel.pidfd_open(pid), incarnation)
    except ProcessLookupError:
        return None
    # in this order: if it lives after the look at its parents, then they were its own, not a later process's
    if below(pid, launcher) and not held.gone:
        return held
    held.close()
    return None


def below(pid: int, launcher: int) -> bool:
    """Whether `launcher` is among the nearest ancestors of `pid`."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for _ in range(ABOVE):
            pid = psutil.Process(pid).ppid()
            if pid == launcher:
                return True
    return False


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as something to wait on, so that none falls between a stop and its note."""

    def __init__(self) -> None:
        self.rung = False
        self._bell, self._end = socket.socketpair()
        self._handlers: dict[int, object] = {}
        self._earlier = -1

    def __enter__(self) -> Self:
        """Listen; in the main thread only."""
        for end in (self._bell, self._end):
            end.setblocking(False)
        self._earlier = signal.set_wakeup_fd(self._end.fileno(), warn_on_full_buffer=False)
        for number in ENDS:
            self._handlers[number] = signal.signal(number, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._earlier)
        self._bell.close()
        self._end.close()

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._bell.fileno()

    def _ring(self, *_: object) -> None:
        self.rung = True


def wreak(run: RunDir, spec: Spec, told: Callable[[Fired], None] = lambda fired: None) -> Account:
    """Make the faults of `spec` in a run, wait until everybody is back, and say what happened.

    `told` hears of every fault when it has fired. Ends early with the run, or on SIGINT, SIGTERM, SIGHUP.

    Raises:
        RunError: the run is not running, or another user's.
    """
    before = running(run)
    names = [row.component for row in before.components]
    chaos = Chaos(schedule(spec, names), lambda component: find(run, component))
    with Interrupts() as interrupts, contextlib.closing(reach(before)) as launcher:
        try:
            act(chaos, spec, told, launcher, interrupts)
        finally:
            chaos.release()
        wait_back(run, chaos.fired, launcher, interrupts)
        return account(run, spec, before, chaos, interrupted=interrupts.rung)


def running(run: RunDir) -> Status:
    """The status of a run that is running.

    Raises:
        RunError: it is not.
    """
    status = read(run)
    if status.state in FINAL or not launcher_alive(run, status):
        raise RunError(f"run {run.name} is not running (it is {status.state}); there is nothing to be hit")
    return status


def reach(status: Status) -> Launcher:
    """The launcher of a run.

    Raises:
        RunError: it has just ended, or is another user's.
    """
    try:
        return Launcher(status.run, status.launcher_pid)
    except ProcessLookupError:
        raise RunError(f"run {status.run} has just ended; there is nothing to be hit") from None


def ended(launcher: Launcher, interrupts: Interrupts, within_s: float) -> bool:
    """Wait: whether the launcher has ended, or we are to end."""
    return bool(select.select([launcher.fileno(), interrupts.fileno()], [], [], within_s)[0])


def act(chaos: Chaos, spec: Spec, told: Callable[[Fired], None], launcher: Launcher, interrupts: Interrupts) -> None:
    """The whole schedule, in real time."""
    began, heard = time.monotonic(), 0
    while (now := time.monotonic() - began) < spec.seconds + LATE_S:
        chaos.act(now)
        for fired in chaos.fired[heard:]:
            told(fired)
        heard = len(chaos.fired)
        if now >= spec.seconds and not chaos.waiting:
            return
        wake_at = min(chaos.wake_at(now), spec.seconds if now < spec.seconds else spec.seconds + LATE_S)
        if ended(launcher, interrupts, max(wake_at - now, 0.0)):
            return


def wait_back(run: RunDir, fired: list[Fired], launcher: Launcher, interrupts: Interrupts) -> None:
    """Until everybody that was hit trains again, or has ended for good."""
    until = time.monotonic() + BACK_S
    while time.monotonic() < until:
        try:
            back = all(row.state == "failed" or not away(row, fired) for row in read(run).components)
        except RunError:  # the file is gone for a while
            back = False
        if back or ended(launcher, interrupts, LOOK_S):
            return


def away(row: ComponentStatus, fired: Sequence[Fired]) -> str:
    """What keeps a component from having come back from what hit it; empty if nothing does. Lives count, not faults:
    whichever life follows the last one that was killed, and however many there were between.
    """
    hits = [fault for fault in fired if fault.component == row.component]
    reason = cause_of(row, hits)
    if row.state == "failed":
        return f"failed: {reason}"
    if not hits or row.state in FINAL:
        return ""
    killed = max((fault.incarnation for fault in hits if fault.kind == "kill"), default=-1)
    if row.incarnation <= killed and row.state != "restarting":
        return f"killed, as incarnation {row.incarnation}, and its launcher has not noticed yet"
    if row.incarnation > killed and row.state in ("training", "waiting"):
        return ""
    return f"{row.state}: {reason}" if reason else row.state


def cause_of(row: ComponentStatus, hits: Sequence[Fired]) -> str:
    """Why it is as it is. Its launcher can only guess who sends a SIGKILL; of our own there is nothing to guess."""
    if not any(fault.kind == "kill" and fault.incarnation == row.incarnation for fault in hits):
        return row.reason
    return row.reason.replace(SIGNALS[signal.SIGKILL], OURS)


def account(run: RunDir, spec: Spec, before: Status, chaos: Chaos, *, interrupted: bool) -> Account:
    """The story so far."""
    try:
        now = read(run)
    except RunError as error:
        raise RunError(f"{error}; the faults were done, what came back of them is not known") from error
    earlier = {row.component: row for row in before.components}
    restarts = {row.component: row.restarts - earlier[row.component].restarts for row in now.components}
    times = {row.component: new_times(earlier[row.component], row) for row in now.components}
    every = [seconds for row in times.values() for seconds in row]
    return Account(
        run=run.name,
        seed=spec.seed,
        seconds=spec.seconds,
        faults=chaos.fired,
        missed=sum(fault.kind != "slow" for fault in chaos.waiting),
        restarts=restarts,
        restart_s=RestartTimes(p50=round(statistics.median(every), 3), max=max(every), all=times) if every else None,
        lost={row.component: state for row in now.components if (state := away(row, chaos.fired))},
        interrupted=interrupted,
    )


def new_times(before: ComponentStatus, now: ComponentStatus) -> list[float]:
    """Durations of the restarts since; of the list's newest hundred, as many as there can be."""
    added = min(now.restarts - before.restarts, len(now.restart_s))
    if len(now.restart_s) > len(before.restart_s):
        added = min(added, len(now.restart_s) - len(before.restart_s))
    return now.restart_s[len(now.restart_s) - added :]


def story(account: Account) -> list[str]:
    """An account for people; what was told as it happened is not told again."""
    counts = Counter(fault.kind for fault in account.faults)
    made = [f"{counts[kind]} × {name}" for kind, name in NAMES.items() if counts[kind]]
    lines = [f"{', '.join(made) or 'nothing'} in run {account.run}, seed {account.seed}"]
    lines[0] += f"; {account.missed} more found nobody alive to hit, or were still to come" if account.missed else ""
    if account.restart_s is not None:
        each = ", ".join(f"{name} {count}" for name, count in account.restarts.items() if count)
        lines.append(f"restarts: {each}")
        lines.append(
            f"back in training after {account.restart_s.p50:.2f} s at the median, {account.restart_s.max:.2f} s at most"
        )
    return lines + [f"{name} did not come back: it is {state}" for name, state in account.lost.items()]
