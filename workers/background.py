"""A run in the background: a launcher in a session of its own, seen to begin. Knows no option and no torch."""

import os
import select
import subprocess
import sys
from pathlib import Path

from bus import keys
from configs.load import dump
from configs.tree import Config
from workers.rundir import RunDir
from workers.status import read

LOOK_S = 0.25
"""Time between two looks into files that the launcher writes."""


def detach(config: Config, runs: Path, name: str, gpus: str | None, *, lockstep: bool) -> int:
    """Start a launcher in a session of its own, and see that its components begin; the exit code."""
    keys.check(config.bus)
    runs.mkdir(parents=True, exist_ok=True)
    draft = runs / f".{name}.yaml"
    draft.write_text(dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "mach", "launch", "--config", str(draft), "--name", name, "--runs", str(runs)]
    command += ["--gpus", gpus] if gpus else []
    command += ["--lockstep"] if lockstep else []
    log = runs / f".{name}.log"
    run = RunDir(runs / name)
    try:
        with log.open("wb") as out:
            launcher = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        code = begun(run, launcher)
    finally:
        draft.unlink()
        if run.path.is_dir():
            log.replace(run.launcher_log)
    if code is not None and code != 0:
        lines = (run.launcher_log if run.path.is_dir() else log).read_text(encoding="utf-8").strip().splitlines()
        print(lines[-1] if lines else f"mach: the launcher ended with exit code {code}", file=sys.stderr)
        log.unlink(missing_ok=True)
        return code
    print(f"run {name} goes on in the background; mach status {name}, mach logs {name} -f, mach stop {name}")
    return 0


def begun(run: RunDir, launcher: "subprocess.Popen[bytes]") -> int | None:
    """Wait until every component trains, or the launcher has ended; its exit code in that case."""
    watch = os.pidfd_open(launcher.pid)
    try:
        while not select.select([watch], [], [], LOOK_S)[0]:
            if run.status.exists() and all(row.state != "starting" for row in read(run).components):
                return None
    finally:
        os.close(watch)
    return launcher.wait()
