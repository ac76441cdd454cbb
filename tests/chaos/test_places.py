"""Runs in places and numbers that are not the usual ones; launches in a row leave nothing."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from chaos.storm import Row, statuses
from conftest import DEADLINE_S, Launched, mach

Launch = Callable[..., Launched]
QUICK = ("--set", "report.every_ms=100")
SHM = Path("/dev/shm")
SHARED = {f"torchinductor_{getpass.getuser()}"}
"""Torch's cache, one for all programs of a user."""
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def row_of(status: Row, name: str) -> Row:
    found: Row = next(row for row in status["components"] if row["component"] == name)
    return found


def all_training(status: Row) -> bool:
    return all(row["step"] > 0 for row in status["components"])


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory on another file system, with a name that shells and programs stumble over."""
    base = Path(tempfile.mkdtemp(prefix="mach-test-", dir=SHM))
    yield base / "läufe mit 'Leerzeichen' & 木"
    shutil.rmtree(base)


@pytest.mark.slow
@pytest.mark.chaos
def test_another_file_system_and_a_difficult_name(launch: Launch, elsewhere: Path) -> None:
    words = ("--components", "2", "--steps", "400", *QUICK, "--set", "checkpoint.every_s=0.2")
    run = launch(*words, name="größter Versuch", runs=elsewhere)
    before = next(status for status in statuses(run) if row_of(status, "c1")["checkpoint"]["step"])
    os.kill(row_of(before, "c1")["pid"], signal.SIGKILL)
    assert run.end() == 0, run.output
    after = row_of(run.status(), "c1")
    assert (after["restarts"], after["state"], after["step"]) == (1, "finished", 400)
    assert "goes on from its checkpoint" in (run.directory / "logs" / "c1.2.log").read_text()


@pytest.mark.slow
@pytest.mark.chaos
def test_of_two_launches_with_one_name_one_is_refused(launch: Launch) -> None:
    # --gpus cpu: who asks for no device is told of what there is, in a line more, if it looks before it is refused
    both = [launch("--components", "2", "--steps", "20", "--gpus", "cpu", *QUICK) for _ in range(2)]
    codes = [run.end() for run in both]
    assert sorted(codes) == [0, 2], [run.output for run in both]
    [refused] = [run for run, code in zip(both, codes, strict=True) if code == 2]
    assert len(refused.output.strip().splitlines()) == 1
    assert "choose another --name" in refused.output
    assert both[0].status()["state"] == "finished"


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("name", ["one", ""])
def test_launches_in_the_background_at_once_tell_of_their_own_runs(tmp_path: Path, name: str) -> None:
    """Of one name, one begins and says so; without a name, each has its own."""
    command = [sys.executable, "-m", "mach", "launch", "--detach", "--components", "2", "--minutes", "5", *QUICK]
    command += ["--runs", str(tmp_path), "--gpus", "cpu", *(["--name", name] if name else [])]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    said = [process.communicate(timeout=DEADLINE_S) for process in both]
    begun = [out.split()[1] for out, _ in said if out]
    assert sorted(process.returncode for process in both) == ([0, 2] if name else [0, 0]), said
    assert len(set(begun)) == len(begun) == (1 if name else 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(begun), "and nothing else is left"
    if name:
        assert [err.count("\n") for _, err in said if err] == [1]
        assert any("choose another --name" in err for _, err in said)
    for run in begun:
        assert mach("stop", run, "--runs", str(tmp_path)).stdout == f"run {run} has been stopped\n"


@pytest.mark.slow
@pytest.mark.chaos
def test_thirty_two_components_on_two_cores(launch: Launch) -> None:
    sizes = ("train.batch_size=16", "model.joiner=[16]", "model.student=[16]", "evaluate.every_steps=1000000")
    words = [word for size in sizes for word in ("--set", size)]
    run = launch("--components", "32", "--steps", "60", *words)
    assert run.end() == 0, run.output
    rows = run.status()["components"]
    assert len(rows) == 32
    assert all((row["state"], row["step"], row["restarts"]) == ("finished", 60, 0) for row in rows)


@pytest.mark.slow
@pytest.mark.chaos
def test_files_that_cannot_be_written_stop_nobody_and_are_written_again(launch: Launch) -> None:
    """The whole run directory becomes a file, so that nothing in it can be opened, by no user; then it is back."""
    run = launch("--components", "2", "--minutes", "5", *QUICK, "--set", "checkpoint.every_s=0.2")
    before = next(status for status in statuses(run) if row_of(status, "c1")["checkpoint"]["step"])
    put_by = run.runs / "put-by"
    run.directory.rename(put_by)
    run.directory.write_text("in the way")
    os.kill(row_of(before, "c1")["pid"], signal.SIGKILL)
    assert run.process.stdout is not None
    lines = iter(run.process.stdout)
    said = next(line for line in lines if "cannot be written" in line)
    assert "training goes on" in said
    back = next(line for line in lines if " c1 training " in line and "restarts 1" in line)
    step = int(back.split()[back.split().index("step") + 1])
    assert next(line for line in lines if " c1 training " in line and f"step {step} " not in line), "it gets on"
    run.directory.unlink()
    put_by.rename(run.directory)
    assert next(line for line in lines if "can be written again" in line)
    after = next(status for status in statuses(run) if all_training(status))
    assert row_of(after, "c0")["pid"] == row_of(before, "c0")["pid"]
    assert row_of(after, "c1")["restarts"] == 1
    assert [row["exit_code"] for row in after["components"]] == [None, None]
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output


@pytest.mark.slow
@pytest.mark.chaos
def test_a_temporary_directory_that_is_removed_costs_nobody_his_neighbours(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a scheduler: all that lies there, also the socket of the process that starts others."""
    tmp = Path(tempfile.mkdtemp(prefix="mach-test-"))
    monkeypatch.setenv("TMPDIR", str(tmp))
    run = launch("--components", "3", "--minutes", "5", *QUICK)
    before = next(status for status in statuses(run) if all_training(status))
    shutil.rmtree(tmp)
    assert run.process.stdout is not None
    assert "is made again; training goes on" in next(line for line in run.process.stdout if "was removed" in line)
    os.kill(row_of(before, "c1")["pid"], signal.SIGKILL)
    after = next(
        status
        for status in statuses(run)
        if all_training(status) and row_of(status, "c1")["restarts"] and well_met(row_of(status, "c1"))
    )
    assert [row_of(after, name)["restarts"] for name in ("c0", "c1", "c2")] == [0, 1, 0]
    assert row_of(after, "c0")["pid"] == row_of(before, "c0")["pid"]
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output
    tmp.rmdir()  # nothing is left in it


def well_met(row: Row) -> bool:
    """Whether its present life has heard a child, and answered a parent."""
    return bool(row["messages"]["received"].get("target") and row["messages"]["sent"].get("target"))


def in_a_row(tmp_path: Path, times: int) -> None:
    """Launch, and end by each of three ways in turn. No process of any session is left, and nothing that was made."""
    runs, shared = tmp_path / "runs", set(SHM.glob("mach-*"))
    with tempfile.TemporaryDirectory(prefix="mach-test-") as private:  # short enough for sockets
        places = {**os.environ, "TMPDIR": private}
        for number in range(times):
            command = [sys.executable, "-m", "mach", "launch", "--name", "one", "--runs", str(runs), *QUICK]
            command += ["--components", "2", "--minutes", "5"]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=places, start_new_session=True
            ) as launcher:
                assert launcher.stdout is not None
                assert any(" training " in line for line in launcher.stdout), "it has begun"
                processes = psutil.Process(launcher.pid).children(recursive=True)
                assert len(processes) >= 3, "two components, and the process that starts them"
                launcher.send_signal(ENDS[number % len(ENDS)])
                launcher.stdout.read()
            psutil.wait_procs(processes, timeout=10)
            assert [process for process in psutil.process_iter() if session_of(process) == launcher.pid] == []
            shutil.rmtree(runs / "one")
        # what a killed launcher could not remove, the next one does
        last = [sys.executable, "-m", "mach", "launch", "--runs", str(runs), "--components", "1", "--steps", "1"]
        assert subprocess.run(last, env=places, capture_output=True).returncode == 0
        assert [path for path in Path(private).iterdir() if path.name not in SHARED] == []
    assert set(SHM.glob("mach-*")) <= shared, "others of this machine have theirs there, too"


def session_of(process: psutil.Process) -> int:
    """Its session; 0 if it has gone."""
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return 0


@pytest.mark.slow
@pytest.mark.chaos
def test_launches_and_stops_in_a_row_leave_nothing(tmp_path: Path) -> None:
    in_a_row(tmp_path, 3)


@pytest.mark.nightly
def test_two_hundred_launches_and_stops_in_a_row_leave_nothing(tmp_path: Path) -> None:
    in_a_row(tmp_path, 200)
