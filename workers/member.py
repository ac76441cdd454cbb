"""One process of a run, as its supervisor sees it: newest report, silence, verdict. Knows no other member."""

import signal
import socket
import time
from multiprocessing.process import BaseProcess

import msgspec

from workers.plan import ProcessPlan
from workers.report import Report, State
from workers.status import ComponentStatus

STARTING_S = 60.0
"""A component without a first report may load data for this long before it counts as stalled."""
PACKET = 1 << 20
"""Most bytes of one report."""
ADVICE = {
    signal.SIGKILL: "out of memory, or killed by hand; lower train.batch_size or the number of components",
    signal.SIGSEGV: "a crash in compiled code; its log has the stack",
}


class Member:
    """A process, its channel, and what is known of it. Times are monotonic seconds."""

    def __init__(
        self, plan: ProcessPlan, process: BaseProcess, channel: socket.socket, silent_s: float, now: float
    ) -> None:
        self.plan = plan
        self.process = process
        self.channel = channel
        self.silent_s = silent_s
        self.report: Report | None = None
        self.heard_at: float | None = None
        self.ended_at = float("inf")
        self.exit_code: int | None = None
        self.pid = process.pid
        self._started_at = now
        self._last_word = ""
        self._killed = ""
        channel.setblocking(False)

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as `read` has noticed."""
        return self.exit_code is None

    @property
    def steps(self) -> int:
        """Optimiser steps that it reported."""
        return self.report.step if self.report is not None else 0

    @property
    def done(self) -> bool:
        """Whether it has done all its own steps and only answers its parents; a stub always is."""
        return self.plan.kind == "stub" or (self.report is not None and self.report.state == "finished")

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than it should."""
        return self.exit_code is not None and (self.exit_code != 0 or bool(self._killed and not self.done))

    @property
    def refused(self) -> bool:
        """Whether it found, before its first step, that the configuration or the data cannot be run: so will all."""
        return self.exit_code == 2 and self.steps == 0

    @property
    def cause(self) -> str:
        """One sentence on why it failed."""
        if self.refused:
            return self._last_word
        return f"{self.plan.name} failed: {self._verdict()}; see its log, logs/{self.plan.name}.log"

    def read(self, now: float) -> None:
        """Take what it has said, and notice its end."""
        if not self.alive:
            return
        code = self.process.exitcode  # first: what it said before its end is then all there
        while packet := self._packet():
            self._take(msgspec.msgpack.decode(packet, type=Report), now)
        if code is not None:
            self.exit_code, self.ended_at = code, now
            self.channel.close()

    def stalled(self, now: float, times: float = 1.0) -> bool:
        """Alive, and silent for `times` the limit."""
        return self.alive and self._silence(now) > times * self._limit_s()

    def silence(self, now: float) -> str:
        """For people: how long it has not been heard of."""
        return f"not heard of for {self._silence(now):.0f} s (stopped, or hung)"

    def order(self, order: str) -> None:
        """Tell it; a member that does not listen is killed in time by the supervisor."""
        if self.alive:
            try:
                self.channel.send(order.encode())
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                return  # it is stopped or gone: the supervisor's deadline is for those

    def kill(self, why: str = "killed") -> None:
        """SIGKILL, which ends stopped processes too."""
        if self.alive and not self._killed:
            self._killed = why
            self.process.kill()

    def join(self) -> None:
        """Wait for the end of the process."""
        self.process.join()
        self.read(time.monotonic())

    def close(self) -> None:
        """Release what the process object holds."""
        self.channel.close()
        self.process.close()

    def status(self, now: float) -> ComponentStatus:
        """For status.json."""
        report = self.report or Report(
            component=self.plan.name,
            kind=self.plan.kind,
            incarnation=1,
            pid=self.pid or 0,
            device=self.plan.device,
            state="starting",
        )
        state, reason = self._state(report, now)
        fields = msgspec.structs.asdict(report) | {"state": state, "reason": reason}
        return ComponentStatus(
            **fields,
            last_seen_s=None if self.heard_at is None else now - self.heard_at,
            exit_code=self.exit_code,
            log=f"logs/{self.plan.name}.log",
        )

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

    def _state(self, report: Report, now: float) -> tuple[State, str]:
        if self.failed:
            return ("stopped" if self._killed.startswith("stopped") else "failed"), self._verdict()
        if self.alive and self.stalled(now):
            return "stalled", self.silence(now)
        return report.state, report.reason

    def _verdict(self) -> str:
        if self._killed:
            return self._killed
        if self.exit_code is not None and self.exit_code < 0:
            number = signal.Signals(-self.exit_code)
            advice = ADVICE.get(number)
            return f"ended by {number.name}" + (f" ({advice})" if advice else "")
        return self._last_word or f"exit code {self.exit_code}"

    def _silence(self, now: float) -> float:
        return now - (self._started_at if self.heard_at is None else self.heard_at)

    def _limit_s(self) -> float:
        return STARTING_S if self.heard_at is None else self.silent_s
