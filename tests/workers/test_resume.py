"""What a run goes on with: its own configuration, what --set allows, the next incarnation, the common step."""

import errno
import fcntl
import os
import re
import time
from pathlib import Path

import msgspec
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from configs.errors import ConfigError, RunError
from configs.load import dump, load
from mach.checkpoint import save_state
from mach.recipes import RECIPES
from mach.shelf import MANIFEST, STATE, Shelf
from mach.state import State
from workers import commands, resume
from workers import devices as devices_of
from workers import status as status_file
from workers.background import unwritable
from workers.plan import Plan, make_plan
from workers.resume import (
    check_length,
    common_step,
    config_of,
    has_finished,
    recorded_plan,
    resumed_plan,
    same_devices,
    where,
)
from workers.rundir import RunDir, replace
from workers.status import Status

WORDS = ("n_components=2", "optimiser.lr=0.002", "components.1.stub={latency_ms: 3}")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory as a launch leaves it."""
    run = RunDir(tmp_path / "run")
    run.make()
    keep_plan(run, plan_of(run, *WORDS))
    return run


def plan_of(run: RunDir, *settings: str, lockstep: bool = False) -> Plan:
    config = load("digits", settings, RECIPES)
    return make_plan(config, run="run", directory=run.path, sockets=run.path, lockstep=lockstep)


def keep_plan(run: RunDir, plan: Plan) -> None:
    run.config.write_text(dump(plan.config))
    run.plan.write_bytes(msgspec.json.encode(plan))


def save(run: RunDir, component: str, version: int, incarnation: int = 1, *, seconds: float = 0.0) -> None:
    save_state(
        Shelf(run.checkpoints(component)),
        State({"w": torch.zeros(1)}, {"life": {"seconds": seconds}}),
        component=component,
        version=version,
        incarnation=incarnation,
        config="",
        keep=5,
    )


def status_of(**fields: object) -> Status:
    given = {"run": "run", "state": "finished", "exit_code": 0, "components": [], "elapsed_s": 1.0, "started_at": 0.0}
    return Status(**given | {"launcher_pid": 1, "launcher_started": "0", "boot": "", "written_s": 0.0} | fields)  # type: ignore[arg-type]


def test_without_words_it_is_the_recorded_configuration(run: RunDir) -> None:
    plan = recorded_plan(run)
    assert config_of(plan, None, ()) == plan.config
    run.config.unlink()
    assert config_of(plan, None, ()) == plan.config


def test_what_a_setting_names_may_change_and_nothing_else(run: RunDir, tmp_path: Path) -> None:
    plan = recorded_plan(run)
    config = config_of(plan, None, ("optimiser.lr=0.1", "bus={window: 5}", "components.1.stub.latency_ms=9"))
    assert (config.optimiser.lr, config.bus.window) == (0.1, 5)
    assert config.bus.timeout_ms == plan.config.bus.timeout_ms
    file = tmp_path / "other.yaml"
    file.write_text(run.config.read_text().replace("lr: 0.002", "lr: 0.1").replace("window: 2", "window: 3"))
    with pytest.raises(ConfigError) as refused:
        config_of(plan, str(file), ("optimiser.lr=0.3",))
    text = str(refused.value)
    assert "other.yaml" in text
    assert "bus.window  2 → 3" in text
    assert "optimiser" not in text
    assert config_of(plan, str(file), ("optimiser.lr=0.3", "bus.window=3")).optimiser.lr == 0.3


def test_a_config_yaml_that_was_edited_is_refused_by_name(run: RunDir) -> None:
    run.config.write_text(run.config.read_text().replace("lr: 0.002", "lr: 0.1"))
    with pytest.raises(ConfigError, match=r"config.yaml: is not what(.|\n)*optimiser.lr  0.002 → 0.1"):
        config_of(recorded_plan(run), None, ())
    assert config_of(recorded_plan(run), None, ("optimiser.lr=0.1",)).optimiser.lr == 0.1


@pytest.mark.parametrize(
    "setting", ["model.embedding=3", "n_components=3", "seed=9", "graph=chain", "data={split_seed: 4}"]
)
def test_what_would_be_another_run_is_refused_though_said(run: RunDir, setting: str) -> None:
    with pytest.raises(ConfigError, match="another run"):
        config_of(recorded_plan(run), None, (setting,))


def test_mistakes_are_named(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        config_of(recorded_plan(run), None, ("optimiser.rl=1",))
    with pytest.raises(ConfigError, match=r"--set train.steps=no: train.steps"):
        config_of(recorded_plan(run), None, ("train.steps=no",))
    run.plan.write_text("{}")
    with pytest.raises(RunError, match="no plan of this version"):
        recorded_plan(run)
    run.plan.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        recorded_plan(run)


def test_finished_is_finished_until_more_is_asked_for(run: RunDir) -> None:
    old = load("digits", ("train.steps=100",), RECIPES)
    done = status_of()
    assert has_finished(done, old, old)
    assert has_finished(done, old, load("digits", ("train.steps=90",), RECIPES))
    assert not has_finished(done, old, load("digits", ("train.steps=101",), RECIPES))
    timed = load("digits", ("train.minutes=2",), RECIPES)
    assert not has_finished(done, old, timed)
    assert has_finished(done, timed, timed)
    assert not has_finished(done, timed, old)
    assert not has_finished(status_of(state="stopped", exit_code=130), old, old)
    assert not has_finished(status_of(exit_code=1), old, old), "a component had failed"


def test_incarnations_count_on_from_wherever_they_were_seen(run: RunDir) -> None:
    save(run, "c0", 10, incarnation=7)
    save(run, "c0", 20, incarnation=3)
    old = recorded_plan(run)
    plan = resumed_plan(old, old.config, None, run.path / "sockets", ("cpu",))
    assert [process.incarnation for process in plan.processes] == [8, 2]
    assert plan.resumed
    assert plan.resume_at is None
    assert plan.run_id != old.run_id
    assert plan.sockets == str(run.path / "sockets")
    assert where(run, plan) == "run run goes on: c0 from step 20"
    (Shelf(run.checkpoints("c0")).path(10) / MANIFEST).write_text("damaged")
    plan = resumed_plan(old, old.config, None, run.path, ("cpu",))
    assert [process.incarnation for process in plan.processes] == [4, 2]


def test_lockstep_goes_on_from_the_newest_step_that_is_whole_in_all(run: RunDir) -> None:
    old = plan_of(run, "n_components=2", lockstep=True)
    keep_plan(run, old)
    assert common_step(run, old) == 0
    for component, versions in (("c0", (100, 200, 300)), ("c1", (100, 200))):
        for version in versions:
            save(run, component, version)
    plan = resumed_plan(old, old.config, None, run.path, ("cpu",))
    assert (plan.resume_at, plan.lockstep) == (200, True)
    assert "from step 200" in where(run, plan)
    manifest = Shelf(run.checkpoints("c1")).path(200) / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-1])
    assert common_step(run, old) == 100
    first, *more = where(run, resumed_plan(old, old.config, None, run.path, ("cpu",))).splitlines()
    assert first == "run run goes on in lock-step from step 100, the newest that all have"
    assert [line.partition(" (")[0] for line in more] == ["c1: its checkpoint of step 200 is damaged"]


def test_what_is_announced_is_what_is_gone_on_from_and_damaged_ones_are_named(run: RunDir) -> None:
    keep_plan(run, old := plan_of(run, "n_components=3"))
    for component in ("c0", "c1", "c2"):
        for version in (600, 700):
            save(run, component, version)
    for component, version in (("c0", 600), ("c0", 700), ("c1", 700)):
        with (Shelf(run.checkpoints(component)).path(version) / STATE).open("ab") as state:
            state.write(b"\0")
    said = where(run, resumed_plan(old, old.config, None, run.path, ("cpu",))).splitlines()
    assert said[0] == "run run goes on: c0 from the beginning, c1 from step 600, c2 from step 700"
    assert [line.partition(" (")[0] for line in said[1:]] == [
        "c0: its checkpoints of steps 700, 600 are damaged",
        "c1: its checkpoint of step 700 is damaged",
    ]
    assert said[1].endswith("starts from the beginning; all that it had learnt is lost")
    assert said[2].endswith("goes on from step 600; what it had learnt after that is lost")


@pytest.mark.parametrize("lockstep", [False, True])
def test_steps_that_all_have_done_are_refused_since_they_count_from_the_beginning(run: RunDir, lockstep: bool) -> None:
    keep_plan(run, old := plan_of(run, "n_components=2", lockstep=lockstep))
    for component, version in (("c0", 700), ("c0", 695), ("c1", 695)):
        save(run, component, version)

    def check(*settings: str) -> None:
        check_length(old, config_of(old, None, settings))

    for steps in (100, 695):
        with pytest.raises(ConfigError, match=rf"--steps {steps}: counts .* 695 are done .* to go on to 1,000 steps$"):
            check(f"train.steps={steps}")
    check("train.steps=696")
    check("train.minutes=1", "train.steps=100")
    keep_plan(run, old := plan_of(run, "n_components=2", "train.steps=695", lockstep=lockstep))
    check("train.batch_size=64")  # killed between its last step and its end, which is still to come


def test_minutes_that_all_have_done_are_refused_as_steps_are(run: RunDir) -> None:
    for component, seconds in (("c0", 150.0), ("c1", 120.0)):
        save(run, component, 500, seconds=seconds)
    keep_plan(run, old := plan_of(run, "n_components=2", "train.minutes=3"))

    def check(*settings: str) -> None:
        check_length(old, config_of(old, None, settings))

    for minutes in ("0.5", "2"):
        said = rf"^--minutes {minutes}: counts .* and 2.00 are done by all .* to go on to 3 minutes$"
        with pytest.raises(ConfigError, match=said):
            check(f"train.minutes={minutes}")
    check("train.minutes=2.1")
    check("train.minutes=3")
    keep_plan(run, old := plan_of(run, "n_components=3", "train.minutes=3"))
    check("train.minutes=0.1")  # c2 has no checkpoint


def test_fewer_steps_than_are_done_are_refused_and_the_run_is_left_as_it_was(run: RunDir) -> None:
    for component in ("c0", "c1"):
        save(run, component, 500)
    keep_plan(run, plan_of(run, "n_components=2"))
    status_file.write(run, status_of(state="stopped", exit_code=130))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    found = CliRunner().invoke(cli, ["resume", "run", "--runs", str(run.path.parent), "--steps", "100"])
    assert (found.exit_code, found.stdout) == (2, "")
    assert "--steps 100: counts from the beginning" in found.stderr
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_damaged_plan_is_told_with_what_to_do(run: RunDir) -> None:
    run.plan.write_bytes(run.plan.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"is damaged .*; launch another run .* --config .*/run/config\.yaml$"):
        recorded_plan(run)
    keep_plan(run, plan_of(run, *WORDS))
    for _ in range(2):
        run.reopen()
    run.plan.write_bytes(run.plan.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"; cp \S+/earlier/plan-2\.json \S+/run/plan\.json, then mach resume run"):
        recorded_plan(run)


def test_a_run_directory_may_have_been_moved(run: RunDir, tmp_path: Path) -> None:
    moved = RunDir(run.path.rename(tmp_path / "elsewhere"))
    plan = recorded_plan(moved)
    assert (plan.run, plan.directory) == ("elsewhere", str(moved.path))
    assert resumed_plan(plan, config_of(plan, None, ()), None, run.path, ("cpu",)).directory == str(moved.path)


def test_devices_are_those_it_had(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["0", "1", "2"]
    monkeypatch.setattr(resume, "find_devices", lambda: tuple(there))
    plan = plan_of(run, "n_components=3")
    assert same_devices(plan) == "cpu"
    config = load("digits", ("n_components=3",), RECIPES)
    dealt = make_plan(config, run="r", directory=run.path, sockets=run.path, devices=("0", "1"))
    assert same_devices(dealt) == "0,1"
    there.pop(1)
    with pytest.raises(ConfigError, match=r"recorded on GPU 1, which is not here; there are: 0, 2: give --gpus 0,2"):
        same_devices(dealt)


def test_a_run_whose_devices_are_gone_is_refused_without_a_word_of_what_nobody_typed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "find_devices", lambda: ("0",))
    monkeypatch.setattr(devices_of, "find_devices", lambda: ("0",))
    monkeypatch.setattr(commands, "warm", lambda: None)
    config = load("digits", WORDS, RECIPES)
    keep_plan(run, make_plan(config, run="run", directory=run.path, sockets=run.path, devices=("3",)))
    done = CliRunner().invoke(cli, ["resume", "run", "--runs", str(run.path.parent)])
    assert done.exit_code == 2
    assert done.output == ("mach: the run was recorded on GPU 3, which is not here; there are: 0: give --gpus 0\n")
    told = CliRunner().invoke(cli, ["resume", "--help"], terminal_width=200).output
    assert "Devices to deal anew; default: those it had." in told


def test_a_run_directory_is_taken_up_again_with_its_last_plan_put_by(run: RunDir) -> None:
    run.metrics("c0").write_text("kept")
    for number in (1, 2):
        run.reopen()
        assert (run.path / "earlier" / f"plan-{number}.json").read_bytes() == run.plan.read_bytes()
    assert run.metrics("c0").read_text() == "kept"
    with pytest.raises(FileExistsError):
        run.make()


@pytest.mark.parametrize("trouble", ["write_bytes", "folder", "directory"])
def test_of_a_file_that_cannot_be_written_the_place_is_named_not_a_draft_that_nobody_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def refused(draft: Path, content: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(draft))

    place = tmp_path / "earlier"
    if trouble == "write_bytes":
        place.mkdir()
        monkeypatch.setattr(Path, "write_bytes", refused)
    elif trouble == "folder":
        place.write_text("in the way")
    else:
        place = place / "plan-1.json"
        place.mkdir(parents=True)
    with pytest.raises(OSError, match=re.escape(f"'{place}'")) as raised:
        replace(tmp_path / "earlier" / "plan-1.json", b"{}")
    way = "make it writable, then mach resume r"
    assert str(unwritable(tmp_path, raised.value, "mach resume r")) == f"{place}: {raised.value.strerror}; {way}"


def test_one_launcher_at_a_time(run: RunDir) -> None:
    lock = run.lock()
    with pytest.raises(BlockingIOError):
        run.lock()
    os.close(lock)
    os.close(run.lock())


def test_who_looks_whether_a_run_is_locked_is_waited_out_and_taken_for_no_launcher(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(run.lock())
    look = os.open(run.lock_file, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    assert not run.locked()
    monkeypatch.setattr(time, "sleep", lambda _: os.close(look))
    lock = run.lock()
    assert run.locked()
    os.close(lock)


def test_a_run_that_another_launcher_begins_to_go_on_with_has_not_finished(run: RunDir) -> None:
    """Its status.json is of before until the first process is started, which takes as long as loading torch."""
    status_file.write(run, status_of())

    def resumed() -> tuple[int, str]:
        found = CliRunner().invoke(cli, ["resume", "run", "--runs", str(run.path.parent)])
        return found.exit_code, found.output

    assert (resumed()[0], "has finished" in resumed()[1]) == (0, True), "no lock was ever taken"
    lock = run.lock()
    code, said = resumed()
    assert (code, f"is running (pid {os.getpid()}); to stop it: mach stop run" in said) == (2, True)
    run.lock_file.write_text("")  # who has it could not say so
    code, said = resumed()
    assert (code, "another launcher is running this run; mach stop run" in said) == (2, True)
    os.close(lock)
    assert resumed()[0] == 0


def test_seconds_count_on_over_all_launches(run: RunDir) -> None:
    def after(status: Status | None) -> Plan:
        old = recorded_plan(run)
        return resumed_plan(old, old.config, status, Path("s"), ("cpu",))

    assert after(None).before_s == 0.0
    once = after(status_of(elapsed_s=42.0))
    run.plan.write_bytes(msgspec.json.encode(once))
    assert once.before_s == 42.0
    assert after(status_of(elapsed_s=8.0, before_s=42.0)).before_s == 50.0
    assert after(None).before_s == 42.0, "at least"
