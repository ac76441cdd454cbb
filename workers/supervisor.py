"""The launcher's loop: start, watch, restart, release, stop. Knows no model, no torch, no zmq.

    with Supervisor(plan) as supervisor:
        for status in supervisor.watch():     # ends by itself, a status every TICK_S at the latest
            show(status)

What happens to one component lies in `workers/member.py`, when it is restarted in `workers/policy.py`, how lock-step
stops in `workers/gather.py`, how a run ends in `workers/verdict.py`. Laws: it waits on events (reports, deaths,
signals, askers, times), never in a spin. A component that fails, stops or restarts ends nobody else's training, but
where nobody can go on without it (`Plan.together`). Its own files may vanish: training goes on. Whatever happens, no
process is left when it ends.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import msgspec

from bus import address
from configs.errors import RunError
from configs.load import dump
from workers import forkserver
from workers import status as status_file
from workers.attempt import Attempt
from workers.clock import Clock
from workers.desk import Answer, Ask, Desk, Promise
from workers.forkserver import QUIET
from workers.gather import Gathering
from workers.health import asked_from_afar, lacking
from workers.member import LEAVE_S, Member
from workers.origin import marked
from workers.output import in_passing
from workers.plan import Plan, ProcessPlan, unanswered, unscripted
from workers.process import enter
from workers.quarters import Quarters
from workers.rundir import RunDir, replace
from workers.status import RunState, Status
from workers.vacant import make_way, put_back, record, take_back
from workers.verdict import FAILED, REFUSED, judge

TICK_S = 0.25
"""Longest time between two looks, and between two versions of status.json."""
SAME_S = 0.5
"""A Ctrl-C that comes no later after the first signal is that one again: `timeout -s INT` sends it to the launcher, and
at once to its whole group."""


def orphans(members: Sequence[Member]) -> list[Member]:
    """Those whose parents have all ended for good, or gone silent as stubs may: in stream wiring there is nothing more
    to come for them.
    """
    ended = {member.name for member in members if member.over is not None or member.silent}
    return [member for member in members if member.plan.parents and ended.issuperset(member.plan.parents)]


def missed(members: Sequence[Member]) -> list[Member]:
    """Those without whom nobody goes on where all depend on each other (`Plan.together`): ended before the others, or,
    below somebody who still trains, a stub that has gone silent.
    """
    training = {member.name for member in members if member.plan.kind == "trainer" and not member.done}
    silent = [member for member in members if member.silent and training.intersection(member.plan.parents)]
    return [*(member for member in members if member.over in ("failed", "stopped")), *silent]


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
        self.clock = Clock()
        self._grace_s = plan.config.supervise.grace_ms / 1000
        self._deadline = float("inf")
        self._at_once = ""  # why nobody was given the time to leave, if so
        self._ordered: set[str] = set()
        self._gathering: Gathering | None = None
        self._gone: Member | None = None
        self._signals: list[tuple[int, float]] = []  # and when they came
        self._signalled_s: float | None = None
        self._handlers: dict[int, object] = {}
        self._bell, self._bell_end = socket.socketpair()
        self._earlier_bell: int | None = None
        self._desk = Desk(Path(plan.sockets))
        self._quarters = Quarters(Path(plan.sockets), self._desk, self.run.called)
        self._written = float("-inf")
        self._trouble = False
        self._made = False
        self._record: dict[Path, bytes | None] = {}  # of an earlier launch
        self._lock = -1

    def __enter__(self) -> Self:
        """Make the run directory, or take up that of a resumed run, write what is planned, start every process.

        Raises:
            FileExistsError: there is a run of this name.
            BlockingIOError: it is running.
        """
        try:
            self._begin()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _begin(self) -> None:
        if not self.plan.resumed:
            make_way(self.run)
            self.run.make()
            self._made = True
        self._lock = self.run.lock()
        before: dict[str, dict[str, Any]] = {}
        if self.plan.resumed:
            before, self._record = status_file.reached(self.run), record(self.run)
            rows = status_file.planned(self.plan, before)
            # before the new plan: whoever is killed next to it has failed, and what it plans is not finished
            status_file.write(self.run, msgspec.structs.replace(self.status, components=rows))
            self.run.reopen()
        self._plan_down()
        self._listen()
        forkserver.warm()
        rules, mends = self.plan.config.supervise, not self.plan.lockstep
        for process in self.plan.here:
            start, now, came = partial(self._start, process), self.clock.look(), before.get(process.name)
            self.members.append(Member(start, process.incarnation, rules, self.run, now, mends=mends, before=came))
        self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays: no process, no socket, no signal handler. But one that only stops, and comes a second time,
        changes nothing even now: the verdict is yet to be told.
        """
        for member in self.members:
            member.kill("killed with its launcher")
        for member in self.members:
            member.close(self.clock.now)
        if self._earlier_bell is not None:
            signal.set_wakeup_fd(self._earlier_bell)
        while self._handlers:
            number, handler = self._handlers.popitem()
            told = (self._signalled_s is not None or self._signals) and number not in (signal.SIGINT, signal.SIGQUIT)
            signal.signal(number, signal.SIG_IGN if told else handler)  # type: ignore[arg-type]
        self._bell.close()
        self._bell_end.close()
        self._desk.close()
        self._quarters.close()
        address.remove(Path(self.plan.sockets))
        if self._made and not self.members:
            take_back(self.run)
        if self._lock < 0:  # the run is another launcher's, or none
            return
        broke_off = kind is not None and self.exit_code is None
        if kind is not None and broke_off and self.members:
            code = REFUSED if issubclass(kind, Exception) else FAILED  # the former is what the command ends with
            self._end("failed", f"the launcher failed: {kind.__name__}: {error}", code)
            self._write()
        learnt = any(member.trained for member in self.members if member.plan.kind == "trainer")
        if (broke_off or self.exit_code == REFUSED) and not learnt and self.run.owns(self._lock):
            put_back(self.run, self._record)
        os.close(self._lock)
        self._lock = -1

    def watch(self) -> Iterator[Status]:
        """The run's status after every event and at least every TICK_S, until all processes are gone. Who gives up
        watching may begin again: nothing is lost by it.
        """
        while any(member.over is None for member in self.members):
            self._wait()
            now = self.clock.look()
            for member in self.members:
                member.look(now)
            self._obey()
            self._desk.serve(partial(self._restart, now=now))
            self._decide(now)
            if now - self._written >= TICK_S:
                self._quarters.look()
                self._write()
                yield self.status
        if self.exit_code is None:  # judged once: a second time, nobody knows any more that it was stopped
            verdict = judge(
                self.members,
                run=self.run.called,
                stopped=self.reason if self.state == "stopping" else "",
                together=self.plan.together,
                gone=self._gone,
                unscripted=unscripted(self.plan.config),
                lacking=lacking(self.status.components),
            )
            self._end(verdict.state, verdict.reason, verdict.exit_code)
            self._write()
        yield self.status

    @property
    def status(self) -> Status:
        """The run as it is now."""
        return Status(
            run=self.plan.run,
            state=self.state,
            reason=self.reason,
            exit_code=self.exit_code,
            lockstep=self.plan.lockstep,
            launcher_pid=os.getpid(),
            launcher_started=address.started(os.getpid()),
            boot=address.boot(),
            clock=address.clock(),
            host=os.uname().nodename,
            started_at=self.started_at,
            written_s=time.monotonic(),
            elapsed_s=self.clock.elapsed_s(),
            before_s=self.plan.before_s,
            elsewhere=self.plan.elsewhere,
            trouble=self._quarters.trouble if self.exit_code is None else "",
            components=[member.status(self.clock.now) for member in self.members],
        )

    def _start(self, process: ProcessPlan, incarnation: int, now: float) -> Attempt:
        """Begin one life of a component."""
        forkserver.warm()  # it may have been killed, too
        helper = forkserver.pid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plan, log = msgspec.json.encode(self.plan), str(self.run.log(process.name, incarnation))
        try:
            child = get_context("forkserver").Process(
                target=enter, args=(plan, process.name, incarnation, theirs, os.getpid(), log), name=process.name
            )
            child.start()
        except BaseException as error:
            ours.close()
            if isinstance(error, EOFError | ConnectionError):
                how = forkserver.cause(helper) or "hung up"
                raise RunError(f"{forkserver.HELPER}, as it was to start {process.name}, {how}") from error
            raise
        finally:
            theirs.close()
        if said := forkserver.heard():  # as of what it imports
            print(*said, sep="\n", file=sys.stderr)
        return Attempt(process, incarnation, child, ours, now, helper)

    def _listen(self) -> None:
        """Signals ring a bell that `_wait` hears; what they mean is decided in the loop. A SIGHUP that is ignored, as
        by `nohup`, stays so: the run is to outlive its terminal.
        """
        self._bell.setblocking(False)
        self._bell_end.setblocking(False)
        for number in QUIET:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._note)
        self._earlier_bell = signal.set_wakeup_fd(self._bell_end.fileno(), warn_on_full_buffer=False)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append((number, self.clock.elapsed_s()))

    def _wait(self) -> None:
        """Until something happens, or the next thing is due."""
        waited: list[int | socket.socket] = [self._bell, *self._desk.sockets()]
        for member in self.members:
            if member.attempt.alive:
                waited += [member.attempt.process.sentinel, member.attempt.channel]
        due_s = min([self._deadline, *(member.wake_at() for member in self.members)]) - self.clock.now
        # a component reports twice a second: look at once after the first event, then gather what comes with it
        heard = wait(waited, timeout=min(max(due_s, 0.0), TICK_S))
        if self._bell in heard and select.select([self._bell], [], [], 0)[0]:
            self._bell.recv(4096)

    def stop(self, why: str, *, at_once: bool = False) -> None:
        """Have everybody save and leave, or, at once, be gone; `watch` goes on until they are. Who is stopping is only
        hurried. Who has ended, has; but those whom a SIGTERM reached before us were stopped as well.
        """
        ended = all(member.over in ("finished", "failed") for member in self.members)
        if self.exit_code is not None or ended or (self.state == "stopping" and not at_once):
            return
        self.state, self.reason = "stopping", why
        self._at_once = (
            f"killed at once, as asked {why} (mach stop --now, or a second Ctrl-C)" if at_once else self._at_once
        )
        now = self.clock.now
        if self.plan.lockstep and not at_once and not self._ordered:
            self._gathering = Gathering(self.members, self._grace_s / 2, now)  # the other half is for leaving
            self._order("gather", self._grace_s, now)
        else:
            self._order("stop", 0.0 if at_once else self._grace_s, now)

    def _obey(self) -> None:
        """The first signal stops the run cleanly; SIGQUIT, or a Ctrl-C more than SAME_S after it, at once. A second
        one of the others changes nothing: `timeout` and shells send it to the launcher, and then to its whole group.
        """
        signals, self._signals = self._signals, []
        for number, came_s in signals:
            if self._signalled_s is None:  # not `stopping`: the Ctrl-C that stops may kill the reader a moment before
                self._signalled_s = came_s
            again = number == signal.SIGINT and came_s - self._signalled_s > SAME_S
            self.stop(f"by {signal.Signals(number).name}", at_once=again or number == signal.SIGQUIT)

    def _restart(self, wanted: Ask, *, now: float) -> Promise:
        """Somebody asked for a restart."""
        member = next((member for member in self.members if member.name == wanted.restart), None)
        if member is not None:
            return member.restart(now)
        names, away = ", ".join(member.name for member in self.members), self.plan.elsewhere.get(wanted.restart)
        where = f"{wanted.restart} is on {away}, and here" if away else f"there is no {wanted.restart!r}; there"
        nobody = Answer(done=False, text=f"{where} are: {names}")
        return lambda: nobody

    def _decide(self, now: float) -> None:
        """Move the run on: training, the end of a run in which nobody can go on, the release, the last resort."""
        trainers = [member for member in self.members if member.plan.kind == "trainer"]
        if self.state == "starting" and any(member.steps > 0 for member in trainers):
            self.state = "training"
        if self.plan.config.wiring == "stream":
            for member in orphans(self.members):
                member.tell("orphaned")
        silent = {member.name for member in self.members if member.silent}
        for member in trainers if silent else ():
            if unanswered(self.plan, member.plan, silent):
                member.tell("unanswered")
        if not self._ordered:
            lacking = missed(self.members) if self.plan.together else [each for each in self.members if each.refused]
            if lacking:
                self._gone = lacking[0]
                self._order("stop", self._grace_s, now)
            elif all(member.done for member in trainers) and not asked_from_afar(self.status.components):
                # nobody's answers are needed any more
                self._order("release", LEAVE_S, now)
        if self._gathering is not None and (order := self._gathering.order(now)) is not None:
            self._order(order, self._grace_s, now)
            self._gathering = None if order == "stop" else self._gathering
        if not self._at_once and any(member.saving for member in self.members):  # the time to leave begins after that
            self._deadline = max(self._deadline, now + max(self._grace_s, TICK_S))
        if now >= self._deadline:
            for member in self.members:
                member.kill(self._at_once or "killed, since it did not leave in time")
            self._deadline = float("inf")

    def _order(self, order: str, within_s: float, now: float) -> None:
        """Tell everybody, and set the time for the last resort; a later order may only bring it nearer."""
        if order not in self._ordered:
            self._ordered.add(order)
            for member in self.members:
                member.order(order)
        self._deadline = min(self._deadline, now + within_s)

    def _end(self, state: RunState, reason: str, exit_code: int) -> None:
        self.state, self.reason, self.exit_code = state, reason, exit_code

    def _plan_down(self) -> None:
        """The folders of the run, and what is planned: first the plan, with which alone it can be gone on with."""
        self.run.restore()
        replace(self.run.plan, msgspec.json.format(msgspec.json.encode(marked(self.plan))))
        replace(self.run.config, dump(self.plan.config).encode())

    def _write(self) -> None:
        """status.json; a disk that is full, read-only or gone costs the file, not the run, until it is back."""
        self._written = self.clock.now
        try:
            planned = self.run.plan.exists(), self.run.config.exists()
            owned = self.run.owns(self._lock)
            lost = not any(planned) and not owned
            if not owned:  # or the run would have no launcher
                self.run.restore()
                earlier, self._lock = self._lock, self.run.lock()
                os.close(earlier)
                self._record = {}  # what lies there now is another's, or new
            if not all(planned):
                self._plan_down()
            status_file.write(self.run, self.status)
        except OSError as error:
            if not self._trouble:
                goes_on = "; training goes on" if self.exit_code is None else ""
                why = "another launcher has the run by now" if isinstance(error, BlockingIOError) else error
                in_passing(f"mach: {self.run.status} cannot be written ({why}){goes_on}")
            self._trouble = True
            return
        if lost and self.exit_code is None:
            way = f"training goes on, and it is made again; mach stop {self.run.called} stops it"
            in_passing(f"mach: {self.run.path} was removed or moved; {way}")
        elif self._trouble:
            in_passing(f"mach: {self.run.status} can be written again")
        self._trouble = False
