"""How much memory may still be taken: what the machine has free, and what its control groups leave us of it; and how
many processes these leave us.

A memfd counts against both, and against no file system, /dev/shm neither. Law: known before it is taken, for beyond a
group's limit nobody is refused, but somebody is killed. What files were read into is free: it is given up first.
Source: Linux, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Headroom(NamedTuple):
    """Bytes that may still be taken."""

    free: int
    limit: int | None
    """Of the control group that leaves no more than that; None: the machine itself has no more."""


class Names(NamedTuple):
    """Files of a control group, and what memory.stat calls pages of files, groups below included."""

    limit: str
    used: str
    files: tuple[str, str]


SECOND = Names("memory.max", "memory.current", ("inactive_file", "active_file"))
FIRST = Names("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def headroom(root: Path = ROOT, own: Path = OWN) -> Headroom:
    """The least of what the machine and every control group around us leave."""
    found = [Headroom(psutil.virtual_memory().available, None)]
    with contextlib.suppress(OSError, ValueError):
        for folder, names in groups(root, own.read_text()):
            with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max"
                limit = int((folder / names.limit).read_text())
                words = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / names.used).read_text()) - sum(int(words.get(name, 0)) for name in names.files)
                found.append(Headroom(max(0, limit - used), limit))
    return min(found, key=lambda each: each.free)


def tasks(root: Path = ROOT, own: Path = OWN) -> int | None:
    """The least of processes and threads that every control group around us leaves; None where none sets a limit."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for folder, _ in groups(root, own.read_text(), "pids"):
            with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max"
                most, taken = ((folder / f"pids.{name}").read_text() for name in ("max", "current"))
                found.append(max(0, int(most) - int(taken)))
    return min(found, default=None)


def groups(root: Path, own: str, controller: str = "memory") -> Iterator[tuple[Path, Names]]:
    """Where the limits of our group may lie, and of those around it; `own` as in /proc/self/cgroup.

    In a container the path may be one of the host, of which the container sees the end only: so up to the root.
    """
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, names = (root / controller, FIRST) if controllers else (root, SECOND)
        parts = Path(path.lstrip("/")).parts
        for count in range(0 if ".." in parts else len(parts), -1, -1):
            yield top.joinpath(*parts[:count]), names
