"""Fakes of a component's process, for what stands above it: real pairs of sockets, no process. And a run's status."""

import os
import socket
import time
from typing import Any

import msgspec

from bus import address
from workers.attempt import Attempt
from workers.plan import ProcessPlan
from workers.report import Checkpoint, Report
from workers.status import ComponentStatus, RunState, Status


def status(state: RunState) -> Status:
    """Of run r, whose launcher is this process."""
    return Status(
        run="r",
        state=state,
        launcher_pid=os.getpid(),
        launcher_started=address.started(os.getpid()),
        boot=address.boot(),
        started_at=0.0,
        written_s=time.monotonic(),
        elapsed_s=1.0,
        components=[],
    )


def component(name: str = "c0", **fields: object) -> ComponentStatus:
    """A row of it: a trainer that trains."""
    base = {
        "component": name,
        "kind": "trainer",
        "incarnation": 1,
        "pid": 4711,
        "device": "cpu",
        "state": "training",
        "step": 7,
        "last_seen_s": 0.5,
        "log": f"logs/{name}.log",
    }
    return ComponentStatus(**(base | fields))


def plan(kind: str = "trainer", name: str = "c1") -> ProcessPlan:
    return ProcessPlan(name=name, index=1, kind=kind, device="cpu", children=("c2",), parents=("c0",))  # type: ignore[arg-type]


class FakeProcess:
    """What an attempt asks of a process. Its pid is this test's own: nothing may be sent to it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.exitcode: int | None = None
        self.killed = 0
        self.closed = False

    def kill(self) -> None:
        self.killed += 1
        self.exitcode = -9

    def join(self) -> None:
        assert self.exitcode is not None, "nobody waits for a process that was not killed"

    def close(self) -> None:
        self.closed = True


class Life:
    """One attempt whose process a test plays."""

    def __init__(self, incarnation: int = 1, now: float = 0.0, kind: str = "trainer") -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)
        self.process = FakeProcess()
        self.dumped = 0
        self.incarnation = incarnation
        self.kind = kind
        self.attempt = Attempt(plan(kind), incarnation, self.process, ours, now)  # type: ignore[arg-type]
        self.attempt.dump = self._dump  # type: ignore[method-assign]
        self.attempt.frozen = lambda: self.stopped  # type: ignore[method-assign]
        self.stopped = False

    def _dump(self) -> None:
        self.dumped += 1

    def say(self, state: str, step: int = 0, reason: str = "", saved: int | None = None, **more: Any) -> None:
        more.setdefault("checkpoint", Checkpoint(step=saved))
        report = Report(
            component="c1",
            kind=self.kind,  # type: ignore[arg-type]
            incarnation=self.incarnation,
            pid=4711,
            device="cpu",
            state=state,  # type: ignore[arg-type]
            step=step,
            reason=reason,
            **more,
        )
        self.theirs.send(msgspec.msgpack.encode(report))

    def orders(self) -> list[str]:
        orders = []
        while True:
            try:
                orders.append(self.theirs.recv(100).decode())
            except BlockingIOError:
                return orders

    def close(self) -> None:
        self.theirs.close()
        self.attempt.channel.close()
