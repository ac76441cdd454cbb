"""A run in the background: a launcher in a session of its own, seen to begin. Knows no option and no torch.

    mach launch --detach ── starts ──▶ mach launch --name r --tell FD
                         ◀── one byte ──                                 once the directory of run r is its own

So nobody takes another's run for the one just launched, however close to each other two are.
"""

import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bus import keys
from configs.load import dump
from configs.tree import Config
from workers.rundir import RunDir
from workers.status import read

LOOK_S = 0.25
"""Time between two looks into files that the launcher writes."""


def detach(
    config: Config,
    runs: Path,
    name: str,
    gpus: str | None,
    *,
    lockstep: bool,
    other: Callable[[], str] | None = None,
) -> int:
    """Start a launcher, and see that its components begin; the exit code. `other`: a name in place of one that was
    taken meanwhile.
    """
    keys.check(config.bus)
    runs.mkdir(parents=True, exist_ok=True)
    more = [*(["--gpus", gpus] if gpus else []), *(["--lockstep"] if lockstep else [])]
    while True:
        ours, code, words = launched(config, RunDir(runs / name), more)
        if other is None or ours or not (runs / name).exists():
            break
        name = other()
    if code:
        print(words or f"mach: the launcher ended with exit code {code}", file=sys.stderr)
        return code
    print(f"run {name} goes on in the background; mach status {name}, mach logs {name} -f, mach stop {name}")
    return 0


def launched(config: Config, run: RunDir, more: list[str]) -> tuple[bool, int | None, str]:
    """Whether the run became that of our launcher, its exit code if it has ended, and the last line that it printed."""
    draft, log = (run.path.with_name(f".{run.name}.{os.getpid()}.{end}") for end in ("yaml", "log"))
    hear, tell = os.pipe()
    try:
        draft.write_text(dump(config), encoding="utf-8")
        try:
            with log.open("wb") as out:
                launcher = subprocess.Popen(
                    command(draft, run, more, tell),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(tell,),
                )
        finally:
            os.close(tell)
        ours = os.read(hear, 1) != b""  # nothing: it has ended, or is about to
        if ours:
            log.replace(run.launcher_log)
        code = begun(run, launcher) if ours else launcher.wait()
        lines = (run.launcher_log if ours else log).read_text(encoding="utf-8").strip().splitlines()
        return ours, code, lines[-1] if lines else ""
    finally:
        os.close(hear)
        draft.unlink(missing_ok=True)
        log.unlink(missing_ok=True)


def command(draft: Path, run: RunDir, more: list[str], tell: int) -> list[str]:
    """What the launcher is."""
    words = ["launch", "--config", str(draft), "--name", run.name, "--runs", str(run.path.parent), *more]
    return [sys.executable, "-m", "mach", *words, "--tell", str(tell)]


def tell_begun(tell: int) -> None:
    """In the launcher: the run is its own."""
    with suppress(BrokenPipeError):  # whoever started it is gone, and it goes on
        os.write(tell, b".")
    os.close(tell)


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
