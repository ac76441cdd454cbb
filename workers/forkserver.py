"""The process that starts components, in which torch is imported once (`workers.process.PRELOAD`): begun, heard, and
known how it ended. Knows no component.

Laws: it ends with its launcher, and its components with it: so one that cannot be asked any more, since its socket was
removed, lives on beside the next. It finds the modules that the launcher finds (`workers/interpreter.py`). What it says
is kept until somebody asks: of a helper that lives, to be passed on, and of one that has ended, to tell why.
"""

import atexit
import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import current_process, forkserver, get_context, resource_tracker, util
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from bus import address, kernel
from configs.errors import RunError
from workers import interpreter
from workers.process import PRELOAD
from workers.scarce import memory, remedy

QUIET = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
"""Blocked in the forkserver, and so in components, which let SIGTERM and SIGUSR1 through again: a terminal, `timeout`,
a service manager, or a scheduler whose time is nearly over (SIGUSR1, SIGUSR2) sends them to all processes at once, and
stopping is the launcher's business."""
HELPER = "the process that starts components (the forkserver)"
UNBEGUN = 255
"""Exit code of a process in place of which the kernel would begin no Python."""
DYING_S = 0.2
"""Longest wait for the end of one that let go of its children: it does that while it ends."""
LONGEST = 1 << 16
"""Bytes of what it has said that are read, at most: the last ones."""


class Words:
    """What the present forkserver, and children that have no log yet, write on standard error."""

    def __init__(self) -> None:
        self.file = -1
        self.read = 0
        """Bytes."""


_words = Words()
_ends: dict[int, int] = {}
"""By pid, how those ended that were replaced."""
_last: dict[int, str] = {}
"""What those said last: each of their components is told of with it."""
_unheard: list[int] = []
"""Descriptors that keep forkservers alive that cannot be asked any more."""


def warm() -> None:
    """Start the forkserver, which imports torch while the launcher still reads its configuration.

    Its socket lies in a directory like those of runs: removed at the exit, or, if this process is killed, by a `sweep`
    of its children or of the next launch.

    Raises:
        RunError: there is no room for it.
    """
    get_context("forkserver").set_forkserver_preload(PRELOAD)
    if unheard():
        server: Any = forkserver._forkserver
        _unheard.append(server._forkserver_alive_fd)
        server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    config: dict[str, str] = current_process()._config  # type: ignore[attr-defined]  # where `multiprocessing` looks
    if not os.path.isdir(config.get("tempdir", "")):
        config["tempdir"] = str(address.make_directory())
        atexit.register(address.remove, Path(config["tempdir"]))
    if (code := ending(pid(), 0.0)) is not None:
        _ends[pid()] = code
    try:
        with _alike(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a tracker that died: it has nothing of ours to track
            resource_tracker.ensure_running()  # by itself the forkserver starts it first, which unblocks two signals
            earlier = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET)
            try:
                with _overheard():
                    forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOMEM):
            raise
        raise RunError(f"{HELPER} could not be begun ({error.strerror}); {remedy(str(error))}") from error


def unheard() -> bool:
    """Whether there is a forkserver, and its socket was removed."""
    where: str | None = getattr(forkserver._forkserver, "_forkserver_address", None)
    return (
        where is not None and not where.startswith("\0") and not os.path.lexists(where)
    )  # an abstract one has no file


def pid() -> int:
    """The present one's; 0: there is none."""
    return getattr(forkserver._forkserver, "_forkserver_pid", None) or 0


def ending(number: int, patience_s: float = DYING_S) -> int | None:
    """How the forkserver of this pid ended: with an exit code, or by a signal, as a negative number. None: it lives, or
    nobody knows. It stays for `multiprocessing` to find.
    """
    if number == 0 or number in _ends:
        return _ends.get(number)
    with suppress(OSError):  # there may be no descriptor for it; then nobody waits
        watch = kernel.pidfd_open(number)
        try:
            wait([watch], patience_s)
        finally:
            os.close(watch)
    try:
        found = os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def heard() -> list[str]:
    """The lines that it has said since somebody asked last, or the end of them."""
    if _words.file < 0:
        return []
    end = os.fstat(_words.file).st_size
    start = max(_words.read, end - LONGEST)
    said, _words.read = os.pread(_words.file, end - start, start), end
    return [line for line in said.decode(errors="replace").splitlines() if line.strip()]


def cause(number: int) -> str:
    """How the forkserver of this pid ended, and what to do, in a clause to follow HELPER; empty: it lives."""
    code = ending(number)
    if code is None:
        return "" if number and number == pid() else "has gone"
    if code == -signal.SIGKILL:
        return f"was killed (SIGKILL), probably out of memory: {memory()}"
    last = _last.setdefault(number, (heard() or [""])[-1].strip())
    if code == UNBEGUN and not last:
        return f"could not be begun: {sys.executable} cannot be executed; see to it that this user may"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    way = remedy(last)
    return how + (f": {last}" if last else "") + (f"; {way}" if way else "")


@contextmanager
def _alike() -> Iterator[None]:
    """Pythons that `multiprocessing` starts meanwhile find the modules that this one finds."""
    earlier: Any = util._args_from_interpreter_flags  # type: ignore[attr-defined]
    util._args_from_interpreter_flags = lambda: [*earlier(), *interpreter.options()]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        util._args_from_interpreter_flags = earlier  # type: ignore[attr-defined]


@contextmanager
def _overheard() -> Iterator[None]:
    """What is started meanwhile has standard error where `heard` reads."""
    with suppress(OSError):  # of an old kernel: it says it on ours, then
        _words.file = kernel.memfd_create("mach-forkserver") if _words.file < 0 else _words.file
    if _words.file < 0:
        yield
        return
    kept = os.dup(2)
    os.dup2(_words.file, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
