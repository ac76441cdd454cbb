"""Every file name of a run, and how it is written. Nobody else builds a path inside a run.

runs/<name>/
    config.yaml             the resolved configuration
    plan.json               processes, devices, edges, sockets (`workers/plan.py`)
    status.json             the supervisor's view, replaced atomically at least once a second
    metrics/c0.jsonl        one `Report` a line (`report.thin`)
    tensorboard/c0/         event files
    logs/c0.1.log           what c0 printed in its incarnation 1; logs/launcher.log of a detached launcher,
                            launcher.2.log of another that went on with the run
    weights/c0.safetensors  final weights (`mach/export.py` makes a network of them)
    checkpoints/c0/         newest states to go on from (`mach/shelf.py`)
    earlier/plan-1.json     the plan before the first `mach resume`, and so on
    .lock                   held by the launcher for as long as it lives, and says which one (`workers/holder.py`)
"""

import fcntl
import os
import re
import shlex
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from configs.errors import ConfigError
from workers import holder

USUAL = Path("runs")
"""Where runs lie, unless `--runs` says otherwise."""
LOOKS_S = 0.5
"""So long a launcher tries to take a lock: those who only look have it for a moment."""


def ground(runs: Path) -> Path:
    """The folder that is there of `runs` and those above it: where the others would be made.

    Raises:
        ConfigError: it is none.
    """
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if os.path.lexists(folder))
    if not os.path.isdir(place):
        raise ConfigError(f"{place} is no directory; name another one with --runs")
    return place


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run; makes nothing by itself."""

    path: Path

    @property
    def called(self) -> str:
        """What follows `mach resume` and the like, so that they find it from here."""
        name, runs = shlex.quote(self.name), self.path.parent
        return name if runs.absolute() == USUAL.absolute() else f"{name} --runs {shlex.quote(str(runs))}"

    @property
    def name(self) -> str:
        """The run's name: its directory's."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The plan, JSON."""
        return self.path / "plan.json"

    @property
    def status(self) -> Path:
        """The supervisor's view, JSON."""
        return self.path / "status.json"

    def metrics(self, component: str) -> Path:
        """One report a line."""
        return self.path / "metrics" / f"{component}.jsonl"

    def tensorboard(self, component: str) -> Path:
        """Folder of the component's event files."""
        return self.path / "tensorboard" / component

    def log(self, component: str, incarnation: int) -> Path:
        """What one life of the component printed."""
        return self.path / "logs" / f"{component}.{incarnation}.log"

    @property
    def launcher_log(self) -> Path:
        """What the first detached launcher printed."""
        return self.path / "logs" / "launcher.log"

    def next_launcher_log(self) -> Path:
        """The log of one more detached launcher: launcher.log, launcher.2.log, and so on."""
        later = (self.path / "logs" / f"launcher.{number}.log" for number in count(2))
        return next(log for log in chain([self.launcher_log], later) if not log.exists())

    @property
    def launcher_draft(self) -> Path:
        """What a launcher that this process has started prints, until the run is its own."""
        return self.path / f".launcher.{os.getpid()}.log"

    def logs(self) -> list[Path]:
        """Every log that there is: by component, then by life; the launcher's last."""
        return sorted((self.path / "logs").glob("*.log"), key=_by_number)

    def weights(self, component: str) -> Path:
        """Final weights."""
        return self.path / "weights" / f"{component}.safetensors"

    def checkpoints(self, component: str) -> Path:
        """Folder of the component's newest checkpoints."""
        return self.path / "checkpoints" / component

    def try_out(self) -> None:
        """Raise the OSError that `make` would, of the first folder that it would make; nothing is left of it."""
        places = (*reversed(self.path.parents), self.path)
        first = next((place for place in places if not os.path.lexists(place)), self.path)
        try:
            with tempfile.TemporaryDirectory(prefix=".mach-", dir=first.parent) as folder:
                Path(folder, "config.yaml").write_bytes(bytes(4096))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(first)) from error

    def make(self) -> None:
        """Create the folders, or none; the run's own must not exist yet (FileExistsError), so no two launches share it.

        Raises:
            ConfigError: those above it cannot be, since a file is in their way; no other name would help.
        """
        ground(self.path.parent)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir()
        try:
            self.restore()
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def reopen(self) -> None:
        """Make ready for another life of the run: nothing of the earlier ones is lost, their last plan put by."""
        self.restore()
        place = self.earlier_plan(1 + self.earlier_plans())
        place.parent.mkdir(exist_ok=True)
        replace(place, self.plan.read_bytes())

    def earlier_plans(self) -> int:
        """How many plans were put by."""
        return sum(1 for _ in (self.path / "earlier").glob("plan-*.json"))

    def earlier_plan(self, number: int) -> Path:
        """One of them, from 1; the last is the newest."""
        return self.path / "earlier" / f"plan-{number}.json"

    @property
    def lock_file(self) -> Path:
        """What `lock` opens."""
        return self.path / ".lock"

    def lock(self, *, make: bool = True) -> int:
        """An open file that marks the run as running until it is closed; BlockingIOError if another launcher does.
        `make`: the file, if there is none (else FileNotFoundError), and a note in it that the run is ours.
        """
        fd, until = os.open(self.lock_file, os.O_RDWR | (os.O_CREAT if make else 0), 0o644), time.monotonic() + LOOKS_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if isinstance(error, BlockingIOError) and time.monotonic() < until:
                    time.sleep(LOOKS_S / 50)  # it may be a look
                    continue
                os.close(fd)
                raise
        if make:
            holder.note(fd)
        return fd

    def owns(self, lock: int) -> bool:
        """Whether what `lock` gave is of the file that lies there now, and not of one that was removed or replaced."""
        try:
            return os.path.samestat(os.fstat(lock), os.stat(self.lock_file))
        except OSError:  # it is gone, or what is in its place is no run
            return False

    def locked(self) -> bool:
        """Whether a launcher has the run just now. However many look at once, none takes another for a launcher."""
        with suppress(OSError), self.lock_file.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False  # there is no lock, or none that could be taken, by others neither

    def restore(self) -> None:
        """Create the folders that are not there."""
        for folder in ("metrics", "tensorboard", "logs", "weights"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)


def _by_number(log: Path) -> tuple[str, list[int]]:
    """c2 before c10, c2.9 before c2.10."""
    numbers = [int(number) for number in re.findall(r"\d+", log.stem)]
    return log.stem.rstrip("0123456789."), numbers


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part. An OSError leaves no part, either,
    and names the folder, since nobody finds the draft.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):  # there is none
            draft.unlink()
        place = path if path.is_dir() else path.parent
        raise OSError(error.errno, error.strerror, str(place)) from error
