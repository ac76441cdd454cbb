"""Which runs there are, and which one is meant by a word of the command line. Knows no process."""

import difflib
import os
import re
from pathlib import Path

from configs.errors import NoSuchRun
from workers.rundir import RunDir

COMPONENT = re.compile(r"c\d+(\.\d+)?")
"""A component's name, c2, or one life's of it, c2.1."""


def every_run(runs: Path) -> list[RunDir]:
    """Runs in a directory, newest first; also those whose status.json found no room, or is not written yet."""
    found = [run for run in map(RunDir, runs.glob("*")) if is_run(run)]
    return sorted(found, key=lambda run: run.plan.stat().st_mtime if run.plan.exists() else 0.0, reverse=True)


def is_run(run: RunDir) -> bool:
    """Whether there is one."""
    return os.path.exists(run.status) or os.path.exists(run.plan)


def find_run(runs: Path, name: str | None) -> RunDir:
    """The run called `name`, which may also be a path, of `runs` or as a shell has it; or the newest.

    Raises:
        NoSuchRun: there is none.
    """
    found = every_run(runs)
    if name is None:
        if not found:
            raise NoSuchRun(
                f"there is no run in {runs}/; start one with mach launch, or name another place with --runs"
            )
        return found[0]
    for path in (runs / name, *([Path(name)] if os.sep in name else ())):
        if is_run(RunDir(path)):
            return RunDir(path)
    near = difflib.get_close_matches(name, [run.name for run in found], 1)
    hint = f"; did you mean {near[0]!r}?" if near else "; mach runs lists those that there are"
    raise NoSuchRun(f"there is no run {name!r} in {runs}/{hint}")


def find_component(runs: Path, run: str | None, component: str | None) -> tuple[RunDir, str | None]:
    """The run, and the component if one is meant, of two words that may both be left out. One word alone that has a
    component's form, or that of one life of it, means the newest run, unless it names a run.

    Raises:
        NoSuchRun: there is none.
    """
    alone = run is not None and component is None and COMPONENT.fullmatch(run) is not None
    if alone and not any(found.name == run for found in every_run(runs)):
        run, component = None, run
    return find_run(runs, run), component
