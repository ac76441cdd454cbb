"""What the commands read from a run's files, without any process."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner

from bus import address
from cli import cli
from configs.errors import ConfigError, RunError
from configs.tree import Config
from fakes import component, status
from workers import output
from workers.background import BEGUN, MAKING, TAKEN
from workers.commands import check_name, log_lines, restart, stop, train
from workers.finding import find_component
from workers.foreground import Opening
from workers.launcher import Launcher, outcome
from workers.options import Group
from workers.plan import Plan
from workers.rundir import RunDir
from workers.status import ComponentStatus, RunState, write


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "r")
    run.make()
    for name in ("c0.1", "c1.2", "c1.10", "c1.1", "c10.1", "launcher"):
        (run.path / "logs" / f"{name}.log").write_text(f"of {name}\n")
    write(run, status("finished"))
    return run


def test_logs_come_by_component_and_then_by_life(run: RunDir) -> None:
    names = [line.split()[0] for line in log_lines(run, None, follow=False)]
    assert names == ["c0.1", "c1.1", "c1.2", "c1.10", "c10.1", "launcher"]


@pytest.mark.parametrize(("only", "count"), [("c1", 3), ("c1.2", 1), ("launcher", 1)])
def test_one_component_or_one_life_of_it(run: RunDir, only: str, count: int) -> None:
    lines = list(log_lines(run, only, follow=False))
    assert len(lines) == count
    assert all(line.startswith(only) for line in lines)


def test_one_that_is_not_there_is_named_with_those_that_are(run: RunDir) -> None:
    with pytest.raises(RunError, match=r"no log of 'c2'; here are: c0\.1, c1\.1"):
        list(log_lines(run, "c2", follow=False))


def test_who_follows_sees_lives_that_begin_later_and_whole_lines_only(
    run: RunDir, hold: Callable[[RunDir], RunDir]
) -> None:
    write(hold(run), status("training"))
    lines = log_lines(run, "c0", follow=True)
    assert next(lines) == "c0.1  of c0.1"
    with run.log("c0", 1).open("a") as log:
        log.write("half")
    run.log("c0", 2).write_text("anew\n")
    assert next(lines) == "c0.2  anew"
    with run.log("c0", 1).open("a") as log:
        log.write(" a line\n")
    write(run, status("finished"))
    assert list(lines) == ["c0.1  half a line"]


def test_what_has_ended_can_be_stopped_again_and_not_restarted(run: RunDir) -> None:
    assert stop(run, 15) == "run r has finished already"  # type: ignore[arg-type]
    with pytest.raises(RunError, match="nothing to restart"):
        restart(run, "c0")


@pytest.mark.parametrize(
    ("script", "stopped", "number", "told"),
    [
        (
            "",
            True,
            signal.SIGQUIT,
            "is stopped (SIGSTOP, or Ctrl-Z); kill -CONT {0} has it go on, and end; kill -9 {0} ends it",
        ),
        ("trap '' QUIT; ", False, signal.SIGQUIT, "did not end; kill -9 {0} ends it, and its components with it"),
        ("trap '' TERM; ", False, signal.SIGTERM, "did not end; mach stop {1} --now"),
    ],
)
def test_what_ends_a_launcher_that_does_not_end_is_told(
    run: RunDir,
    hold: Callable[[RunDir], RunDir],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    stopped: bool,
    number: signal.Signals,
    told: str,
) -> None:
    monkeypatch.setattr("workers.commands.PATIENCE_S", 0.0)
    run.config.write_text("supervise: {grace_ms: 1}")
    launcher = subprocess.Popen(["sh", "-c", f"{script}echo; read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    try:
        launcher.stdout.readline()
        if stopped:
            launcher.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, launcher.pid, os.WSTOPPED | os.WNOWAIT)
        running = status("training")
        running.launcher_pid, running.launcher_started = launcher.pid, address.started(launcher.pid)
        write(hold(run), running)
        with pytest.raises(RunError, match=re.escape(told.format(launcher.pid, run.called))):
            stop(run, number)
        if stopped:
            again = f"kill -CONT {launcher.pid} has it go on; then mach restart {run.called} c0 once more"
            with pytest.raises(RunError, match=re.escape(again)):
                restart(run, "c0")
    finally:
        launcher.kill()
        launcher.communicate()


def test_a_run_of_another_user_is_told_to_be_one(
    run: RunDir, hold: Callable[[RunDir], RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    running = status("training")
    running.components = [component("c0", pid=0)]
    write(hold(run), running)
    monkeypatch.setattr("bus.kernel.pidfd_send_signal", refused)
    me = psutil.Process().username()
    for words in (["stop", "r"], ["stop", "r", "--now"], ["restart", "r", "c0"], ["chaos", "r", "--kill", "1/s"]):
        said = CliRunner().invoke(cli, [*words, "--runs", str(run.path.parent)])
        told = f"mach: run r is of user {me} (its launcher is pid {os.getpid()}): do this as that user"
        assert (said.exit_code, said.output) == (2, told + "\n")


LAUNCHER = """
import subprocess, sys
helper = "import os, sys; os.read(int(sys.argv[2]), 1); open(sys.argv[1], 'w')"
subprocess.Popen([sys.executable, "-c", helper, *sys.argv[1:]], close_fds=False)
print(1, flush=True)
input()
"""
"""With a helper that goes on when it has ended, until it is let go."""


def test_a_stop_waits_for_the_launcher_and_those_below_it(
    run: RunDir, hold: Callable[[RunDir], RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def let_go(launcher: Launcher, within_s: float) -> None:
        go.close()
        see_helpers_end(launcher, within_s)

    see_helpers_end = Launcher.see_helpers_end
    monkeypatch.setattr(Launcher, "see_helpers_end", let_go)
    waits, end = os.pipe()
    words = [sys.executable, "-c", LAUNCHER, str(tmp_path / "ended"), str(waits)]
    with (
        open(end, "wb") as go,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[waits]) as launcher,
    ):
        os.close(waits)
        assert launcher.stdout is not None
        launcher.stdout.readline()
        running = status("training")
        running.launcher_pid, running.launcher_started = launcher.pid, address.started(launcher.pid)
        write(hold(run), running)
        with suppress(RunError):  # it has left no verdict
            stop(run, signal.SIGTERM)
        assert (tmp_path / "ended").exists()


@pytest.mark.parametrize(
    ("state", "row", "at_once", "told"),
    [
        ("stopped", {"state": "stopped", "exit_code": 0}, False, ""),
        ("stopped", {"state": "stopped", "exit_code": -9, "reason": "killed"}, True, ""),
        ("stopped", {"state": "stopped", "exit_code": -9, "reason": "killed"}, False, "c1: killed"),
        ("stopped", {"state": "failed", "exit_code": 4, "reason": "disk full"}, False, "c1: disk full"),
        ("finished", {"state": "finished", "exit_code": -11}, False, ""),
        ("failed", {"state": "training"}, True, "why"),
    ],
)
def test_who_stops_a_run_is_told_by_the_exit_code_whether_all_is_saved(
    run: RunDir, state: RunState, row: dict[str, object], at_once: bool, told: str
) -> None:
    before = status("training")
    before.components = [
        component("c0", state="failed", exit_code=1),
        component("c1"),
        component("c2", state="restarting"),
    ]
    now = status(state)
    waited = component("c2", state="stopped", exit_code=-9, reason="the run ended before its next life began")
    now.reason, now.components = "why", [before.components[0], component("c1", **row), waited]
    write(run, now)
    has = {"stopped": "been stopped"}.get(state, state)
    if not told:
        assert outcome(run, before, at_once=at_once) == f"run r has {has}"
        return
    with pytest.raises(RunError, match=f"^run r has {has}, and not all that it had learnt is saved: {told}$") as error:
        outcome(run, before, at_once=at_once)
    assert error.value.exit_code == 1


def test_a_restart_of_nobody_names_those_that_there_are(run: RunDir, hold: Callable[[RunDir], RunDir]) -> None:
    """In place of the words of a parser that misses an argument."""
    running = status("training")
    row = {"kind": "trainer", "incarnation": 1, "pid": 0, "device": "cpu", "state": "training"}
    running.components = [ComponentStatus(component=name, **row) for name in ("c0", "c1")]  # type: ignore[arg-type]
    write(hold(run), running)
    sentence = f"mach: run r: say which component is to begin anew, of c0, c1: mach restart {run.called} c1\n"
    for words in ((), ("r",)):
        result = CliRunner().invoke(cli, ["restart", *words, "--runs", str(run.path.parent)])
        assert (result.exit_code, result.output) == (2, sentence)


def test_a_component_alone_is_one_of_the_newest_run(run: RunDir) -> None:
    runs = ("--runs", str(run.path.parent))
    said = {word: CliRunner().invoke(cli, ["logs", word, *runs]).output for word in ("c1", "c1.2", "r")}
    assert [line.split()[0] for line in said["c1"].splitlines()] == ["c1.1", "c1.2", "c1.10"]
    assert said["c1.2"] == "c1.2  of c1.2\n"
    assert len(said["r"].splitlines()) == 6
    assert "has finished; there is nothing to restart" in CliRunner().invoke(cli, ["restart", "c1", *runs]).output


def test_a_run_that_is_called_like_a_component_is_that_run(run: RunDir) -> None:
    other = RunDir(run.path.parent / "c1")
    other.make()
    write(other, status("finished"))
    assert find_component(run.path.parent, "c1", None) == (other, None)
    assert find_component(run.path.parent, "r", "c1") == (run, "c1")


@pytest.mark.parametrize("chosen", [True, False])
def test_a_name_taken_at_the_very_moment_is_refused_if_it_was_chosen_and_else_another_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: bool
) -> None:
    """Another launch makes the directory between our look and our own attempt to make it."""
    tried: list[str] = []
    told: list[bytes] = []

    def launched(directory: Path, config: Config, plan_at: Callable[[Path], tuple[Plan, Opening]]) -> int:
        plan, opening = plan_at(tmp_path)
        assert opening is not None
        tried.append(plan.run)
        if len(tried) == 1:
            RunDir(directory).make()  # the other one is faster
        RunDir(directory).make()
        opening()
        return 0

    monkeypatch.setattr("workers.commands.launched", launched)
    other = None if chosen else iter(["r-2"]).__next__
    if chosen:
        with pytest.raises(RunError, match="choose another --name"):
            train(Config(), tmp_path, "r", ("cpu",), lockstep=False, other=other, begun=told.append)
    else:
        assert train(Config(), tmp_path, "r", ("cpu",), lockstep=False, other=other, begun=told.append) == 0
    assert tried == (["r"] if chosen else ["r", "r-2"])
    assert told == [MAKING, TAKEN if chosen else BEGUN]


def test_a_file_in_the_way_of_all_runs_is_not_taken_for_a_name_that_is_taken(tmp_path: Path) -> None:
    """Or one name after the other would be tried, for ever."""
    (tmp_path / "afile").write_text("")
    with pytest.raises(ConfigError, match="afile is no directory"):
        train(Config(), tmp_path / "afile", "r", ("cpu",), lockstep=False, other=iter([]).__next__)


def test_commands_are_told_where_a_run_lies_unless_that_is_the_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[[RunDir], RunDir]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunDir(Path("runs/r")).called == RunDir(tmp_path / "runs" / "r").called == "r"
    elsewhere = RunDir(tmp_path / "my runs" / "r")
    assert elsewhere.called == f"r --runs '{tmp_path / 'my runs'}'"
    elsewhere.path.mkdir(parents=True)
    write(hold(elsewhere), status("training"))
    with pytest.raises(RunError, match=f"mach stop {elsewhere.called}$"):
        check_name(elsewhere.path.parent, "r")


def test_the_name_of_a_run_without_a_status_is_taken_by_a_run(run: RunDir) -> None:
    run.plan.write_text("{}")
    run.status.unlink()
    with pytest.raises(RunError, match=r"no room for it; .* mach resume r .*; or choose another --name$"):
        check_name(run.path.parent, "r")


def test_a_name_that_leads_nowhere_is_taken(tmp_path: Path) -> None:
    (tmp_path / "r").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="choose another --name"):
        check_name(tmp_path, "r")


@pytest.mark.parametrize("disguised", [True, False])
def test_an_interrupt_of_a_command_that_trains_here_is_one_sentence_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], disguised: bool
) -> None:
    @click.group(cls=Group)
    def program() -> None: ...

    @program.command()
    def train() -> None:
        if disguised:  # as Python 3.11 does when one comes while it makes a class
            raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "take", lambda: None)
    monkeypatch.setattr("sys.argv", ["mach", "train"])
    assert output.run(program) == 130
    assert capsys.readouterr() == ("", "mach: interrupted\n")
