"""What a refused launch or resume leaves, as if it had not been: the name of the launch for the one that is mended, the
record of the run that was to go on. Knows no option and no process.

A refused launch whose first process has begun keeps its directory, for its logs may tell more; but if nothing was
trained there, the next launch of that name takes its place, as it does of one that was killed before it wrote down what
it planned. Laws: where anything was learnt, or anybody put a file of his own beside what a launch makes, nothing is
removed. Only who has made the directory or holds its lock removes it, and looks again once he holds it: of two launches
at once one is refused. A run that had finished has, whatever its resume was refused for, while nobody made a step by
it.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from configs.errors import RunError
from workers.holder import noted
from workers.rundir import RunDir, replace
from workers.status import read
from workers.verdict import REFUSED

MADE = {".lock", "config.yaml", "plan.json", "status.json", "metrics", "tensorboard", "logs", "weights", "checkpoints"}
"""What lies in a run that was never resumed."""
LEARNT = "checkpoints/*/*/*"
"""What a component saves once it has made a step. Its lock and its first weights are there without any."""


def is_vacant(run: RunDir) -> bool:
    """Whether a launch left this that was refused before anything was trained, or is still to write down its plan, and
    was killed by then if nobody has its lock.
    """
    if is_bare(run):
        return True
    try:
        status = read(run)
        others = set(os.listdir(run.path)) - MADE
    except (OSError, RunError):
        return False
    refused = (
        status.state == "failed" and status.exit_code == REFUSED and not any(row.step for row in status.components)
    )
    return refused and not others and not run.path.is_symlink() and not any(run.path.glob(LEARNT))


def is_bare(run: RunDir) -> bool:
    """Whether nothing lies there but folders and the lock of a launcher that has had it."""
    if noted(run.lock_file) is None or run.path.is_symlink():
        return False
    return all(path == run.lock_file or (path.is_dir() and not path.is_symlink()) for path in run.path.rglob("*"))


def make_way(run: RunDir) -> None:
    """Remove what is vacant; else nothing."""
    if not is_vacant(run):
        return
    try:
        lock = run.lock(make=False)  # where there is none, another launch has made the directory anew, to lock it next
    except OSError:  # somebody is at it; whoever makes the directory then is told that it is there
        return
    try:
        if run.owns(lock) and is_vacant(run):  # else another launch has removed it meanwhile
            remove(run)
    finally:
        os.close(lock)


def take_back(run: RunDir) -> None:
    """Remove what this launch has made, which ends before its first process began: it has nothing to tell."""
    with suppress(OSError):  # it stays, and is in the way of its name
        if not set(os.listdir(run.path)) - MADE:
            remove(run)


def remove(run: RunDir) -> None:
    """All of it; its name is free at once."""
    away = run.path.with_name(f".{run.name}.{os.getpid()}.refused")
    run.path.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def record(run: RunDir) -> dict[Path, bytes | None]:
    """What stands in the files of a run that its next launcher replaces; None: there is no such file. One that cannot
    be read is left out.
    """
    files = (run.config, run.plan, run.earlier_plan(1 + run.earlier_plans()), run.status)
    found: dict[Path, bytes | None] = {}
    for file in files:
        with suppress(OSError):
            found[file] = file.read_bytes() if os.path.lexists(file) else None
    return found


def put_back(run: RunDir, before: dict[Path, bytes | None]) -> None:
    """The `record` of a run before a resume of it that was refused; the logs stay, and tell why. Its status comes last:
    until then, and where anything cannot be written, it is told as failed, which `mach resume` mends as well.
    """
    with suppress(OSError):
        for file, content in before.items():
            there = os.path.lexists(file)
            if content is not None and not (there and file.read_bytes() == content):
                replace(file, content)
            elif content is None and there:
                file.unlink()
    with suppress(OSError):  # there are other plans in it, or there is none
        run.earlier_plan(1).parent.rmdir()
