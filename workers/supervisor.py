"""The launcher's loop: start, watch, release, stop; one verdict a process. Knows no model, no torch, no zmq.

    with Supervisor(plan) as supervisor:
        for status in supervisor.watch():     # ends by itself, a status every TICK_S at the latest
            show(status)

Laws: it waits on events (reports, deaths, signals), never in a spin. A component that dies or stops ends nobody
else's training, but in lock-step, where nobody can go on. Whatever happens, no process is left when it ends.
"""

import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import msgspec
import psutil

from configs.load import dump
from workers import status as status_file
from workers.member import Member
from workers.plan import Plan
from workers.process import PRELOAD, enter
from workers.rundir import RunDir, replace
from workers.status import RunState, Status

TICK_S = 0.25
"""Longest time between two looks, and between two versions of status.json."""
GRACE_S = 2.0
"""From an order to stop to SIGKILL."""
LEAVE_S = 5.0
"""From the release to SIGKILL: a component that is done has nothing left but its goodbyes."""
QUIET = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}
"""Blocked in children: a terminal sends them to the whole group, and stopping is the launcher's business."""
STOPPED = 130
"""Exit code of a run that was stopped."""


def warm() -> None:
    """Start the forkserver, which imports torch while the launcher still reads its configuration."""
    get_context("forkserver").set_forkserver_preload(PRELOAD)
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


class Supervisor:
    """One run, from the first process to the last."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.run = RunDir(Path(plan.directory))
        self.state: RunState = "starting"
        self.reason = ""
        self.exit_code: int | None = None
        self.members: list[Member] = []
        self.started_at = time.time()
        self._started = time.monotonic()
        self._deadline = float("inf")
        self._ordered: set[str] = set()
        self._signals: list[int] = []
        self._handlers: dict[int, object] = {}
        self._bell, self._bell_end = socket.socketpair()
        self._earlier_bell = -1
        self._written = float("-inf")
        self._write_failed = False
        self._lock = -1

    def __enter__(self) -> Self:
        """Make the run directory, or take up that of a resumed run, write what is planned, start every process.

        Raises:
            FileExistsError: there is a run of this name.
            BlockingIOError: it is running.
        """
        if not self.plan.resumed:
            self.run.make()
        self._lock = self.run.lock()
        if self.plan.resumed:
            self.run.reopen()
        replace(self.run.config, dump(self.plan.config).encode())
        replace(self.run.plan, msgspec.json.format(msgspec.json.encode(self.plan)))
        self._listen()
        warm()
        for process in self.plan.processes:
            self.members.append(self._start(process.name))
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays: no process, no socket, no signal handler."""
        for member in self.members:
            member.kill()
        for member in self.members:
            member.join()
            member.close()
        signal.set_wakeup_fd(self._earlier_bell)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._bell.close()
        self._bell_end.close()
        shutil.rmtree(self.plan.sockets, ignore_errors=True)
        if kind is not None and self.exit_code is None:
            self._end("failed", f"the launcher failed: {kind.__name__}: {error}", 1)
            self._write()
        os.close(self._lock)

    def watch(self) -> Iterator[Status]:
        """The run's status after every event and at least every TICK_S, until all processes are gone."""
        while any(member.alive for member in self.members):
            self._wait()
            now = time.monotonic()
            for member in self.members:
                member.read(now)
            self._obey()
            self._decide(now)
            if now - self._written >= TICK_S:
                self._write()
                yield self.status
        self._judge()
        self._write()
        yield self.status

    @property
    def status(self) -> Status:
        """The run as it is now."""
        now = time.monotonic()
        return Status(
            run=self.plan.run,
            state=self.state,
            reason=self.reason,
            exit_code=self.exit_code,
            lockstep=self.plan.lockstep,
            launcher_pid=os.getpid(),
            launcher_started=psutil.Process().create_time(),
            started_at=self.started_at,
            written_at=time.time(),
            elapsed_s=now - self._started,
            components=[member.status(now) for member in self.members],
        )

    def _start(self, name: str) -> Member:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        incarnation = self.plan.process(name).incarnation
        process = get_context("forkserver").Process(
            target=enter, args=(msgspec.json.encode(self.plan), name, incarnation, theirs, os.getpid()), name=name
        )
        process.start()
        theirs.close()
        silent_s = self.plan.config.report.silent_ms / 1000
        return Member(self.plan.process(name), process, ours, silent_s, time.monotonic())

    def _listen(self) -> None:
        """Signals ring a bell that `_wait` hears; what they mean is decided in the loop."""
        self._bell.setblocking(False)
        self._bell_end.setblocking(False)
        for number in (signal.SIGTERM, *QUIET):
            self._handlers[number] = signal.signal(number, self._note)
        self._earlier_bell = signal.set_wakeup_fd(self._bell_end.fileno(), warn_on_full_buffer=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _wait(self) -> None:
        waited: list[int | socket.socket] = [self._bell]
        for member in self.members:
            if member.alive:
                waited += [member.process.sentinel, member.channel]
        # a component reports twice a second: look at once after the first event, then gather what comes with it
        if self._bell in wait(waited, timeout=TICK_S) and select.select([self._bell], [], [], 0)[0]:
            self._bell.recv(4096)

    def _obey(self) -> None:
        """The first signal stops the run cleanly, a second one or SIGQUIT at once."""
        signals, self._signals = self._signals, []
        for number in signals:
            at_once = self.state == "stopping" or number == signal.SIGQUIT
            self.state, self.reason = "stopping", f"by {signal.Signals(number).name}"
            self._order("stop", 0.0 if at_once else GRACE_S)

    def _decide(self, now: float) -> None:
        """Move the run on: training, the end of a run in which nobody can go on, the release, the last resort."""
        trainers = [member for member in self.members if member.plan.kind == "trainer"]
        if self.state == "starting" and any(member.steps > 0 for member in trainers):
            self.state = "training"
        if not self._ordered:
            hopeless = next((m for m in self.members if m.failed and (m.refused or self.plan.lockstep)), None)
            if hopeless is not None:
                self.reason = hopeless.cause
                self._order("stop", GRACE_S)
            else:
                self._release(trainers, now)
        if now >= self._deadline:
            for member in self.members:
                member.kill("stopped: killed, since it did not leave in time")

    def _release(self, trainers: list[Member], now: float) -> None:
        """When every trainer that can be waited for is done, nobody's answers are needed any more."""
        if any(member.alive and not member.done and not member.stalled(now) for member in trainers):
            return
        for member in trainers:
            if member.alive and not member.done and member.stalled(now, times=2):
                member.kill(f"{member.silence(now)}; killed when the others were done")
        if not any(member.alive and not member.done for member in trainers):
            self._order("release", LEAVE_S)

    def _order(self, order: str, within_s: float) -> None:
        """Tell everybody, and set the time for the last resort; a later order may only bring it nearer."""
        if order not in self._ordered:
            self._ordered.add(order)
            for member in self.members:
                member.order(order)
        self._deadline = min(self._deadline, time.monotonic() + within_s)

    def _judge(self) -> None:
        """The verdict, when all processes are gone."""
        failed = [member for member in self.members if member.failed]
        first = min(failed, key=lambda member: member.ended_at, default=None)
        refused = next((member for member in failed if member.refused), None)
        if self.state == "stopping":
            self._end("stopped", self.reason, STOPPED)
        elif refused is not None:
            self._end("failed", refused.cause, 2)
        elif first is not None:
            rest = any(not member.failed and member.plan.kind == "trainer" for member in self.members)
            self._end("finished" if rest and not self.plan.lockstep else "failed", first.cause, 1)
        else:
            self._end("finished", "", 0)

    def _end(self, state: RunState, reason: str, exit_code: int) -> None:
        self.state, self.reason, self.exit_code = state, reason, exit_code

    def _write(self) -> None:
        """status.json; a disk that is full or gone costs the file, not the run."""
        self._written = time.monotonic()
        try:
            status_file.write(self.run, self.status)
            self._write_failed = False
        except OSError as error:
            if not self._write_failed:
                print(f"mach: {self.run.status} cannot be written ({error}); training goes on", flush=True)
            self._write_failed = True
