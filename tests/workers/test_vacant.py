"""The name of a refused launch is free again; where anything was learnt it is not."""

import errno
import fcntl
import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bus import address
from cli import cli
from configs.errors import NoSuchRun, RunError
from configs.load import load
from conftest import mach
from fakes import Life, status
from mach.recipes import RECIPES
from workers import vacant
from workers.attempt import Attempt
from workers.commands import check_name
from workers.plan import ProcessPlan, make_plan
from workers.rundir import RunDir
from workers.status import write
from workers.supervisor import Supervisor
from workers.vacant import is_vacant, make_way
from workers.verdict import REFUSED


@pytest.fixture
def refused(tmp_path: Path) -> RunDir:
    """What a refused launch leaves."""
    run = RunDir(tmp_path / "r")
    run.make()
    os.close(run.lock())
    write(run, msgspec.structs.replace(status("failed"), exit_code=REFUSED))
    return run


def test_what_a_refused_launch_left_makes_way(refused: RunDir) -> None:
    assert is_vacant(refused)
    make_way(refused)
    assert not list(refused.path.parent.iterdir())
    make_way(refused)
    refused.make()
    assert not is_vacant(refused), "another launch has begun there"


def test_a_neighbour_of_the_refused_that_had_not_made_a_step_is_in_nobodys_way(refused: RunDir) -> None:
    """It has locked its folder of checkpoints and, told to stop, saved the weights that it began with."""
    for file in ("checkpoints/c0/lock", "weights/c0.safetensors"):
        (refused.path / file).parent.mkdir(parents=True, exist_ok=True)
        (refused.path / file).write_text("")
    make_way(refused)
    assert not refused.path.exists()


@pytest.mark.parametrize("file", ["checkpoints/c0/12/state.safetensors", "notes.txt", "earlier/p"])
def test_where_anything_was_learnt_or_put_by_nothing_is_removed(refused: RunDir, file: str) -> None:
    kept = refused.path / file
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("")
    make_way(refused)
    assert kept.exists()
    assert not is_vacant(refused)


def test_runs_that_ended_otherwise_stay(refused: RunDir) -> None:
    for ended in (status("stopped"), msgspec.structs.replace(status("failed"), exit_code=1), status("training")):
        write(refused, ended)
        make_way(refused)
        assert refused.status.exists()


def test_whose_lock_is_held_stays(refused: RunDir) -> None:
    with (refused.path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_way(refused)
        assert refused.status.exists()


def test_of_two_launches_at_once_the_one_that_came_first_gets_its_lock(
    refused: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has looked before, and comes to the lock when the directory is a new one."""

    def is_vacant_before(run: RunDir) -> bool:
        monkeypatch.undo()
        make_way(run)
        run.make()
        return True

    monkeypatch.setattr(vacant, "is_vacant", is_vacant_before)
    make_way(refused)
    assert not (refused.path / ".lock").exists(), "it keeps its hands off"
    os.close(refused.lock())


def test_a_link_to_what_a_refused_launch_left_stays(refused: RunDir) -> None:
    there = refused.path.rename(refused.path.with_name("there"))
    refused.path.symlink_to(there)
    make_way(refused)
    assert sorted(refused.path.parent.iterdir()) == [refused.path, there]


@pytest.fixture
def bare(tmp_path: Path) -> RunDir:
    """What a launch leaves that is killed before it has written what it planned."""
    run = RunDir(tmp_path / "b")
    run.make()
    os.close(run.lock())
    return run


def test_what_a_launch_left_that_was_killed_before_it_planned_makes_way(bare: RunDir) -> None:
    check_name(bare.path.parent, "b")
    make_way(bare)
    assert not list(bare.path.parent.iterdir())


@pytest.mark.parametrize("what", ["a file", "a link", "no lock", "a lock of nobody", "a launcher"])
def test_what_is_more_than_that_or_not_known_to_be_a_launchs_stays(bare: RunDir, what: str) -> None:
    lock = os.open(os.devnull, os.O_RDONLY)
    match what:
        case "a file":
            (bare.path / "logs" / "notes.txt").touch()
        case "a link":
            (bare.path / "weights" / "there").symlink_to(bare.path.parent)
        case "no lock":
            bare.lock_file.unlink()
        case "a lock of nobody":
            bare.lock_file.write_text("")
        case _:
            lock = bare.lock()
    with pytest.raises(RunError, match="is no run of mach, or one that another launch begins just now"):
        check_name(bare.path.parent, "b")
    make_way(bare)
    os.close(lock)
    assert bare.path.exists()


def test_a_launch_writes_its_plan_first_with_which_alone_it_can_be_gone_on_with(
    bare: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets, written = address.make_directory(), list[Path]()
    monkeypatch.setattr("workers.supervisor.replace", lambda path, content: written.append(path))
    supervisor = Supervisor(make_plan(load("digits", (), RECIPES), run="b", directory=bare.path, sockets=sockets))
    supervisor._plan_down()
    supervisor.__exit__(None, None, None)
    assert written == [bare.plan, bare.config]


def test_where_a_launch_takes_the_place_of_a_run_mach_status_says_that_there_is_none(refused: RunDir) -> None:
    """A batch script then launches, and what was corrected in its line is read; what is told of the run stays."""

    def told() -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["status", "r", "--runs", str(refused.path.parent)])
        return result.exit_code, result.stdout.split("\n")[0][:13]

    assert told() == (NoSuchRun.exit_code, "run r  failed")
    learnt = refused.path / "checkpoints" / "c0" / "12" / "state.safetensors"
    learnt.parent.mkdir(parents=True)
    learnt.touch()
    assert told() == (2, "run r  failed")


def starting(directory: Path, fails: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three are to be started, and the system has a limit at the one of that number, from 0."""
    config, sockets = load("digits", ("n_components=3",), RECIPES), address.make_directory()
    plan = make_plan(config, run="r", directory=directory, sockets=sockets)
    supervisor, lives = Supervisor(plan), [Life() for _ in range(fails)]

    def start(process: ProcessPlan, incarnation: int, now: float) -> Attempt:
        if process.index == fails:
            raise OSError(errno.EMFILE, "Too many open files")
        return lives[process.index].attempt

    monkeypatch.setattr(supervisor, "_start", start)
    monkeypatch.setattr("workers.forkserver.warm", lambda: None)
    try:
        supervisor.__enter__()
    finally:
        for life in lives:
            life.close()


@pytest.mark.parametrize("fails", [0, 1])
def test_the_name_of_a_launch_that_came_to_a_limit_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    with pytest.raises(OSError, match="Too many"):
        starting(tmp_path / "r", fails, monkeypatch)
    assert (tmp_path / "r").exists() == (fails > 0), "what began may have left a log"
    check_name(tmp_path, "r")
    make_way(RunDir(tmp_path / "r"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["restore", "lock", "config"])
def test_a_launch_without_room_for_its_files_leaves_none_and_does_not_speak_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = ("workers.supervisor", "replace") if what == "config" else ("workers.rundir.RunDir", what)
    monkeypatch.setattr(".".join(place), full)
    with pytest.raises(OSError, match="No space"):
        starting(tmp_path / "r", 0, monkeypatch)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_a_launch_whose_directory_is_anothers_removes_nothing(refused: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write(refused, status("finished"))
    with pytest.raises(FileExistsError):
        starting(refused.path, 0, monkeypatch)
    assert refused.status.exists()


@pytest.mark.slow
def test_a_launch_that_was_refused_and_mended_runs_under_its_name(tmp_path: Path) -> None:
    words = ("--components", "1", "--steps", "2", "--gpus", "cpu", "--name", "r", "--runs", str(tmp_path))
    wrong = mach("launch", *words, "--set", "model.family=mlpp")
    assert (wrong.returncode, "did you mean 'mlp'" in wrong.stderr) == (2, True)
    again = mach("launch", *words, "--set", "model.family=mlppp")
    assert (again.returncode, "did you mean 'mlp'" in again.stderr) == (2, True), "as often as it takes"
    mended = mach("launch", *words)
    assert mended.returncode == 0, mended.stderr
    taken = mach("launch", *words)
    assert (taken.returncode, "has finished" in taken.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
