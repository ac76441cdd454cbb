"""What this machine can do: checks with a verdict each. `mach doctor` prints them.

What needs torch or ZeroMQ runs in one process of its own (`python -m workers.doctor`), so that the command line
stays light. Law: whatever is broken, an installation or a limit, is a failed check in one line, never a traceback,
and is told within PROBE_S.
"""

import errno
import functools
import importlib.metadata
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import psutil

from bus import address, headroom
from configs.errors import ConfigError, MachError
from workers import interpreter
from workers.devices import find_devices, has_driver
from workers.room import THREADS
from workers.rundir import ground
from workers.scarce import TASKS

if TYPE_CHECKING:
    from bus.mailbox import Mailbox
    from mach.messages import Activation

PROBE_S = 30.0
"""Longest wait for the process with the heavy checks."""
MEET_S = 5.0
"""Longest wait for two mailboxes to find each other, and for one answer."""
SHARED_MB = 64
"""Megabytes that a ring of messages may take, below which there is a warning."""
ROOM_MB = 100
"""Megabytes free where runs lie, below which there is a warning: checkpoints and logs come to tens."""
FILES = 1024
"""Open files below which there is a warning."""
LAUNCH, COMPONENT = 4, 5
"""Processes and threads that a launch takes, and that each of its components does, whose `threads` is 1."""
ROOMY = LAUNCH + 8 * COMPONENT
"""Of which no more may be added: below that there is a warning."""
ROUNDS = 200
"""Questions whose median is the bus round trip."""
HEAVY = ("versions", "shared memory", "bus round trip")
"""Checks that run in the process of its own."""


class Check(msgspec.Struct, frozen=True):
    """One finding."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    text: str


def run(runs: Path) -> list[Check]:
    """Every check; `runs` is where runs would be written."""
    local: list[tuple[str, Callable[[], Check]]] = [
        ("devices", devices),
        ("ulimits", limits),
        ("runs directory", lambda: writable(runs)),
        ("sockets", sockets),
    ]
    versions, memory, round_trip = probe()
    return [versions, *(attempt(name, check) for name, check in local), memory, round_trip]


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """A check that breaks is a check that failed."""
    try:
        return check()
    except MachError as error:
        return Check(name, "fail", str(error))
    except Exception as error:
        return Check(name, "fail", " ".join(f"{type(error).__name__}: {error}".split()))


def devices() -> Check:
    """CUDA devices; a machine without a driver is meant for the CPU, one with a driver and no device is not."""
    found = find_devices()
    if found:
        return Check("devices", "ok", f"CUDA {', '.join(found)}")
    if has_driver():
        return Check("devices", "warn", "a driver, but no CUDA device that torch can use; see CUDA_VISIBLE_DEVICES")
    return Check("devices", "ok", "no CUDA device: components train on the CPU")


def limits() -> Check:
    """Open files, processes, locked memory."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    text = f"open files {limit(files)} · processes {limit(processes)} · locked memory {limit(locked)} bytes"
    few = files != resource.RLIM_INFINITY and files < FILES
    text += f"; raise it: ulimit -n {FILES}" if few else ""
    left = tasks_left()
    if left is None or left >= ROOMY:
        return Check("ulimits", "warn" if few else "ok", text)
    text += f"; room for {left:,} more processes and threads: a launch takes {LAUNCH}, every component {COMPONENT}"
    return Check("ulimits", "fail" if left < LAUNCH + COMPONENT else "warn", f"{text}; {THREADS}")


def tasks_left() -> int | None:
    """How many processes and threads may be added, of those that the user may have and that control groups leave; None:
    as many as the machine can take.
    """
    leave = headroom.tasks()
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most == resource.RLIM_INFINITY or os.geteuid() == 0:  # the limit is not for root
        return leave
    ours = (each.info for each in psutil.process_iter(["uids", "num_threads"]))
    taken = sum(each["num_threads"] or 0 for each in ours if each["uids"] and each["uids"].real == os.getuid())
    left = max(0, most - taken)
    return left if leave is None else min(left, leave)


def limit(value: int) -> str:
    """A limit for people."""
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"


def writable(runs: Path) -> Check:
    """Whether a run could be written."""
    try:
        place = ground(runs)
    except ConfigError as error:
        return Check("runs directory", "fail", str(error))
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(bytes(4096))  # where nothing is free, a file can be made still
            free = shutil.disk_usage(place).free >> 20
    except OSError as error:
        text = f"{place}: no file can be written there ({error.strerror}); name another place with --runs"
        return Check("runs directory", "fail", text)
    text = f"{place} can be written, {free:,} MB free"
    if free < ROOM_MB:
        return Check("runs directory", "warn", f"{text}; make room, or name another place with --runs")
    return Check("runs directory", "ok", text)


def sockets() -> Check:
    """Whether a private directory for sockets can be made and written."""
    directory = address.make_directory()
    try:
        address.check_private(directory)
        return Check("sockets", "ok", f"private directories can be made in {directory.parent}")
    finally:
        address.remove(directory)


def probe() -> list[Check]:
    """The checks called HEAVY, from a process of their own."""
    command = [sys.executable, *interpreter.options(), "-m", "workers.doctor"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return failed(f"no answer within {PROBE_S:.0f} s")
    except OSError as error:
        way = f"; {THREADS}" if error.errno == errno.EAGAIN else ""
        return failed(f"{sys.executable} cannot be started ({error.strerror}){way}")
    try:
        checks = msgspec.json.decode(done.stdout, type=list[Check])
    except msgspec.DecodeError:
        checks = []
    if tuple(check.name for check in checks) == HEAVY:
        return checks
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    way = f"; {THREADS}" if TASKS.search(done.stderr) else ""
    return failed(f"the checking process ended with {done.returncode}: {last}{way}")


def failed(reason: str) -> list[Check]:
    """All of HEAVY, for one reason."""
    return [Check(name, "fail", reason) for name in HEAVY]


def versions() -> Check:
    """Python, ours, and what we stand on, each of which is really imported."""
    import numpy
    import torch
    import zmq

    found = {
        "Python": platform.python_version(),
        "mach-train": importlib.metadata.version("mach-train"),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pyzmq": zmq.pyzmq_version(),
        "libzmq": zmq.zmq_version(),
    }
    return Check("versions", "ok", " · ".join(f"{name} {version}" for name, version in found.items()))


def shared_memory() -> Check:
    """A ring as the same-host lane makes them, and how large rings may get: no check of /dev/shm, where none lies.

    Whatever is wrong is a warning, since messages then go through the socket.
    """
    from bus.lane import slots_of
    from bus.segment import BYTES_CAP, ORDERED, SPARE
    from configs.tree import Bus

    if not ORDERED:
        return Check("shared memory", "ok", f"not used on {platform.machine()}: messages go through the socket")
    trouble = ring()
    if trouble:
        return Check("shared memory", "warn", f"{trouble}, so messages go through the socket, which is slower")
    free, limit = headroom.headroom()
    of = "" if limit is None else f" of the control group's {limit >> 20:,}"
    most = min(free // SPARE, BYTES_CAP)
    bus = Bus()
    message = min(most // slots_of(bus.window) >> 20, bus.max_message_mb)
    text = f"{free >> 20:,} MB{of} free, room for messages of up to {message:,} MB (bus.window={bus.window})"
    return Check("shared memory", "ok" if most >> 20 >= SHARED_MB else "warn", text)


def ring() -> str:
    """Make a ring, find it, and fill every slot of it; what went wrong, if anything."""
    from bus.lane import LEAST, slots_of
    from bus.memory import Pool
    from bus.segment import find, make
    from configs.tree import Bus

    long, slots = bytes(LEAST), slots_of(Bus().window)
    with tempfile.TemporaryDirectory(dir=address.temporary()) as place:
        door = Path(place) / "door"
        try:
            made, descriptor = make(door, slots, LEAST)
        except OSError as error:
            return f"no ring can be made ({error.strerror or error})"
        try:
            found = find(door, made.number)
            if found is None:
                return "a ring cannot be opened through /proc"
            for slot in range(slots):
                made.write(b"first", [long], slot, 0)
                if found.frames(found.entry(slot), Pool()) != [b"first", long]:
                    return "a ring does not hold what was written into it"
        finally:
            os.close(descriptor)
    return ""


def round_trip() -> Check:
    """A real question and answer over ZeroMQ: [128, 64] float32 each way, between two mailboxes."""
    import torch

    from bus.sockets import ZmqMailbox
    from configs.tree import Bus
    from mach.messages import Activation

    directory = address.make_directory()
    open_box = functools.partial(ZmqMailbox, run_id="doctor", incarnation=1, bus=Bus(), directory=directory)
    child = open_box("c1", children=(), parents=("c0",))
    parent = open_box("c0", children=("c1",), parents=())
    tensor = torch.zeros(128, 64)
    try:
        meet(parent, child)
        median = statistics.median(ask(parent, child, Activation(i, 0, tensor)) for i in range(ROUNDS))
    finally:
        parent.close()
        child.close()
        address.remove(directory)
    return Check("bus round trip", "ok", f"{1e6 * median:.0f} µs over ipc, 32 KiB each way")


def meet(parent: "Mailbox", child: "Mailbox") -> None:
    """Let two mailboxes find each other."""
    until = time.monotonic() + MEET_S
    while not parent.room("c1"):
        if time.monotonic() > until:
            raise TimeoutError(f"two mailboxes in one process did not meet within {MEET_S:.0f} s")
        child.receive(0.01)
        parent.receive(0.01)


def ask(parent: "Mailbox", child: "Mailbox", question: "Activation") -> float:
    """Seconds from a question to its answer, which is the question's own tensor."""
    from mach.messages import Target

    start = time.perf_counter()
    parent.send("c1", question)
    for letter in child.receive(MEET_S):
        child.send(letter.sender, Target(letter.message.id, 0, question.inputs))
    if not parent.receive(MEET_S):
        raise TimeoutError(f"answer {question.id} did not come within {MEET_S:.0f} s")
    return time.perf_counter() - start


if __name__ == "__main__":
    checks = [attempt(name, check) for name, check in zip(HEAVY, (versions, shared_memory, round_trip), strict=True)]
    sys.stdout.write(msgspec.json.encode(checks).decode())
