"""A run under random kills, and its record: what the tests of `test_storm.py` look at. Knows no verdict."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from conftest import Launched, mach

Row = dict[str, Any]


@dataclass
class Use:
    """What one process held, each time somebody looked."""

    descriptors: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)


@dataclass
class Storm:
    """What was done, and what became of everybody."""

    account: Row
    """What `mach chaos --json` printed."""
    code: int
    """The launcher's exit code."""
    status: Row
    """The run's, at its end."""
    use: dict[int, Use]
    """By pid, while the kills went on; the launcher's, too."""
    run: Launched

    @property
    def kills(self) -> Counter[str]:
        """By component."""
        return Counter(fired["component"] for fired in self.account["faults"] if fired["kind"] == "kill")

    @property
    def run_id(self) -> str:
        """Of the plan."""
        return str(json.loads((self.run.directory / "plan.json").read_text())["run_id"])

    def lives(self, component: str) -> list[list[Row]]:
        """The reports of a component, life by life."""
        lives: dict[int, list[Row]] = {}
        for line in (self.run.directory / "metrics" / f"{component}.jsonl").read_text().splitlines():
            report = json.loads(line)
            lives.setdefault(report["incarnation"], []).append(report)
        return [lives[number] for number in sorted(lives)]


def weather(run: Launched, *faults: str) -> Storm:
    """Hurt a run that trains, see it to its end."""
    command = [sys.executable, "-m", "mach", "chaos", run.name, "--runs", str(run.runs), "--json", *faults]
    use: dict[int, Use] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as chaos:
        try:
            for status in statuses(run):
                if chaos.poll() is None:
                    look(status, use)
        finally:
            chaos.send_signal(signal.SIGTERM)  # if the run has ended before its time
            output, errors = chaos.communicate()
    assert output, errors
    return Storm(json.loads(output), run.end(), json.loads(mach_status(run)), use, run)


def statuses(run: Launched) -> Iterator[Row]:
    """The run's status, whenever it prints its progress, until it ends."""
    assert run.process.stdout is not None
    for line in run.process.stdout:
        run.lines.append(line)
        if line.split()[2:3] == ["c0"]:  # once for the lines of all components
            yield json.loads((run.directory / "status.json").read_text())


def look(status: Row, use: dict[int, Use]) -> None:
    """Take note of what every process holds that is there and trains."""
    rows = status["components"]
    settled = all(row["state"] == "training" for row in rows)
    pids = [row["pid"] for row in rows if row["state"] == "training"]
    for pid in [*pids, *([status["launcher_pid"]] if settled else [])]:
        try:
            process = psutil.Process(pid)
            held, size = process.num_fds(), process.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # killed since
        use.setdefault(pid, Use()).descriptors.append(held)
        use[pid].bytes.append(size)


def mach_status(run: Launched) -> str:
    """What `mach status --json` prints."""
    return mach("status", run.name, "--runs", str(run.runs), "--json").stdout


def on_path(monkeypatch: Any, **settings: str) -> None:
    """Processes of a run find the modules of the tests, and these settings."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=os.pathsep)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
