"""One component's checkpoints, while it trains: when one is due, its copy, and a thread that writes it.

    training thread   due? ─▶ copy the state ─▶ hand it over ─▶ train on
    writer                                      write, flush, rename, remove the old

Knows no network: a `State` is tensors and values. Laws: at most one is being written, and while it is none is taken,
so that memory is bounded and a step never waits for a disk; what cannot be written costs the checkpoint, not the
training: it is said once, and tried again at the next. Times are seconds of the mailbox's clock.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from configs.errors import DataError, Diverged
from configs.load import dump
from configs.tree import Config
from mach.checkpoint import load_state, save_state
from mach.shelf import Manifest, Shelf, fallback
from mach.state import Copies, State
from workers.plan import Plan
from workers.process import line
from workers.report import Checkpoint
from workers.rundir import RunDir

LOCKSTEP_STEPS = 100
"""Between two checkpoints in lock-step, where `checkpoint.every_steps` says nothing."""
SLOW_S = 30.0
"""A disk that takes longer for one checkpoint is shown as trouble."""


class Keeper:
    """Writes and finds the checkpoints of one component.

    Args:
        write: does what `save_state` does; another one in tests.
    """

    diverged = False
    """Whether it is no fault of the disk that the newest is not on it: its numbers are ruined."""
    errno: int | None = None
    """The number of the system's error that kept it from the disk, if one did."""

    def __init__(self, plan: Plan, name: str, *, incarnation: int, write: Callable[..., None] | None = None) -> None:
        self.name = name
        self.incarnation = incarnation
        self.shelf = Shelf(RunDir(Path(plan.directory)).checkpoints(name))
        self.resume_at = plan.resume_at
        self.every_s, self.every_steps, self.kept = terms(plan)
        self.digest = digest(plan.config)
        self._write = write or save_state
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._copies = Copies()
        self._writing: Future[None] | None = None
        self._taken: tuple[int, float] | None = None  # version and time of the newest handed over, or gone on from
        self._on_disk: tuple[int, float] | None = None  # version and time of the newest written, or gone on from
        self._abandoned: set[int] = set()
        self._trouble = ""
        self._fallback = ""
        self._failing = False
        self._lock = -1

    def go_on(self, restore: Callable[[State], None], now: float) -> Manifest | None:
        """Restore from the newest checkpoint that is whole; None where there is none: the beginning, then.

        Raises:
            DataError: it is whole and does not fit, or the one that everybody goes on from is damaged.
        """
        self._alone()
        self.shelf.sweep()
        if self.resume_at is not None:  # newer ones, which not all have, are given up: they shall take nobody's place
            self._abandoned = {version for version in self.shelf.versions() if version > self.resume_at}
        damaged: dict[int, DataError] = {}
        for version in self._candidates():
            try:
                manifest, state = load_state(self.shelf, version, self.name)
            except DataError as error:
                self._damaged(version, error)
                damaged[version] = error
                self._fallback = fallback(damaged, 0)
                continue
            try:
                restore(state)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{self.shelf.path(version)}: is of another version of mach ({error!r})") from error
            except DataError as error:
                raise DataError(
                    f"{self.shelf.path(version)}: does not fit the configuration: {error}; launch a new run instead"
                ) from error
            self._fallback = fallback(damaged, version) if damaged else ""
            written = self.shelf.path(version).stat().st_mtime
            self._taken, self._on_disk = (version, now), (version, now - max(0.0, time.time() - written))
            self._say(version, f"goes on from its checkpoint of step {version}")
            if manifest.config != self.digest:
                self._say(version, "that was made under another configuration, as --set of mach resume allowed")
            return manifest
        if damaged:
            self._say(0, "has no checkpoint that is whole, and starts from the beginning")
        return None

    def due(self, version: int, now: float) -> bool:
        """Whether one is to be taken now: so many steps or seconds after the last, the very first at once."""
        self._look(now)
        if self._writing is not None:
            return False
        if self.every_steps is not None and version % self.every_steps == 0:
            return True
        return self.every_s is not None and (self._taken is None or now - self._taken[1] >= self.every_s)

    def keep(self, version: int, state: State, now: float) -> None:
        """Copy the state and have it written, unless one is being written or this version was handed over already."""
        self._look(now)
        if self._writing is None and (self._taken is None or self._taken[0] != version):
            self._taken = (version, now)
            self._writing = self._writer.submit(self._save, version, self._copies.take(state))

    def finish(self, now: float, wait_s: float | None = None) -> bool:
        """Wait for the writer, at most `wait_s` seconds; whether nothing is being written any more."""
        if self._writing is not None:
            wait([self._writing], timeout=wait_s)
        self._look(now)
        return self._writing is None

    @property
    def failing(self) -> str:
        """Why the newest that was handed over is not on disk; empty if it is, or is being written."""
        return self._trouble if self._failing else ""

    def record(self, now: float) -> Checkpoint:
        """For the report."""
        self._look(now)
        step, at = self._on_disk or (None, None)
        age_s = None if at is None else round(now - at, 3)
        return Checkpoint(step=step, age_s=age_s, trouble=self._trouble or self._slow(now), fallback=self._fallback)

    def close(self) -> None:
        """Wait for the writer, and end it."""
        self._writer.shutdown()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _alone(self) -> None:
        """Wait until an earlier life of this component, which is being killed, writes no more."""
        try:
            self.shelf.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.shelf.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:  # where no lock can be, no checkpoint can: the first one will say so again
            self._say(0, f"{self.shelf.folder}: cannot be locked ({error}); training goes on")

    def _candidates(self) -> list[int]:
        if self.resume_at is None:
            return self.shelf.versions()
        return [self.resume_at] if self.resume_at else []

    def _damaged(self, version: int, error: DataError) -> None:
        if self.resume_at is not None:
            with suppress(OSError):  # if it cannot be moved, the next resume meets it again
                self.shelf.set_aside(version)
            raise DataError(f"{error}; mach resume once more goes on from an older one") from error
        self._abandoned.add(version)
        self._say(version, f"checkpoint of step {version} is damaged: {error}")

    def _save(self, version: int, state: State) -> None:
        """In the writer's thread."""
        self._copies.wait()
        self._write(
            self.shelf,
            state,
            component=self.name,
            version=version,
            incarnation=self.incarnation,
            config=self.digest,
            keep=self.kept,
            abandoned=frozenset(self._abandoned),
        )

    def _look(self, now: float) -> None:
        """Whether the writer is done, and what came of it. Any other error than these two is ours, and is raised."""
        if self._writing is None or not self._writing.done():
            return
        writing, self._writing = self._writing, None
        assert self._taken is not None
        version = self._taken[0]
        try:
            writing.result()
        except (OSError, DataError) as error:
            self._taken = (-1, now)  # the same version may be tried again
            self._trouble = f"checkpoints cannot be written ({error}); training goes on, and it is tried again"
            self.diverged, self.errno = isinstance(error, Diverged), getattr(error, "errno", None)
            if self.diverged:
                self._trouble = f"training has diverged, so no checkpoint is written ({error}); lower optimiser.lr"
            if not self._failing:
                self._say(version, self._trouble)
            self._failing = True
            return
        if self._failing:
            self._say(version, "checkpoints are written again")
        self._failing, self.diverged, self.errno, self._trouble = False, False, None, ""
        self._abandoned, self._on_disk = set(), (version, now)

    def _slow(self, now: float) -> str:
        """What to say about a disk that takes its time."""
        if self._writing is None or self._taken is None or now - self._taken[1] <= SLOW_S:
            return ""
        return f"the checkpoint of step {self._taken[0]} is being written for {now - self._taken[1]:.0f} s"

    def _say(self, version: int, sentence: str) -> None:
        say(self.name, version, sentence)


class Unkept(Keeper):
    """Of a simulation, takes no checkpoints: who wants to go on with a simulation runs it again, longer."""

    def __init__(self) -> None:
        """Needs no folder and no thread."""

    def go_on(self, restore: Callable[[State], None], now: float) -> None:
        """From the beginning."""

    def due(self, version: int, now: float) -> bool:
        """Never."""
        return False

    def keep(self, version: int, state: State, now: float) -> None:
        """Not at all."""

    def finish(self, now: float, wait_s: float | None = None) -> bool:
        """Nothing is ever being written."""
        return True

    @property
    def failing(self) -> str:
        """Nothing ever fails."""
        return ""

    def record(self, now: float) -> Checkpoint:
        """There is none."""
        return Checkpoint()


def say(name: str, version: int, sentence: str) -> None:
    """One line in the component's log."""
    line(f"[{name} - step {version}] {sentence}")


def terms(plan: Plan) -> tuple[float | None, int | None, int]:
    """Seconds and steps between two checkpoints, and how many are kept: in lock-step so many that all share `keep`.

    A run in lock-step goes on from a step that all components have. A component ends its step v only when its
    neighbours have begun theirs, so have ended, and saved if that was due, step v − 1; one that is n − 1 edges away has
    saved step v − (n − 1). So of what the foremost keeps, the rearmost may lack what is of the last n − 1 steps: the
    newest, which at the end of a run, or a stop, is of any step, and what is due in the n − 2 steps before.
    """
    settings, count = plan.config.checkpoint, len(plan.here)
    if not plan.lockstep:
        return settings.every_s, settings.every_steps, settings.keep
    every = settings.every_steps or LOCKSTEP_STEPS
    ahead = 1 + -(-(count - 2) // every) if count > 1 else 0
    return None, every, settings.keep + ahead


def digest(config: Config) -> str:
    """The SHA-256 of a configuration."""
    return hashlib.sha256(dump(config).encode()).hexdigest()
