"""The state of a run: what the supervisor writes to `status.json`, and what `mach status` reads from it.

Knows no process but by number, no torch, no zmq. Ages are recomputed when read: a file that nobody writes any
more grows old in plain sight.
"""

from typing import Literal

import msgspec

from workers.report import Report
from workers.rundir import RunDir, replace

RunState = Literal["starting", "training", "stopping", "finished", "stopped", "failed"]


class ComponentStatus(Report, kw_only=True, forbid_unknown_fields=True):
    """A component's newest report, and what the supervisor knows about its process."""

    last_seen_s: float | None = None
    """Age of the newest report; None before the first."""
    exit_code: int | None = None
    """None while it runs; negative: the signal that killed it."""
    log: str = ""
    """Path of its log, relative to the run directory."""


class Status(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A run at one moment."""

    run: str
    state: RunState
    reason: str = ""
    """Why, for people: the root cause of a failure."""
    exit_code: int | None = None
    """What the launcher ended with, or will."""
    lockstep: bool = False
    launcher_pid: int
    launcher_started: float
    """When the launcher's process was created, seconds since 1970: tells it from a later one with its number."""
    started_at: float
    """Seconds since 1970."""
    written_at: float
    """Seconds since 1970."""
    elapsed_s: float
    components: list[ComponentStatus]


def write(run: RunDir, status: Status) -> None:
    """Replace status.json (OSError: the disk is full or gone)."""
    replace(run.status, msgspec.json.format(msgspec.json.encode(status)))
