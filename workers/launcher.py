"""The launcher of a run that goes on, as other commands reach it; and what became of a run that they stopped.

Knows nothing of what they want of it. Laws: it is held by descriptors, which never mean another process; who may not
send it signals is told so before anything is done.
"""

import os
import select
import signal
from contextlib import suppress

import psutil

from bus import kernel
from configs.errors import RunError
from workers.rundir import RunDir
from workers.status import FINAL, Status, holder_of, read
from workers.verdict import FAILED


class Launcher:
    """Its process; and the helpers below it, as the forkserver, which end a moment after it and hold its log until
    then.
    """

    def __init__(self, run: str, pid: int) -> None:
        """The launcher of a run of this name.

        Raises:
            ProcessLookupError: it has ended.
            RunError: it is another user's.
        """
        self._helpers: list[int] = []
        self._descriptor = kernel.pidfd_open(pid)
        try:
            kernel.pidfd_send_signal(self._descriptor, 0)
            for helper in psutil.Process(pid).children():
                with suppress(ProcessLookupError):
                    self._helpers.append(kernel.pidfd_open(helper.pid))
        except BaseException as error:
            self.close()
            if isinstance(error, PermissionError):
                user = psutil.Process(pid).username()
                raise RunError(
                    f"run {run} is of user {user} (its launcher is pid {pid}): do this as that user"
                ) from None
            if isinstance(error, psutil.NoSuchProcess):
                raise ProcessLookupError from None
            raise

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._descriptor

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            kernel.pidfd_send_signal(self._descriptor, number)

    def see_helpers_end(self, within_s: float) -> None:
        """Wait until nobody is left that holds a file of the run; for so long at most, for each."""
        for helper in self._helpers:
            select.select([helper], [], [], within_s)

    def close(self) -> None:
        """Let go of it."""
        for descriptor in (self._descriptor, *self._helpers):
            os.close(descriptor)


def ended(status: Status) -> str:
    """How a run ended, after "has"."""
    return {"stopped": "been stopped", "failed": "failed"}.get(status.state, "finished")


def outcome(run: RunDir, before: Status, *, at_once: bool) -> str:
    """What to say of a run that was told to stop, `at_once` or cleanly, and has ended.

    Raises:
        RunError: it failed by it, or somebody could not save what it had learnt, which a clean stop does. Exit code 1.
    """
    now, begun = read(run), before.state != "starting"  # else nothing was learnt yet
    rows = now.components if holder_of(now) == holder_of(before) else []  # not what an earlier launch has left
    over = {(row.component, row.incarnation) for row in before.components if row.state in (*FINAL, "restarting")}
    ill = [row for row in rows if row.exit_code and row.state != "finished"]
    ill = [row for row in ill if (row.component, row.incarnation) not in over]  # what they lost was lost before
    words = f"run {run.name} has {ended(now)}"
    if not (begun and now.state == "failed") and (at_once or not ill):
        return words
    lost = "; ".join(f"{row.component}: {row.reason}" for row in ill) or now.reason
    error = RunError(f"{words}, and not all that it had learnt is saved: {lost}")
    error.exit_code = FAILED
    raise error
