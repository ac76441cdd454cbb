"""Fixtures for every floor: one CPU thread, a run launched as a user would, and a check that nothing leaks."""

import contextlib
import fcntl
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from click.testing import CliRunner

from bus import address, kernel
from cli import cli
from workers.rundir import RunDir

pytest_plugins = ["pytester"]

UNTIL_S = 300.0
"""Longest time for which a run is followed: an endless one would be followed for ever."""
DEADLINE_S = 180.0
"""Generous: reached only by a test that fails."""
LOOK_S = 0.05
"""Time between two looks at the status of a run, which is a file that the launcher replaces."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture
def leaks() -> Iterator[None]:
    """After the test: no child process, no thread, no open socket more than before."""
    me = psutil.Process()
    before_threads, before_fds = set(threading.enumerate()), me.num_fds()
    before_children = {child.pid for child in me.children(recursive=True)}
    yield
    left = [child for child in me.children(recursive=True) if child.pid not in before_children]
    assert not left, f"processes left behind: {left}"
    assert set(threading.enumerate()) <= before_threads
    assert me.num_fds() <= before_fds


@pytest.fixture
def hold() -> Iterator[Callable[[RunDir], RunDir]]:
    """Has the lock of a run, as its launcher would, until the test ends; gives the run back."""
    with contextlib.ExitStack() as locks:

        def hold(run: RunDir) -> RunDir:
            fcntl.flock(locks.enter_context(run.lock_file.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return run

        yield hold


def forbid_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on who imports torch's compiler fails, as if nobody had before."""
    torch = sys.modules["torch"]
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):  # each remembers what it got of it
        monkeypatch.delattr(inspect.unwrap(getattr(torch.optim.Optimizer, name)), "__dynamo_disable", raising=False)
    monkeypatch.setattr(torch, "manual_seed", inspect.unwrap(torch.manual_seed))  # it wraps that when it is loaded
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)


def wait_gone(pid: int, within_s: float = DEADLINE_S) -> bool:
    """Whether the process ends in time; waits on the process itself, not on a clock."""
    try:
        fd = kernel.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], within_s)[0])
    finally:
        os.close(fd)


def written_at(file: Path) -> int:
    """When, in nanoseconds; 0 for never."""
    try:
        return file.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0


@dataclass
class Launched:
    """A `mach launch` in a process of its own, its output read as it comes."""

    process: subprocess.Popen[str]
    runs: Path
    name: str
    lines: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.runs / self.name

    def status(self) -> dict[str, Any]:
        """What `mach status --json` prints now."""
        done = CliRunner().invoke(cli, ["status", self.name, "--runs", str(self.runs), "--json"])
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def component(self, name: str) -> dict[str, Any]:
        return next(row for row in self.status()["components"] if row["component"] == name)

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Follow the run, and what it prints, until its status fulfils the condition."""
        end, seen = time.monotonic() + UNTIL_S, 0
        while self.hear(LOOK_S):
            assert time.monotonic() < end, "the condition never held:\n" + self.output[-4000:]
            written = written_at(self.directory / "status.json")
            if written not in (0, seen) and condition(status := self.status()):
                return status
            seen = written
        raise AssertionError("the run ended before the condition held:\n" + self.output)

    def hear(self, within_s: float) -> bool:
        """Take what the run prints within that time, if anything; False when it has said its last word."""
        assert self.process.stdout is not None
        heard = self.process.stdout.fileno()
        if not select.select([heard], [], [], within_s)[0]:
            return True
        words = os.read(heard, 1 << 16)  # it prints whole lines
        self.lines += words.decode(errors="replace").splitlines(keepends=True)
        return words != b""

    def end(self) -> int:
        """Wait for the end of the launcher; its exit code."""
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        self.lines += output.splitlines(keepends=True)
        return self.process.returncode

    @property
    def output(self) -> str:
        return "".join(self.lines)


def mach(
    *words: str, cwd: Path | None = None, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "mach", *words]
    return subprocess.run(command, stdout=stdout, stderr=stderr, text=True, timeout=DEADLINE_S, cwd=cwd)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A run's private one."""
    with tempfile.TemporaryDirectory() as base:  # not tmp_path, whose length leaves no room for a socket's name
        Path(base, "tmp").mkdir()
        directory = address.make_directory(Path(base, "tmp"))
        yield directory
        address.remove(directory)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Launch a run, or resume it; whatever is left of it at the end of the test is killed, and nothing may be left."""
    launched: list[Launched] = []

    def start(
        *words: str,
        name: str = "test",
        runs: Path = tmp_path / "runs",
        resume: bool = False,
        errors: int | IO[str] = subprocess.STDOUT,
    ) -> Launched:
        verb = ("resume", name) if resume else ("launch", "--name", name)
        command = [sys.executable, "-m", "mach", *verb, "--runs", str(runs), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        run = Launched(process, runs, name)
        launched.append(run)
        return run

    yield start
    for run in launched:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.communicate()
