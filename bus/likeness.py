"""What lies in a run's private directory (`bus/address.py`), remembered by its keeper, who makes it again when somebody
has removed it: a clean-up of temporary files goes by age, and a scheduler's by the end of a job, while the run trains.

    c0.at, c0.life      written again, as the other files
    c0-1.bell, *.lane   links into the process that holds what they lead to: made again
    c0-1.sock           cannot be: its place is taken by a link to the descriptor of it that is kept here, and who
                        connects there reaches who listens still

Knows no ZeroMQ, and not what its files say. Laws: nothing that lies there is replaced, and who lives notices nothing:
what is connected stays so, and who begins anew finds its neighbours, and they it.
"""

import os
import resource
import stat
import time
from contextlib import suppress
from pathlib import Path

from bus import address

LONGEST = 1 << 16
"""Bytes of a file, at most: what is longer is none of ours."""
SETTLED_NS = 1_000_000_000
"""A change may leave no trace that comes so soon after the one before: file systems have coarse clocks."""


class Likeness:
    """Of one directory. `passed_over`: files in it that others care for."""

    def __init__(self, directory: Path, passed_over: frozenset[str] = frozenset()) -> None:
        self._directory = directory
        self._passed_over = passed_over | {"place", "memory.lock"}
        self._texts: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._sockets: dict[str, int] = {}
        """Descriptors that mean the file alone (O_PATH): nobody is connected by them."""
        self._seen_ns = -1

    def look(self) -> bool:
        """Remember what is new, or make all of it again; whether that had to be.

        Raises:
            OSError, RunError: it cannot be made, or is another's by now.
        """
        gone = not address.kept(self._directory)
        if gone:
            address.renew(self._directory)
            self._restore()
        self._take()
        return gone

    def close(self) -> None:
        """Let go of it."""
        for descriptor in self._sockets.values():
            os.close(descriptor)
        self._sockets = {}

    def _take(self) -> None:
        changed_ns = self._directory.stat().st_mtime_ns
        if changed_ns == self._seen_ns:
            return
        self._seen_ns = changed_ns if abs(time.time_ns() - changed_ns) > SETTLED_NS else -1
        texts, links, found_sockets = {}, {}, {}
        try:
            entries = tuple(os.scandir(self._directory))
        except OSError:  # there may be no descriptor for it just now
            self._seen_ns = -1
            return
        for entry in entries:
            if entry.name in self._passed_over or entry.name.startswith("."):
                continue
            with suppress(OSError, UnicodeDecodeError):  # it has gone meanwhile
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    links[entry.name] = os.readlink(entry)
                elif stat.S_ISSOCK(found.st_mode):
                    found_sockets[entry.name] = found
                elif stat.S_ISREG(found.st_mode) and found.st_size <= LONGEST:
                    texts[entry.name] = Path(entry).read_text(encoding="utf-8")
        published = {text.rpartition("/")[2] for name, text in texts.items() if name.endswith(".at")}  # by who lives
        ours = self._sockets.items()
        sockets = {name: each for name, each in ours if name in published and links.get(name) == _inside(each)}
        for name in published & found_sockets.keys():
            with suppress(OSError):
                sockets[name] = self._descriptor_of(name, found_sockets[name])
        for name, descriptor in self._sockets.items():
            if sockets.get(name) != descriptor:
                os.close(descriptor)
        self._texts, self._links, self._sockets = texts, links, sockets

    def _descriptor_of(self, name: str, found: os.stat_result) -> int:
        """Of a socket's file; the one that there is, if it is of this one. Half of what a process may have open is left
        to the run.
        """
        ours = self._sockets.get(name)
        if ours is not None and os.path.samestat(os.fstat(ours), found):
            return ours
        descriptor = os.open(self._directory / name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        if descriptor >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            os.close(descriptor)
            raise OSError(f"{name}: no descriptor can be spared")
        return descriptor

    def _restore(self) -> None:
        self._seen_ns = -1
        for name, text in self._texts.items():
            if not os.path.lexists(self._directory / name):
                address.put(self._directory / name, text)
        inside = {name: _inside(descriptor) for name, descriptor in self._sockets.items()}
        for name, target in (self._links | inside).items():
            with suppress(FileExistsError):  # who owns it was faster
                (self._directory / name).symlink_to(target)


def _inside(descriptor: int) -> str:
    """A path that leads to what a descriptor of this process means, as long as it is open."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"
