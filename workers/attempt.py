"""One life of a component: a process, what it reported, how it ended. Knows no other life and decides nothing.

Laws: liveness is progress. Reports come from the training loop itself, so a process that hangs, holds the
interpreter's lock or was stopped is silent, however alive its other threads are. An exit code alone is no proof:
a process that leaves with 0 and has not said that it is done has failed.
"""

import os
import resource
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.process import BaseProcess

import msgspec
import psutil

from configs.errors import Unsaved
from workers import forkserver
from workers.plan import ProcessPlan
from workers.report import Report
from workers.room import THREADS
from workers.scarce import MEMORY, TASKS, group

PACKET = 1 << 20
"""Most bytes of one report."""
HELPER_LOST = 255
"""What multiprocessing says of a child whose forkserver has gone."""
REFUSED = 2
"""Exit code of a process that cannot run this configuration or this data; so no other life of it can."""
LOWER = "lower train.batch_size, the sizes under model, or the number of components"
SIGNALS: Mapping[signal.Signals, str] = {
    signal.SIGKILL: f"probably out of memory, or killed by hand; {LOWER}",
    signal.SIGSEGV: "a crash in compiled code; its log has the stack",
    signal.SIGBUS: "a file in memory that was cut short, or could not grow on a full disk; its log has the stack",
    signal.SIGABRT: "compiled code gave up, often out of memory, or of threads (ulimit -u); its log says why",
    signal.SIGFPE: "an arithmetic trap in compiled code; its log has the stack",
    signal.SIGILL: "an instruction that this processor lacks; its log has the stack",
    signal.SIGXCPU: "its limit of CPU time is used up; see ulimit -t",
}
"""What a signal usually means, and what to do."""


def frozen(pid: int) -> bool:
    """Whether a signal (SIGSTOP) or a debugger holds a process, so that it cannot run any code."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


class Attempt:
    """A process, its channel, and what is known of it. Times are seconds of the supervisor's clock."""

    def __init__(
        self,
        plan: ProcessPlan,
        incarnation: int,
        process: BaseProcess,
        channel: socket.socket,
        now: float,
        helper: int = 0,
    ) -> None:
        """`helper`: pid of the forkserver that it comes from."""
        self.plan = plan
        self.incarnation = incarnation
        self.process = process
        self.channel = channel
        self.pid = process.pid or 0
        self.report: Report | None = None
        """The newest."""
        self.heard_at: float | None = None
        self.exit_code: int | None = None
        self.killed = ""
        """Why we killed it, if we did."""
        self._started_at = now
        self._helper = helper
        self._last_word = ""
        channel.setblocking(False)

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as `read` has noticed."""
        return self.exit_code is None

    @property
    def stepped(self) -> bool:
        """Whether it does what it is for: has trained a step in this life, or, as a stub, listens."""
        return self.report is not None and (
            self.plan.kind == "stub" or self.report.step > 0 or self.report.state == "finished"
        )

    @property
    def done(self) -> bool:
        """Whether it has done all its own steps and only answers its parents; a stub always is."""
        return self.plan.kind == "stub" or (self.report is not None and self.report.state == "finished")

    @property
    def left_well(self) -> bool:
        """Whether it ended as it should: with exit code 0, and having said that it leaves."""
        return self.exit_code == 0 and self.report is not None and self.report.state in ("finished", "stopped")

    @property
    def refused(self) -> bool:
        """Whether it found, before its first step, that the configuration or the data cannot be run."""
        return self.exit_code == REFUSED and not self.stepped

    @property
    def unsaved(self) -> bool:
        """Whether it left because what it has learnt could not be written down."""
        return self.exit_code == Unsaved.exit_code

    def read(self, now: float) -> None:
        """Take what it has said, and notice its end."""
        if not self.alive:
            return
        code = self.process.exitcode  # first: what it said before its end is then all there
        while packet := self._packet():
            self._take(msgspec.msgpack.decode(packet, type=Report), now)
        if code is not None:
            self.exit_code = code
            self.channel.close()

    def silence_s(self, now: float) -> float:
        """Since its last report, or its start."""
        return now - (self._started_at if self.heard_at is None else self.heard_at)

    def frozen(self) -> bool:
        """Whether a signal (SIGSTOP) or a debugger holds the process, so that it cannot run any code."""
        return frozen(self.pid)

    def dump(self) -> None:
        """Have it write the Python stacks of all its threads into its log, also while one holds the GIL."""
        if self.process.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    def kill(self, why: str) -> None:
        """SIGKILL, which ends stopped processes too. The first reason stays."""
        if self.alive:
            self.killed = self.killed or why
            self.process.kill()

    def order(self, order: str) -> None:
        """Tell it; a process that does not listen is killed in time by the supervisor."""
        if self.alive:
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # the deadline is for those
                self.channel.send(order.encode())

    def join(self, now: float) -> None:
        """Wait for the end of the process and release what it holds."""
        self.process.join()
        self.read(now)
        self.close()

    def close(self) -> None:
        """Release what an ended process holds."""
        self.channel.close()
        self.process.close()

    def verdict(self) -> str:
        """How it ended, and what to do, in one clause."""
        if self.killed:
            return self.killed
        code = self.exit_code
        if code is not None and code < 0:
            number = signal.Signals(-code)
            why = self._last_word or SIGNALS.get(number, "")
            if number == signal.SIGKILL and not self._last_word:
                why += f"; its control group (container) may have {limit}" if (limit := group()) else ""
                if resource.getrlimit(resource.RLIMIT_CPU)[1] != resource.RLIM_INFINITY:  # it has our own
                    why += f"; or {SIGNALS[signal.SIGXCPU]}"
            return f"ended by {number.name}" + (f" ({why})" if why else "")
        if word := self._last_word:
            way = f"out of memory: {LOWER}" if MEMORY.search(word) else THREADS if TASKS.search(word) else ""
            return word + (f"; {way}" if way else "")
        if code == HELPER_LOST and (how := forkserver.cause(self._helper)):
            return f"ended with {forkserver.HELPER}, which {how}"
        if code == 0:
            return "left without finishing, exit code 0"
        said = forkserver.heard()  # of one that came to nothing before it had a log
        return f"left without a word, exit code {code}" + (f": {said[-1].strip()}" if said else "")

    def _packet(self) -> bytes:
        """The next thing it said; empty if there is none, or its end is closed."""
        try:
            return self.channel.recv(PACKET)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def _take(self, report: Report, now: float) -> None:
        self.heard_at = now
        if report.state == "failed":
            self._last_word = report.reason  # its numbers stay those of the last report before
        else:
            self.report = report
