"""A run whose launcher starts its processes, and has written no status yet: shown, listed, stopped, or gone; and how
long one that stops is waited for.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bus import address, kernel
from cli import cli
from configs.errors import RunError
from configs.load import dump, load
from fakes import component, status
from mach.recipes import RECIPES
from workers.commands import check_name, resume, stop
from workers.health import exit_code_of
from workers.holder import noted
from workers.plan import Plan, make_plan
from workers.report import SAVING, Checkpoint
from workers.rundir import RunDir
from workers.status import Status, reached, read, write
from workers.supervisor import Supervisor

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = """
import sys
from pathlib import Path
from workers.rundir import RunDir
lock = RunDir(Path(sys.argv[1])).lock()
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """As a launch leaves it that has planned."""
    run = RunDir(tmp_path / "r")
    run.make()
    config = load("digits", ("n_components=2",), RECIPES)
    run.config.write_text(dump(config))
    run.plan.write_bytes(msgspec.json.encode(make_plan(config, run="r", directory=run.path, sockets=tmp_path)))
    return run


@pytest.fixture
def launcher(run: RunDir) -> Iterator["subprocess.Popen[str]"]:
    """One that has the run's lock, and no more."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def ended() -> Status:
    """An earlier launch of the run."""
    earlier = status("stopped")
    earlier.launcher_started, earlier.exit_code = "1", 130
    row = component(state="stopped", exit_code=130, checkpoint=Checkpoint(step=7, age_s=2.0))
    earlier.components = [row, component("c1", state="failed", exit_code=1, reason="diverged")]
    return earlier


@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize("before", [None, ended()])
def test_a_run_whose_launcher_starts_its_processes_is_starting(run: RunDir, before: Status | None) -> None:
    if before is not None:
        write(run, before)
    found = read(run)
    assert (found.run, found.state, found.stale, exit_code_of(found)) == ("r", "starting", "", 0)
    steps = 0 if before is None else 7
    shown = [(row.component, row.state, row.step, row.exit_code, row.reason) for row in found.components]
    assert shown == [("c0", "starting", steps, None, ""), ("c1", "starting", steps, None, "")]
    listed = CliRunner().invoke(cli, ["runs", "--runs", str(run.path.parent)])
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [["run", "state"], ["r", "starting"]]
    with pytest.raises(RunError, match=r"is running .* or stop it: mach stop r"):
        check_name(run.path.parent, "r")


@pytest.mark.parametrize("before", [None, ended()])
def test_a_run_that_is_starting_is_stopped(
    run: RunDir, launcher: "subprocess.Popen[str]", before: Status | None
) -> None:
    if before is not None:
        write(run, before)
    said = stop(run, signal.SIGTERM)
    assert launcher.wait() == -signal.SIGTERM
    assert said == ("run r has failed" if before is None else "run r has been stopped")


def test_a_launcher_that_was_killed_before_it_wrote_a_status_is_gone(
    run: RunDir, launcher: "subprocess.Popen[str]"
) -> None:
    launcher.kill()
    launcher.wait()
    found = read(run)
    assert (found.state, exit_code_of(found)) == ("failed", 2)
    gone = f"the launcher (pid {launcher.pid}) is gone, and its processes with it, before status.json was written; "
    assert found.reason == f"{gone}mach resume {run.called} begins anew"
    assert stop(run, signal.SIGTERM) == f"run r has failed already: {found.reason}"
    write(run, ended())
    assert read(run).state == "stopped", "it changed nothing"


def saving() -> Status:
    """A run that stops and writes a checkpoint."""
    found = status("stopping")
    found.components = [component(state="stopping"), component("c1", state="stopping", reason=SAVING)]
    return found


@pytest.mark.usefixtures("launcher")
@pytest.mark.parametrize("busy", [status("starting"), saving()])
def test_a_stop_waits_for_who_starts_or_saves_and_not_for_ever_for_another(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, busy: Status
) -> None:
    looks = [status("training"), busy, busy, busy]
    for name, value in (("PATIENCE_S", 0.0), ("LOOK_S", 0.0), ("status_of", lambda run: looks.pop())):
        monkeypatch.setattr(f"workers.commands.{name}", value)
    monkeypatch.setattr(kernel, "pidfd_send_signal", lambda pidfd, number: None)  # nobody hears it
    run.config.write_text("supervise: {grace_ms: 0}")
    with pytest.raises(RunError, match="did not end"):
        stop(run, signal.SIGTERM)
    assert looks == []


def test_a_launcher_that_writes_no_status_for_long_says_so(run: RunDir, launcher: "subprocess.Popen[str]") -> None:
    holder = noted(run.lock_file)
    assert holder is not None
    assert read(run, now=holder.since_s + 59.0).stale == ""
    found = read(run, now=holder.since_s + 61.0)
    assert found.stale.startswith(f"status.json is not written 61 s after the start: the launcher (pid {launcher.pid})")
    assert exit_code_of(found) == 1


@pytest.mark.usefixtures("launcher")
def test_a_launcher_of_another_boot_starts_for_as_long_as_nobody_can_tell(run: RunDir) -> None:
    run.lock_file.write_text("1 2 another 5.0\n")  # on another host, which shares the file and its lock
    found = read(run, now=1000.0)
    assert (found.state, found.stale, found.elapsed_s) == ("starting", "", 0.0)


@pytest.mark.usefixtures("launcher")
def test_how_long_a_launcher_of_another_time_namespace_has_been_starting_nobody_can_tell(run: RunDir) -> None:
    """As after `unshare --time --monotonic 100000`, of either side."""
    holder = noted(run.lock_file)
    assert holder is not None
    assert holder.clock == address.clock()
    words, told = run.lock_file.read_text(), holder.since_s + 100_000.0
    run.lock_file.write_text(words.replace(address.clock(), "time:[1]"))
    found = read(run, now=told)
    assert (found.state, found.stale, found.elapsed_s) == ("starting", "", 0.0)
    run.lock_file.write_text(words.splitlines()[0] + "\n")  # an older version
    assert read(run, now=told).elapsed_s == pytest.approx(100_000.0)


def test_who_takes_a_run_up_finds_what_it_had_come_to(run: RunDir) -> None:
    write(run, ended())
    lock = run.lock()
    assert [came["step"] for came in reached(run).values()] == [7, 7]
    assert reached(run)["c0"]["checkpoint"].age_s >= 2.0
    os.close(lock)
    assert read(run).state == "stopped", "it was let go of"


def test_who_has_a_lock_says_on_which_host_it_is_and_older_ones_did_not(run: RunDir) -> None:
    os.close(run.lock())
    holder = noted(run.lock_file)
    assert holder is not None
    assert (holder.host, holder.where, holder.alive) == (os.uname().nodename, "", True)
    run.lock_file.write_text(f"{os.getpid()} {holder.started} {holder.boot} 1.000\n")
    assert noted(run.lock_file) == holder, "it is the same one"


def test_of_a_lock_that_nobody_has_noted_nothing_is_known(run: RunDir) -> None:
    run.lock_file.write_text("")
    assert noted(run.lock_file) is None
    with pytest.raises(RunError, match="not written yet"):
        read(run)


def test_a_run_that_is_removed_at_the_very_moment_is_one_sentence(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a launch that takes the place of a refused one."""
    os.close(run.lock())
    monkeypatch.setattr("workers.status.recorded", lambda run, missing_ok: shutil.rmtree(run.path))
    assert read(run).state == "failed"


@pytest.mark.parametrize("lost", ["directory", "lock"])
def test_a_run_whose_directory_was_removed_or_lock_replaced_is_its_launchers_again(run: RunDir, lost: str) -> None:
    plan = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    supervisor = Supervisor(msgspec.structs.replace(plan, sockets=str(address.make_directory())))
    supervisor._lock = run.lock()
    if lost == "directory":
        shutil.rmtree(run.path)
    else:  # as by who puts a backup back
        supervisor._write()
        shutil.copy2(run.lock_file, run.path / "new").replace(run.lock_file)
        assert (run.locked(), read(run).state) == (False, "starting"), "its launcher lives, and trains here"
        with pytest.raises(RunError, match=rf"is running \(pid {os.getpid()}\)"):
            resume(run, None, (), None)
    supervisor._write()
    assert (run.locked(), read(run).state) == (True, "starting")
    supervisor.__exit__(None, None, None)
    assert not run.locked()
