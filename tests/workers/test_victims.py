"""Who is hit: real processes, but of no run; a signal finds the one that was meant, or nobody."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from bus import address
from configs.errors import RunError
from conftest import wait_gone
from workers import status as status_file
from workers.attempt import SIGNALS
from workers.chaos import Chaos, Fired, Spec
from workers.report import State
from workers.rundir import RunDir
from workers.status import ComponentStatus, Status
from workers.victims import (
    Account,
    Interrupts,
    RestartTimes,
    away,
    find,
    hold,
    new_times,
    reach,
    running,
    story,
    wait_back,
    wreak,
)

TREE = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()']).wait()"
"""A launcher with a child that has begun when it prints."""


@pytest.fixture
def launcher() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def child_of(launcher: "subprocess.Popen[bytes]") -> int:
    return psutil.Process(launcher.pid).children()[0].pid


def written(tmp_path: Path, launcher: int, pid: int, state: str = "training", **more: object) -> RunDir:
    """A run directory whose status says that c0 is process `pid` of `launcher`."""
    row = ComponentStatus(
        component="c0", kind="trainer", incarnation=1, pid=pid, device="cpu", state="training", last_seen_s=0.0
    )
    fields = {
        "run": "test",
        "state": state,
        "launcher_pid": launcher,
        "launcher_started": address.started(launcher),
        "boot": address.boot(),
        "started_at": 0.0,
        "written_s": 0.0,
        "elapsed_s": 1.0,
        "components": [msgspec.to_builtins(row)],
    }
    (tmp_path / "test").mkdir(exist_ok=True)
    run = RunDir(tmp_path / "test")
    status_file.write(run, msgspec.convert(fields | more, Status))
    return run


def test_a_process_of_the_run_is_found_and_hit(tmp_path: Path, launcher: "subprocess.Popen[bytes]") -> None:
    run = written(tmp_path, launcher.pid, child_of(launcher))
    held = find(run, "c0")
    assert held is not None
    assert (held.pid, held.incarnation) == (child_of(launcher), 1)
    assert held.send(signal.SIGSTOP)
    assert held.send(signal.SIGKILL), "a stopped process can be killed"
    assert wait_gone(held.pid)
    assert not held.send(signal.SIGCONT), "it is gone"
    held.close()
    assert find(run, "c0") is None
    assert find(run, "c7") is None


def test_a_process_of_nobody_is_never_held(
    tmp_path: Path, launcher: "subprocess.Popen[bytes]", stranger: "subprocess.Popen[bytes]"
) -> None:
    before = psutil.Process().num_fds()
    assert find(written(tmp_path, launcher.pid, stranger.pid), "c0") is None, "not below the launcher"
    assert find(written(tmp_path, launcher.pid, os.getpid()), "c0") is None, "above it"
    assert find(written(tmp_path, launcher.pid, launcher.pid), "c0") is None, "the launcher itself"
    assert find(written(tmp_path, launcher.pid, 0), "c0") is None
    assert find(written(tmp_path, launcher.pid, child_of(launcher), launcher_started="1"), "c0") is None, "an older run"
    assert find(written(tmp_path, launcher.pid, child_of(launcher), boot="another"), "c0") is None
    assert find(written(tmp_path, launcher.pid, child_of(launcher), state="training"), "c0") is not None
    assert psutil.Process().num_fds() == before + 1, "descriptors are let go"
    assert stranger.poll() is None


def test_a_dead_process_is_never_held(stranger: "subprocess.Popen[bytes]") -> None:
    stranger.kill()
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
    assert hold(stranger.pid, os.getpid(), 1) is None, "a zombie"
    stranger.wait()
    assert hold(stranger.pid, os.getpid(), 1) is None


def test_a_status_that_is_gone_or_torn_hides_everybody(tmp_path: Path, launcher: "subprocess.Popen[bytes]") -> None:
    run = written(tmp_path, launcher.pid, child_of(launcher))
    run.status.write_bytes(run.status.read_bytes()[:50])
    assert find(run, "c0") is None
    run.status.unlink()
    assert find(run, "c0") is None


def test_what_is_not_running_is_refused_with_one_sentence(tmp_path: Path, launcher: "subprocess.Popen[bytes]") -> None:
    run = written(tmp_path, launcher.pid, 0, state="finished")
    with pytest.raises(RunError, match=r"^run test is not running \(it is finished\)[^\n]*$"):
        running(run)
    with pytest.raises(RunError, match=r"^run test is not running[^\n]*$"):
        wreak(written(tmp_path, launcher.pid, 0, launcher_started="1"), Spec(seconds=1.0, kill=1.0))


def test_a_run_that_ends_ends_its_chaos(
    tmp_path: Path, launcher: "subprocess.Popen[bytes]", hold: Callable[[RunDir], RunDir]
) -> None:
    """The only kill takes the launcher's last child, and so the launcher: what is left to do is not waited for."""
    run = hold(written(tmp_path, launcher.pid, child_of(launcher)))
    told: list[Fired] = []
    account = wreak(run, Spec(seconds=3600.0, seed=2, kill=10.0, stop=1.0, stop_s=1.0), told.append)
    kills = [fired for fired in account.faults if fired.kind == "kill"]
    assert len(kills) == 1
    assert told == account.faults
    assert account.missed > 30_000
    assert not account.interrupted


def test_only_new_restarts_count() -> None:
    def row(restarts: int, times: list[float]) -> ComponentStatus:
        return ComponentStatus(
            component="c0", kind="trainer", incarnation=1, pid=1, device="cpu", state="training",
            restarts=restarts, restart_s=times,
        )  # fmt: skip

    assert new_times(row(1, [1.0]), row(3, [1.0, 2.0, 3.0])) == [2.0, 3.0]
    assert new_times(row(1, [1.0]), row(3, [1.0, 3.0])) == [3.0], "a life that was killed before its first step"
    assert new_times(row(1, [1.0]), row(1, [1.0])) == []
    full = [float(i) for i in range(100)]
    assert new_times(row(100, full), row(102, [*full[2:], 7.0, 8.0])) == [7.0, 8.0]


def test_lives_come_back_not_faults() -> None:
    def row(incarnation: int, state: State, reason: str = "", component: str = "c0") -> ComponentStatus:
        return ComponentStatus(
            component=component, kind="trainer", incarnation=incarnation, pid=1, device="cpu", state=state,
            reason=reason,
        )  # fmt: skip

    twice = [Fired(0.1, "c0", 1, 11, "kill", 0.0), Fired(0.2, "c0", 3, 13, "kill", 0.0)]
    assert away(row(4, "training"), twice) == ""
    assert away(row(5, "waiting", "for its parent"), twice) == "", "another life between was nobody's fault"
    assert away(row(4, "starting"), twice) == "starting"
    assert away(row(3, "restarting", "ended by SIGKILL"), twice) == "restarting: ended by SIGKILL"
    assert away(row(3, "finished"), twice) == "", "it had nothing left to do"
    assert away(row(3, "failed", "ended by SIGKILL, too often"), twice) == "failed: ended by SIGKILL, too often"
    assert "has not noticed" in away(row(3, "training"), twice), "what the status shows is of before"
    assert away(row(1, "starting", component="c1"), twice) == "", "it was not hit"
    guess = f"ended by SIGKILL ({SIGNALS[signal.SIGKILL]}), again after 3 restarts"
    ours = away(row(3, "failed", guess), twice)
    assert ours.startswith("failed: ended by SIGKILL (sent by this mach chaos; ")
    assert ours.endswith("), again after 3 restarts")
    assert "memory" not in ours
    assert away(row(4, "failed", guess), twice) == f"failed: {guess}", "that life was killed by somebody else"
    stopped = [Fired(0.1, "c0", 1, 11, "stop", 3.0)]
    assert away(row(1, "training"), stopped) == "", "it went on"
    assert away(row(1, "stalled", "made no progress"), stopped) == "stalled: made no progress"


def test_who_has_failed_is_not_waited_for(
    tmp_path: Path, launcher: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.victims.ended", lambda *_: pytest.fail("nobody is still to come back"))
    run = written(tmp_path, launcher.pid, 0)
    status = status_file.read(run)
    row = msgspec.structs.replace(status.components[0], state="failed", exit_code=-9)
    status_file.write(run, msgspec.structs.replace(status, components=[row]))
    with contextlib.closing(reach(status)) as held, Interrupts() as interrupts:
        wait_back(run, [Fired(0.1, "c0", 1, 11, "kill", 0.0)], held, interrupts)


def test_the_story_says_what_was_done_and_who_is_missing() -> None:
    chaos = Chaos((), lambda component: None)
    chaos.fired += [Fired(1.0, "c0", 1, 1, "kill", 0.0), Fired(2.0, "c1", 1, 2, "stop", 3.0)]
    account = Account(
        run="test", seed=3, seconds=60.0, faults=chaos.fired, missed=1, restarts={"c0": 1, "c1": 0},
        restart_s=RestartTimes(p50=0.25, max=0.5, all={"c0": [0.25]}), lost={"c1": "failed: ended by SIGKILL"},
        interrupted=False,
    )  # fmt: skip
    assert story(account) == [
        "1 × SIGKILL, 1 × SIGSTOP in run test, seed 3; 1 more found nobody alive to hit, or were still to come",
        "restarts: c0 1",
        "back in training after 0.25 s at the median, 0.50 s at most",
        "c1 did not come back: it is failed: ended by SIGKILL",
    ]
