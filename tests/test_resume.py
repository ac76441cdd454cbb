"""Stopped, killed, finished, damaged: a run goes on as a user would ask it to, on real processes."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bus import kernel
from chaos.storm import on_path
from cli import cli
from configs.load import dump, load
from conftest import LOOK_S, Launched, mach, wait_gone
from mach.recipes import RECIPES
from mach.shelf import STATE, Shelf, read_manifest
from reference import train
from workers.plan import make_plan
from workers.rundir import RunDir

Launch = Callable[..., Launched]
QUICK = ("--gpus", "cpu", "--set", "report.every_ms=100", "--set", "evaluate.every_steps=10000")
EXACT = ("optimiser.schedule=constant", "n_components=2", "train.batch_size=16", "seed=3")
WORDS = tuple(word for setting in EXACT for word in ("--set", setting))


def shelf(run: Launched, name: str) -> Shelf:
    return Shelf(RunDir(run.directory).checkpoints(name))


def reports(run: Launched, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunDir(run.directory).metrics(name).read_text().splitlines()]


def logs(run: Launched, name: str) -> str:
    return "".join(path.read_text() for path in sorted((run.directory / "logs").glob(f"{name}*.log")))


def assert_equals_the_reference(run: Launched, steps: int, components: int = 2) -> None:
    config = load("digits", (*EXACT, f"n_components={components}", f"train.steps={steps}"), RECIPES)
    for i, expected in enumerate(train(config, steps)):
        found = load_file(run.directory / "weights" / f"c{i}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), f"c{i}"


def kill_launcher(run: Launched) -> None:
    """SIGKILL to the launcher of a run that trains; returns when all of it is gone."""
    pids = [row["pid"] for row in run.status()["components"]]
    run.process.kill()
    assert run.end() == -signal.SIGKILL, "the fault fired"
    assert all(wait_gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--help",), 0, "mach resume my-run --steps 4000"),
        ((), 2, "plan.json: is damaged"),
        (("broken",), 2, "plan.json: is damaged"),
        (("broken", "--steps", "5", "--minutes", "1"), 2, "--steps and --minutes"),
    ],
)
def test_what_cannot_be_resumed_is_one_sentence(
    tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("{")
    found = CliRunner().invoke(cli, ["resume", "--runs", str(tmp_path), *words])
    assert found.exit_code == code
    assert sentence in found.output
    assert code == 0 or len(found.output.strip().splitlines()) == 1


@pytest.mark.parametrize("more", [(), ("--detach",)], ids=" ".join)
@pytest.mark.parametrize("what", [".lock", "earlier", "metrics", "read-only"])
def test_a_run_that_cannot_be_written_is_not_resumed_and_one_sentence_says_so(
    tmp_path: Path, disk: Callable[[Path, str], None], what: str, more: tuple[str, ...]
) -> None:
    """Something else in the place of what a launcher writes, which stops every user, or a disk that takes nothing."""
    if what == "read-only":
        disk(tmp_path / "runs", "size=1m")
    run = RunDir(tmp_path / "runs" / "test")
    run.make()
    plan = make_plan(load("digits", EXACT, RECIPES), run="test", directory=run.path, sockets=tmp_path)
    run.plan.write_bytes(msgspec.json.encode(plan))
    run.config.write_text(dump(plan.config))
    if what == ".lock":
        (run.path / what).mkdir()
    elif what == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "runs")], check=True)
    else:
        if (run.path / what).is_dir():
            (run.path / what).rmdir()
        (run.path / what).write_text("in the way")
    before = sorted(run.path.rglob("*"))
    refused = mach("resume", "test", "--runs", str(tmp_path / "runs"), "--gpus", "cpu", *more)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert re.fullmatch(
        rf"mach: {re.escape(str(run.path))}\S*: .*; make it writable, then mach resume test --runs \S+\n",
        refused.stderr,
    )
    assert {path for path in run.path.rglob("*") if path.name != ".lock"} <= set(before), "nothing was begun"


@pytest.mark.slow
def test_a_detached_run_whose_launcher_was_killed_goes_on_in_the_background(launch: Launch) -> None:
    run = launch("--components", "2", "--minutes", "5", "--detach", *QUICK, "--set", "checkpoint.every_steps=20")
    assert run.end() == 0, run.output
    first = until(run, lambda status: all(row["checkpoint"]["step"] for row in status["components"]))
    pids = [row["pid"] for row in first["components"]]
    os.kill(first["launcher_pid"], signal.SIGKILL)
    assert all(wait_gone(pid) for pid in (first["launcher_pid"], *pids))
    words = ("test", "--runs", str(run.runs))
    done = mach("resume", *words, "--detach", "--gpus", "cpu", "--set", "optimiser.lr=5e-4")
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("run test goes on in the background; mach status test --runs")
        for was, row in zip(first["components"], run.status()["components"], strict=True):
            assert row["state"] != "starting"
            assert row["incarnation"] > 1
            assert row["step"] > was["checkpoint"]["step"]
        assert load(str(RunDir(run.directory).config)).optimiser.lr == 5e-4
        assert "run test goes on: c0 from step" in (run.directory / "logs" / "launcher.2.log").read_text()
        again = mach("resume", *words, "--detach")
        assert again.returncode == 2
        assert re.fullmatch(r"mach: run 'test' is running \(pid \d+\); to stop it: .*\n", again.stderr)
    finally:
        assert mach("stop", *words).returncode == 0
    assert wait_gone(run.status()["launcher_pid"])
    assert run.status()["state"] == "stopped"


def until(run: Launched, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Follow a run in the background until its status fulfils the condition."""
    launcher = kernel.pidfd_open(run.status()["launcher_pid"])
    try:
        while not condition(status := run.status()):
            assert not select.select([launcher], [], [], LOOK_S)[0], "the run ended before"
        return status
    finally:
        os.close(launcher)


@pytest.mark.slow
def test_a_finished_run_in_lockstep_goes_on_as_if_it_had_never_ended(launch: Launch) -> None:
    """100 + resume + 100 equals 200, bit for bit; and what is refused meanwhile changes nothing."""
    run = launch("--steps", "100", "--lockstep", *QUICK, *WORDS)
    assert run.end() == 0, run.output
    again = mach("resume", "test", "--runs", str(run.runs))
    assert again.returncode == 0
    assert "has finished" in again.stdout
    assert "--steps 200" in again.stdout
    lasted_s = run.status()["elapsed_s"]
    more = launch("--steps", "200", resume=True)
    assert more.end() == 0, more.output
    assert more.status()["before_s"] == lasted_s
    assert "in lock-step from step 100" in more.output
    assert_equals_the_reference(run, 200)
    assert [row["samples"] for row in more.status()["components"]] == [200 * 16] * 2


@pytest.mark.slow
def test_a_killed_run_in_lockstep_goes_on_from_the_last_common_step(launch: Launch) -> None:
    """kill -9 of the launcher after step 100; one component's newest checkpoint is damaged besides."""
    run = launch("--steps", "100000", "--lockstep", *QUICK, *WORDS, "--set", "checkpoint.every_steps=20")
    run.until(lambda status: min(row["step"] for row in status["components"]) > 100)
    kill_launcher(run)
    newest = min(shelf(run, f"c{i}").versions()[0] for i in range(2))
    assert newest >= 100
    state = shelf(run, "c1").path(newest) / STATE
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    more = launch("--steps", str(newest + 80), resume=True)
    assert more.end() == 0, more.output
    assert f"in lock-step from step {newest - 20}" in more.output
    assert_equals_the_reference(run, newest + 80)


@pytest.mark.slow
@pytest.mark.parametrize("every", ["100000", "7"])
def test_a_stop_in_lockstep_saves_the_step_at_which_all_stop(launch: Launch, every: str) -> None:
    """Four components that may be three steps apart, stopped anywhere; what is gone on from is where they stopped."""
    four = tuple("n_components=4" if word == "n_components=2" else word for word in WORDS)
    run = launch("--steps", "100000", "--lockstep", *QUICK, *four, "--set", f"checkpoint.every_steps={every}")
    run.until(lambda status: all(row["step"] > 20 for row in status["components"]))
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output
    rows = run.status()["components"]
    [at] = {row["step"] for row in rows}
    assert {shelf(run, row["component"]).sound(row["component"])[0] for row in rows} == {at}
    assert all((row["state"], row["exit_code"], row["reason"]) == ("stopped", 0, "asked to stop") for row in rows)
    more = launch("--steps", str(at + 50), resume=True)
    assert more.end() == 0, more.output
    assert f"in lock-step from step {at}, " in more.output
    assert_equals_the_reference(run, at + 50, components=4)


@pytest.mark.slow
def test_one_that_hangs_in_a_stop_of_lockstep_is_killed_and_the_others_leave_without_it(launch: Launch) -> None:
    words = ("checkpoint.every_steps=10", "supervise.stalled_ms=60000")
    run = launch("--steps", "100000", "--lockstep", *QUICK, *WORDS, *[w for each in words for w in ("--set", each)])
    hung = run.until(lambda status: all((row["checkpoint"]["step"] or 0) >= 20 for row in status["components"]))
    os.kill(hung["components"][1]["pid"], signal.SIGSTOP)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.output
    c0, c1 = run.status()["components"]
    assert (c0["state"], c0["exit_code"], c0["reason"]) == ("stopped", 0, "asked to stop")
    assert (c1["state"], c1["exit_code"]) == ("stopped", -signal.SIGKILL)
    assert "did not leave in time" in c1["reason"]
    at = max(set(shelf(run, "c0").sound("c0")) & set(shelf(run, "c1").sound("c1")))
    assert at % 10 == 0
    more = launch("--steps", str(at + 30), resume=True)
    assert more.end() == 0, more.output
    assert f"in lock-step from step {at}, " in more.output
    assert_equals_the_reference(run, at + 30)


def test_stopped_damaged_killed_and_gone_on_to_the_end(launch: Launch) -> None:
    run = launch("--components", "2", "--steps", "100000", *QUICK, "--set", "checkpoint.every_s=0.2")
    run.until(lambda status: all((row["checkpoint"]["step"] or 0) > 1 for row in status["components"]))
    refused = mach("resume", "test", "--runs", str(run.runs))
    assert refused.returncode == 2
    assert "is running" in refused.stderr
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output

    rows = {row["component"]: row for row in run.status()["components"]}
    for name, row in rows.items():  # a stop saves the very last step
        assert row["state"] == "stopped"
        assert row["checkpoint"]["step"] == row["step"] == shelf(run, name).versions()[0]
    newest, older = shelf(run, "c1").versions()
    (shelf(run, "c1").path(newest) / STATE).write_bytes(b"")

    changed = mach("resume", "test", "--runs", str(run.runs), "--config", "digits", "--set", "optimiser.lr=0.001")
    assert changed.returncode == 2
    assert "report.every_ms       100 → 500" in changed.stderr
    assert "optimiser.lr" not in changed.stderr
    assert "--set" in changed.stderr

    more = launch("--set", "optimiser.lr=0.001", resume=True)
    more.until(lambda status: all(row["step"] > rows[row["component"]]["step"] for row in status["components"]))
    assert "checkpoint of step" in logs(run, "c1")
    assert f"c0 from step {rows['c0']['step']}, c1 from step {older}\n" in more.output
    assert f"c1: its checkpoint of step {newest} is damaged" in more.output
    assert f"so it goes on from step {older};" in more.component("c1")["checkpoint"]["fallback"]
    kill_launcher(more)
    assert reports(run, "c1")[-1]["incarnation"] == 2
    gone_back = next(report for report in reports(run, "c1") if report["incarnation"] == 2)
    assert older < gone_back["step"] < newest + 2, "the damaged one was not used, the older one was"

    reached = max(row["step"] for row in more.status()["components"])
    last = launch("--steps", str(reached + 100), resume=True)
    assert last.end() == 0, last.output
    for row in last.status()["components"]:
        name = row["component"]
        assert (row["state"], row["incarnation"]) == ("finished", 3)
        assert row["step"] == reached + 100
        assert row["samples"] == 128 * row["step"]
        assert 0 < row["child_steps"] <= row["step"]
        lives = [report["incarnation"] for report in reports(run, name)]
        assert lives == sorted(lives), "metrics are continued"
        assert set(lives) == {1, 2, 3}
        assert read_manifest(shelf(run, name).path(row["step"])).incarnation == 3
        assert {path.suffix for path in (run.directory / "tensorboard" / name).iterdir()} == {".1", ".2", ".3"}
    plans = sorted(path.name for path in (run.directory / "earlier").iterdir())
    assert plans == ["plan-1.json", "plan-2.json"]
    ids = {json.loads(path.read_text())["run_id"] for path in (run.directory / "earlier").iterdir()}
    assert len(ids | {json.loads((run.directory / "plan.json").read_text())["run_id"]}) == 3


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mounts small file systems, which are gone at the end."""
    mounted: list[Path] = []

    def mount(at: Path, options: str) -> None:
        at.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
        mounted.append(at)

    yield mount
    for at in filter(os.path.ismount, reversed(mounted)):
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_or_turns_read_only_stops_no_training(
    disk: Callable[[Path, str], None], launch: Launch, tmp_path: Path
) -> None:
    disk(tmp_path / "disk", "size=8m")
    run = launch(
        *("--components", "2", "--steps", "1000000", *QUICK, "--set", "checkpoint.every_s=0.2"), runs=tmp_path / "disk"
    )
    run.until(lambda status: all((row["checkpoint"]["step"] or 0) > 1 for row in status["components"]))
    filler = tmp_path / "disk" / "filler"
    fill(run, filler)
    full_at = steps_shown(run)
    stuck = {name: shelf(run, name).sound(name) for name in ("c0", "c1")}
    assert all(len(versions) == 2 for versions in stuck.values()), "the previous ones still load"
    full_later = steps_shown(run)
    assert all(full_later[name] > full_at[name] for name in stuck), "training goes on"
    assert {name: shelf(run, name).versions() for name in stuck} == stuck, "the disk was full"
    filler.unlink()
    run.until(
        lambda status: all(row["checkpoint"]["step"] > stuck[row["component"]][0] for row in status["components"])
    )

    folder = shelf(run, "c1").folder
    disk(folder, "ro,size=64k")
    status = run.until(lambda status: status["components"][1]["checkpoint"]["trouble"] != "")
    assert "Read-only file system" in status["components"][1]["checkpoint"]["trouble"]
    assert status["components"][0]["checkpoint"]["trouble"] == ""
    assert "Read-only" in mach("status", "test", "--runs", str(run.runs)).stdout
    before = status["components"][1]["step"]
    run.until(lambda status: status["components"][1]["step"] > before)
    subprocess.run(["umount", str(folder)], check=True)
    run.until(lambda status: status["components"][1]["checkpoint"]["trouble"] == "")
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() == 130, run.output
    log = logs(run, "c1")
    assert log.count("Read-only file system") == 1, "said once"
    assert "checkpoints are written again" in log


@pytest.mark.slow
def test_an_end_that_a_full_disk_cannot_take_is_told_and_resumed(
    disk: Callable[[Path, str], None], launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch, PACE_S="0.03")  # so that the disk is full long before the end, on a fast machine, too
    disk(tmp_path / "disk", "size=24m")
    runs = tmp_path / "disk"
    words = ("--components", "2", "--steps", "300", *QUICK, "--set", "checkpoint.every_s=0.2")
    run = launch(*words, "--set", "model.family=paced:mlp", runs=runs)
    run.until(lambda status: all((row["checkpoint"]["step"] or 0) > 1 for row in status["components"]))
    filler = runs / "filler"
    fill(run, filler)
    assert run.end() == 1, run.output
    kept = {name: shelf(run, name).sound(name) for name in ("c0", "c1")}
    assert all(versions and versions[0] < 300 for versions in kept.values()), "the disk was full at the end"
    assert re.search(r"c\d.*could not save its end: .*No space left on device.*mach resume test", run.output)
    filler.unlink()
    again = launch("--gpus", "cpu", name="test", runs=runs, resume=True)
    assert again.end() == 0, again.output
    assert all(shelf(run, name).versions()[0] == 300 for name in kept)
    assert all((run.directory / "weights" / f"{name}.safetensors").is_file() for name in kept)


def fill(run: Launched, filler: Path) -> None:
    """Until nothing fits: one that was being written makes room when it takes the place of an older one."""
    before, now = None, []
    while now != before:
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # not one byte more
            while file.write(bytes(1 << 16)) == 1 << 16:
                continue
        steps_shown(run)  # status.json lies on the full disk, too: the launcher's own lines tell that time goes on
        before, now = now, [shelf(run, name).versions() for name in ("c0", "c1")]


def steps_shown(run: Launched) -> dict[str, int]:
    """The next block of the launcher's own lines."""
    steps: dict[str, int] = {}
    assert run.process.stdout is not None
    for line in run.process.stdout:
        run.lines.append(line)
        if found := re.search(r"(c\d) training step (\d[\d,]*)", line):
            steps[found[1]] = int(found[2].replace(",", ""))
        if len(steps) == 2:
            return steps
    raise AssertionError("the run ended:\n" + run.output)
