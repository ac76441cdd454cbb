"""First and last thing in every child: one visible device, signals, death with the launcher, log, verdict.

    supervisor ◀── reports ── child     one SOCK_SEQPACKET pair per child; neither end ever blocks on it
    supervisor ─── orders ──▶ child     `stop`: save and leave now; `release`: nobody needs your answers any more;
                                        `orphaned`: nothing more comes from your parents; `unanswered`: a stub that
                                        your examinations need has gone silent; `gather` and `until N`, in lock-step:
                                        see `workers/gather.py`

Knows no socket of the bus and no model: what the process is for comes from the plan, as a module with
`run(plan, name, control)`. Children come from a forkserver that has imported torch once (`PRELOAD`).

Laws: no child outlives its launcher, not even a stopped one. Ctrl-C in a terminal reaches the launcher alone.
What goes wrong ends in the child's log with its traceback, in one sentence at the supervisor, and in the exit code.
"""

import ctypes
import faulthandler
import importlib
import os
import re
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

import msgspec

from bus import address, kernel
from configs.errors import MachError
from workers.plan import Plan, ProcessPlan
from workers.report import Report

MODULES = {"trainer": "workers.trainer", "stub": "workers.stub"}
"""Where the body of each kind of process lives: `run(plan, name, control)`."""
PRELOAD = [
    *("workers.tether", "workers.thrift", "torch", "numpy", "zmq", "safetensors.torch", *MODULES.values()),
    *("tensorboard.compat.proto.event_pb2", "tensorboard.compat.proto.summary_pb2"),
    "tensorboard.summary.writer.record_writer",
]
"""Imported once by the forkserver; importing torch in every child would take seconds each."""
UNEXPECTED = 1
"""Exit code after an error that is no MachError; those bring their own."""
PACKET = 1 << 16
"""Most bytes of one order."""
STDOUT = 1
PR_SET_PDEATHSIG = 1


class Control:
    """The child's end of the pair: reports out, orders in."""

    def __init__(self, channel: socket.socket, name: str, incarnation: int) -> None:
        channel.setblocking(False)
        self.name = name
        self.incarnation = incarnation
        self._channel = channel
        self._orders: set[str] = set()

    def send(self, report: Report) -> None:
        """Send, or drop it if the supervisor does not read: a stopped launcher stops nobody."""
        try:
            self._channel.send(msgspec.msgpack.encode(report))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return

    def last_word(self, sentence: str) -> None:
        """Say why this life ends, in the log and to the supervisor, which keeps the numbers of the report before."""
        line(f"{self.name}: {sentence}")
        self.send(
            Report(
                component=self.name,
                kind="trainer",
                incarnation=self.incarnation,
                pid=os.getpid(),
                device="",
                state="failed",
                reason=sentence,
            )
        )

    def orders(self) -> set[str]:
        """All orders so far."""
        while True:
            try:
                order = self._channel.recv(PACKET)
            except BlockingIOError:
                return self._orders
            self._orders.add(order.decode() if order else "stop")
            if not order:
                return self._orders  # the launcher's end is closed

    def order_stop(self, *_: object) -> None:
        """SIGTERM means the same as the order."""
        self._orders.add("stop")

    def order_nothing(self, *_: object) -> None:
        """SIGTERM means nothing; but what this process starts must not inherit that it is ignored."""


def device_of(process: ProcessPlan) -> str:
    """Torch's name of the process's device: it sees one at most."""
    return "cpu" if process.device == "cpu" else "cuda:0"


def enter(plan_json: bytes, name: str, incarnation: int, channel: socket.socket, launcher: int, log: str) -> None:
    """The target of a child process; leaves with the exit code that the supervisor judges."""
    control = Control(channel, name, incarnation)
    try:
        redirect(Path(log))
        die_with(launcher)
        plan = msgspec.json.decode(plan_json, type=Plan)
        body(plan.process(name), plan, control)
    except MachError as error:
        control.last_word(by_number(str(error)))
        sys.exit(error.exit_code)
    except BaseException as error:
        control.last_word(by_number(sentence(error)))
        line(traceback.format_exc())  # last: it may need memory that there is not
        sys.exit(UNEXPECTED)


def by_number(text: str) -> str:
    """The same with the device's own number: a process sees but one, which torch calls 0 there."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return re.sub(r"\b(cuda:|GPU )0\b", rf"\g<1>{device}", text) if device.isdecimal() else text


def sentence(error: BaseException) -> str:
    """An error in one line, after what was noted about where it was raised."""
    parts = (*getattr(error, "__notes__", ()), type(error).__name__, error)
    return " ".join(": ".join(map(str, parts)).split())


def body(process: ProcessPlan, plan: Plan, control: Control) -> None:
    """Set up signals, the device and torch, whose threads belong to this process, and do what the process is for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocked by the forkserver. In lock-step nobody leaves alone: the launcher, which is told as well, gathers all.
    signal.signal(signal.SIGTERM, control.order_nothing if plan.lockstep else control.order_stop)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if process.device == "cpu" else process.device
    line(f"{process.name}: incarnation {control.incarnation}, pid {os.getpid()}, device {process.device}")
    import torch

    torch.set_num_threads(plan.config.threads)
    importlib.import_module(MODULES[process.kind]).run(plan, process.name, control)


def line(text: str) -> None:
    """One line into the log, unbuffered: it may lie on the disk that is full, and costs nobody."""
    with suppress(OSError):
        os.write(STDOUT, f"{text}\n".encode())


def redirect(log: Path) -> None:
    """Everything that this process prints, from C too, goes to its log; to nowhere if that cannot be written."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # a full or vanished disk ends nobody's training; the supervisor tells of it
        fd = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(fd, stream)
    os.close(fd)
    for text in (sys.stdout, sys.stderr):
        if hasattr(text, "reconfigure"):
            text.reconfigure(line_buffering=True, encoding="utf-8", errors="replace")
    faulthandler.enable()


def die_with(launcher: int) -> None:
    """SIGKILL to ourselves when the launcher is gone.

    Twice: a thread waits for the launcher itself, and the kernel kills us, stopped or not, when our parent, the
    forkserver, is gone, which ends with the launcher. A launcher that died before this line is noticed, too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed; MACH needs Linux")
    # The forkserver ends when the last copy of this pipe's end is closed. Children inherit one: a stopped child
    # would then keep the forkserver alive, and with it itself.
    kept = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if kept is not None:
        os.close(kept)
    try:
        watch = kernel.pidfd_open(launcher)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=follow, args=(watch,), name="launcher watch", daemon=True).start()


def follow(watch: int) -> None:
    """Wait for a process to end, then end; of its private directories, which it may have had no time to remove, as many
    are removed as there is time for: the kernel kills us with the forkserver, which takes some milliseconds to die.
    """
    select.select([watch], [], [])
    try:
        address.sweep()
    finally:
        os.kill(os.getpid(), signal.SIGKILL)
