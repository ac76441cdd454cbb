"""Components that fail while others train, on real processes: who is restarted, who notices, what is said."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import ailing
from conftest import Launched, mach, wait_gone

Launch = Callable[..., Launched]
QUICK = ("--set", "report.every_ms=100", "--set", "supervise.stalled_ms=1000")
ENDLESS = ("--minutes", "5", *QUICK)
Row = dict[str, Any]


def rows(status: dict[str, Any]) -> dict[str, Row]:
    return {row["component"]: row for row in status["components"]}


def well_under_way(status: dict[str, Any]) -> bool:
    return all(row["child_steps"] > 10 for row in status["components"])


def back(status: dict[str, Any], name: str, incarnation: int = 2) -> bool:
    """In training in a later life, and learning from its child again."""
    row = rows(status)[name]
    return bool(row["incarnation"] == incarnation and row["state"] == "training" and row["child_steps"] > 0)


def lives(status: dict[str, Any], name: str) -> int:
    """How many it has had, two at least."""
    return max(2, rows(status)[name]["incarnation"])


@pytest.mark.parametrize("transport", ["ipc", pytest.param("tcp", marks=pytest.mark.slow)])
def test_only_the_killed_one_begins_anew_and_its_neighbours_meet_it_again(launch: Launch, transport: str) -> None:
    run = launch("--components", "3", *ENDLESS, "--set", f"bus.transport={transport}")
    before = rows(run.until(well_under_way))
    os.kill(before["c1"]["pid"], signal.SIGKILL)
    after = rows(run.until(lambda status: back(status, "c1")))
    c1 = after["c1"]
    assert (c1["restarts"], c1["incarnation"], c1["state"]) == (1, 2, "training")
    assert c1["pid"] != before["c1"]["pid"]
    assert len(c1["restart_s"]) == 1
    assert c1["failure"]["reason"].startswith("ended by SIGKILL")
    asked = after["c0"]["messages"]["received"]["target"]
    met = rows(run.until(lambda status: rows(status)["c0"]["messages"]["received"]["target"] > asked + 10))
    for name in ("c0", "c2"):
        assert (met[name]["pid"], met[name]["restarts"]) == (before[name]["pid"], 0)
        assert met[name]["peers"]["c1"][0]["state"] == "open"
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output


@pytest.mark.chaos
def test_every_ailment_is_named_and_survived(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AILING", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(ailing.__file__).parent), prepend=os.pathsep)
    run = launch("--components", "3", *ENDLESS, "--set", "model.family=ailing:mlp")
    before = rows(run.until(well_under_way))
    ailments = {"c0": ("hang", "exit"), "c1": ("segfault", "error"), "c2": ("memory",)}
    names = {
        "hang": "its log ends with its stacks",
        "exit": "left without finishing, exit code 0",
        "segfault": "ended by SIGSEGV",
        "error": "ValueError: ill",
        "memory": "out of memory: lower train.batch_size",
    }
    for number in (1, 2):
        now = rows(run.until(lambda status: all(row["step"] > 0 for row in rows(status).values())))
        ill = [name for name in ailments if len(ailments[name]) >= number]
        for name in ill:
            (draft := tmp_path / name).write_text(ailments[name][number - 1])
            draft.rename(tmp_path / str(now[name]["pid"]))
        healed = rows(run.until(lambda status: all(back(status, name, number + 1) for name in ill)))  # noqa: B023
        for name in ill:
            assert names[ailments[name][number - 1]] in healed[name]["failure"]["reason"]
            assert not (tmp_path / str(now[name]["pid"])).exists(), "the fault has fired"
    assert "File " in (hung := (run.directory / "logs" / "c0.1.log").read_text())
    assert "in hang" in hung
    assert "in string_at" in (run.directory / "logs" / "c1.1.log").read_text()
    assert "ValueError: ill" in (run.directory / "logs" / "c1.2.log").read_text()
    assert before["c2"]["incarnation"] == 1


def test_a_restart_that_was_asked_for(launch: Launch) -> None:
    run = launch("--components", "2", *ENDLESS)
    run.until(well_under_way)
    words = ("--runs", str(run.runs))
    done = mach("restart", run.name, "c1", *words)
    assert (done.returncode, done.stdout) == (0, "c1 begins anew, incarnation 2\n"), done.stderr
    assert rows(run.until(lambda status: back(status, "c1")))["c1"]["failure"] is None
    logs = mach("logs", run.name, "c1", *words).stdout.splitlines()
    lives = [line.split()[0] for line in logs]
    assert lives == sorted(lives)
    assert set(lives) == {"c1.1", "c1.2"}
    assert "nobody" in (refused := mach("restart", run.name, "nobody", *words)).stderr
    assert refused.returncode == 2
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.output
    assert mach("restart", run.name, "c1", *words).returncode == 2


@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_directory_that_vanishes_is_made_anew_and_nobody_stops(launch: Launch) -> None:
    run = launch("--components", "2", *ENDLESS)
    before = rows(run.until(well_under_way))
    shutil.rmtree(run.directory.rename(run.directory.with_name("gone")))  # at once: nobody makes a file in it meanwhile
    after = rows(run.until(lambda status: rows(status)["c0"]["step"] > before["c0"]["step"] + 50))
    assert [row["pid"] for row in after.values()] == [row["pid"] for row in before.values()]
    run.directory.rename(run.directory.with_name("aside"))
    run.directory.write_text("in the way")
    assert run.process.stdout is not None
    line = next(line for line in run.process.stdout if "cannot be written" in line)
    assert line.startswith("mach: ")
    run.directory.unlink()
    line = next(line for line in run.process.stdout if "mach: " in line)
    assert f"{run.directory} was removed or moved; training goes on, and it is made again" in line, "said once"
    after = rows(run.until(lambda status: rows(status)["c0"]["step"] > after["c0"]["step"] + 50))
    assert (run.directory / "config.yaml").exists()
    os.kill(after["c1"]["pid"], signal.SIGKILL)
    run.until(lambda status: back(status, "c1"))
    assert (run.directory / "logs" / "c1.2.log").exists()
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.output


@pytest.mark.slow
def test_a_killed_forkserver_takes_all_components_along_and_they_all_begin_anew(launch: Launch) -> None:
    run = launch("--components", "2", *ENDLESS)
    before = rows(run.until(well_under_way))
    helper = psutil.Process(before["c0"]["pid"]).parent()
    assert helper is not None
    assert helper.ppid() == run.process.pid
    helper.kill()
    # a life that was asked of the forkserver in its last moment never begins, and the next one does
    after = rows(run.until(lambda status: all(back(status, name, lives(status, name)) for name in before)))
    for name in ("c0", "c1"):
        assert wait_gone(before[name]["pid"])
        assert "forkserver" in after[name]["failure"]["reason"] or "started" in after[name]["failure"]["reason"]
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.output


def test_all_is_gone_within_the_grace_time_even_a_stopped_one(launch: Launch) -> None:
    run = launch("--components", "2", *ENDLESS[:2], "--set", "report.every_ms=100", "--set", "supervise.grace_ms=500")
    pids = [row["pid"] for row in run.until(well_under_way)["components"]]
    os.kill(pids[1], signal.SIGSTOP)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.output
    assert all(wait_gone(pid, 0.0) for pid in pids)
    found = rows(run.status())
    assert (found["c0"]["state"], found["c1"]["state"]) == ("stopped", "stopped")
    assert "did not leave in time" in found["c1"]["reason"]


def test_in_lockstep_one_death_ends_the_run_and_the_way_on_is_named(launch: Launch) -> None:
    run = launch("--components", "2", "--steps", "100000", "--lockstep", *QUICK)
    status = run.until(lambda status: all(row["step"] > 10 for row in status["components"]))
    os.kill(status["components"][1]["pid"], signal.SIGKILL)
    assert run.end() == 1, run.output
    last = run.output.splitlines()[-1]
    assert last.startswith("c1 failed: ended by SIGKILL")
    assert last.endswith(f"mach resume {run.name} --runs {run.directory.parent} does, together")
