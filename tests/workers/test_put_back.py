"""A resume that is refused before anybody makes a step leaves the run as it was; one that is killed by then leaves a
run that has failed, and never one that has finished what was only planned.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bus import address
from configs.errors import RunError
from configs.load import dump, load
from fakes import Life, component, status
from mach.recipes import RECIPES
from workers.attempt import Attempt
from workers.holder import noted
from workers.plan import Plan, ProcessPlan, make_plan
from workers.resume import has_finished, recorded_plan
from workers.rundir import RunDir
from workers.status import read, write
from workers.supervisor import Supervisor
from workers.vacant import put_back, record

ROOT = Path(__file__).resolve().parent.parent.parent
KILLED = """
import os, pkgutil, signal, sys
import msgspec
from workers.plan import Plan
from workers.supervisor import Supervisor

where, plan = sys.argv[1:]
owner, name = where.rsplit(".", 1)
setattr(pkgutil.resolve_name(owner), name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
Supervisor(msgspec.json.decode(plan, type=Plan)).__enter__()
"""


def planned(run: RunDir, steps: int, sockets: Path) -> Plan:
    config = load("digits", ("n_components=2", f"train.steps={steps}"), RECIPES)
    return make_plan(config, run="r", directory=run.path, sockets=sockets)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """One that has finished its hundred steps."""
    run = RunDir(tmp_path / "r")
    run.make()
    plan = planned(run, 100, tmp_path)
    run.config.write_text(dump(plan.config))
    run.plan.write_bytes(msgspec.json.encode(plan))
    rows = [component(name, state="finished", exit_code=0, step=100) for name in ("c0", "c1")]
    write(run, msgspec.structs.replace(status("finished"), exit_code=0, components=rows, launcher_started="1"))
    return run


def further(run: RunDir) -> Plan:
    """Another life of it, to step 200."""
    return msgspec.structs.replace(planned(run, 200, address.make_directory()), resumed=True, before_s=1.0)


def files(run: RunDir) -> dict[str, bytes | None]:
    """All that lies there but logs and the lock."""
    found = {str(path.relative_to(run.path)): path for path in run.path.rglob("*") if path.name != ".lock"}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


def refuse(run: RunDir, monkeypatch: pytest.MonkeyPatch, how: type[BaseException] = RunError) -> None:
    """Resume it where no forkserver can be begun."""

    def warm() -> None:
        raise how("no room")

    monkeypatch.setattr("workers.forkserver.warm", warm)
    with pytest.raises(how, match="no room"):
        Supervisor(further(run)).__enter__()


@pytest.mark.parametrize("how", [RunError, SystemExit])
def test_a_resume_that_is_refused_before_its_first_process_leaves_the_run_as_it_was(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    before = files(run)
    refuse(run, monkeypatch, how)
    assert files(run) == before
    run.reopen()
    before = files(run)
    refuse(run, monkeypatch, how)
    assert files(run) == before, "of plans that were put by, only its own is gone"


@pytest.mark.parametrize("gone", ["config.yaml", "status.json"])
def test_what_a_run_had_lost_before_is_not_there_afterwards(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    (run.path / gone).unlink()
    before = files(run)
    refuse(run, monkeypatch)
    assert files(run) == before
    assert gone == "status.json" or read(run).state == "finished"


def test_where_no_plan_can_be_put_by_the_run_is_as_it_was(run: RunDir) -> None:
    (run.path / "earlier").write_text("in the way")
    before = files(run)
    with pytest.raises(OSError, match="earlier"):
        Supervisor(further(run)).__enter__()
    assert files(run) == before


def test_what_cannot_be_read_of_a_run_keeps_nothing_else_from_being_put_back(run: RunDir) -> None:
    run.config.unlink()
    run.config.mkdir()
    before, content = record(run), run.plan.read_bytes()
    assert run.config not in before
    run.reopen()
    for file in (run.plan, run.status):
        file.write_text("another")
    put_back(run, before)
    assert (run.plan.read_bytes(), read(run).state) == (content, "finished")
    assert not run.earlier_plans()


@pytest.mark.parametrize("begun", [0, 1])
@pytest.mark.parametrize("what", ["removed", "another's"])
def test_into_what_is_another_run_by_now_nothing_is_put_back(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, hold: Callable[[RunDir], RunDir], what: str, begun: int
) -> None:
    supervisor, life = Supervisor(further(run)), Life()

    def start(process: ProcessPlan, incarnation: int, now: float) -> Attempt:
        if process.index < begun:
            return life.attempt
        shutil.rmtree(run.path)
        if what == "another's":
            run.make()
            hold(run)
        raise RunError("no room")

    monkeypatch.setattr("workers.forkserver.warm", lambda: None)
    monkeypatch.setattr(supervisor, "_start", start)
    with pytest.raises(RunError, match="no room"):
        supervisor.__enter__()
    life.close()
    if what == "another's":
        assert not any(file.exists() for file in (run.config, run.plan, run.status))
    else:
        assert run.path.exists() == (begun > 0)
        assert not begun or (read(run).state, recorded_plan(run).config.train.steps) == ("failed", 200)


@pytest.mark.parametrize("where", ["rundir.RunDir.reopen", "supervisor.replace", "forkserver.warm"])
def test_a_resume_that_is_killed_before_its_first_process_has_failed_and_goes_on(run: RunDir, where: str) -> None:
    plan, old = further(run), recorded_plan(run)
    words = [sys.executable, "-c", KILLED, f"workers.{where}", msgspec.json.encode(plan).decode()]
    killed = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    address.remove(Path(plan.sockets))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = read(run)
    assert (found.state, found.before_s, [row.step for row in found.components]) == ("failed", 1.0, [100, 100])
    assert f"go on with mach resume {run.called}" in found.reason
    for planned in (old, recorded_plan(run)):
        assert not has_finished(found, planned.config, plan.config), "the same command goes on with it"
    assert (recorded_plan(run).config.train.steps == 200) == where.endswith("warm")


def test_while_its_first_process_is_awaited_a_run_is_starting_and_not_one_whose_launcher_cannot_write(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def warm() -> None:
        holder = noted(run.lock_file)
        assert holder is not None
        found.extend([read(run, now=holder.since_s + late_s) for late_s in (59.0, 61.0)])
        raise RunError("no room")

    monkeypatch.setattr("workers.forkserver.warm", warm)
    with pytest.raises(RunError, match="no room"):
        Supervisor(further(run)).__enter__()
    assert [[row.state for row in each.components] for each in found] == [["starting"] * 2] * 2
    assert [(each.state, each.stale[:35]) for each in found] == [
        ("starting", ""),
        ("starting", "status.json is not written 61 s aft"),
    ]
