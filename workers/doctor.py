"""What this machine can do: checks with a verdict each. `mach doctor` prints them.

What needs torch or ZeroMQ runs in one process of its own (`python -m workers.doctor`), so that the command line
stays light and a broken installation is a failed check instead of a traceback.
"""

import functools
import importlib.metadata
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

from bus import address
from workers.devices import find_devices

if TYPE_CHECKING:
    from bus.mailbox import Mailbox

PROBE_S = 60.0
SHARED_MB = 64
FILES = 1024
ROUNDS = 200


class Check(msgspec.Struct, frozen=True):
    """One finding."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    text: str


def run(runs: Path) -> list[Check]:
    """Every check; `runs` is where runs would be written."""
    local: list[tuple[str, Callable[[], Check]]] = [
        ("versions", versions),
        ("devices", devices),
        ("shared memory", shared_memory),
        ("ulimits", limits),
        ("runs directory", lambda: writable(runs)),
        ("sockets", sockets),
    ]
    return [attempt(name, check) for name, check in local] + probe()


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """A check that breaks is a check that failed."""
    try:
        return check()
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}")


def versions() -> Check:
    """Python, ours, and what we stand on."""
    names = ("mach-train", "torch", "pyzmq", "numpy", "msgspec")
    found = " · ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return Check("versions", "ok", f"Python {platform.python_version()} · {found}")


def devices() -> Check:
    """CUDA devices; none is no fault."""
    found = find_devices()
    text = f"CUDA {', '.join(found)}" if found else "no CUDA device: components train on the CPU"
    return Check("devices", "ok" if found else "warn", text)


def shared_memory() -> Check:
    """Room in /dev/shm."""
    free = shutil.disk_usage("/dev/shm").free >> 20
    return Check("shared memory", "ok" if free >= SHARED_MB else "warn", f"{free:,} MB free in /dev/shm")


def limits() -> Check:
    """Open files, processes, locked memory."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    text = f"open files {limit(files)} · processes {limit(processes)} · locked memory {limit(locked)}"
    few = 0 <= files < FILES
    return Check("ulimits", "warn" if few else "ok", text + (f"; raise it: ulimit -n {FILES}" if few else ""))


def limit(value: int) -> str:
    """A limit for people."""
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"


def writable(runs: Path) -> Check:
    """Whether a run could be written."""
    place = next(folder for folder in (runs, *runs.absolute().parents) if folder.is_dir())
    with tempfile.TemporaryFile(dir=place):
        free = shutil.disk_usage(place).free >> 20
    return Check("runs directory", "ok", f"{place} can be written, {free:,} MB free")


def sockets() -> Check:
    """Whether a private directory for sockets can be made."""
    directory = address.make_directory()
    try:
        return Check("sockets", "ok", f"private directory {directory}")
    finally:
        address.remove(directory)


def probe() -> list[Check]:
    """The checks that need torch and ZeroMQ, from a process of their own."""
    try:
        done = subprocess.run([sys.executable, "-m", "workers.doctor"], capture_output=True, text=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return [Check("bus round trip", "fail", f"no answer within {PROBE_S:.0f} s")]
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return [Check("bus round trip", "fail", last)]
    return msgspec.json.decode(done.stdout, type=list[Check])


def round_trip() -> Check:
    """A real question and answer over ZeroMQ: [128, 64] float32 each way, between two mailboxes."""
    import torch

    from bus.sockets import ZmqMailbox
    from configs.tree import Bus
    from mach.messages import Activation, Target

    directory = address.make_directory()
    open_box = functools.partial(ZmqMailbox, run_id="doctor", incarnation=1, bus=Bus(), directory=directory)
    child = open_box("c1", children=(), parents=("c0",))
    parent = open_box("c0", children=("c1",), parents=())
    tensor = torch.zeros(128, 64)
    try:
        meet(parent, child)
        times = []
        for number in range(ROUNDS):
            start = time.perf_counter()
            parent.send("c1", Activation(number, 0, tensor))
            asked = child.receive(1.0)[0].message
            child.send("c0", Target(asked.id, 0, tensor))
            if not parent.receive(1.0):
                return Check("bus round trip", "fail", f"answer {number} did not come within a second")
            times.append(time.perf_counter() - start)
    finally:
        parent.close()
        child.close()
        address.remove(directory)
    return Check("bus round trip", "ok", f"{1e6 * statistics.median(times):.0f} µs for 32 KB each way, ipc")


def meet(parent: "Mailbox", child: "Mailbox") -> None:
    """Let two mailboxes find each other, within a few seconds."""
    until = time.monotonic() + 5.0
    while not parent.room("c1"):
        if time.monotonic() > until:
            raise TimeoutError("two mailboxes in one process did not meet within 5 s")
        child.receive(0.01)
        parent.receive(0.01)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode([attempt("bus round trip", round_trip)]).decode())
