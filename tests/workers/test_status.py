"""A run read from its files alone: fresh, old, crashed, torn; and the shape of the JSON."""

import os
import resource
import shutil
import signal
import subprocess
import time
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bus import address
from cli import cli
from configs.errors import NoSuchRun, RunError
from configs.tree import Config
from fakes import component
from workers import screen
from workers.commands import check_name, restart, resume, stop
from workers.finding import find_component, find_run
from workers.health import exit_code_of, lacking, untrained
from workers.plan import make_plan
from workers.report import Accuracies, Checkpoint, Losses, Messages, Peer, Spread, Staleness
from workers.rundir import RunDir
from workers.status import (
    STALE_S,
    ComponentStatus,
    Failure,
    Status,
    reached,
    read,
    write,
)
from workers.victims import running

Hold = Callable[[RunDir], RunDir]


def status(**fields: object) -> Status:
    base = {
        "run": "r",
        "state": "training",
        "launcher_pid": os.getpid(),
        "launcher_started": address.started(os.getpid()),
        "boot": address.boot(),
        "started_at": 1000.0,
        "written_s": 1010.0,
        "elapsed_s": 10.0,
        "components": [component()],
    }
    return Status(**(base | fields))


def run_with(tmp_path: Path, content: Status, name: str = "r") -> RunDir:
    run = RunDir(tmp_path / name)
    run.make()
    run.plan.write_text("{}")
    write(run, content)
    return run


def test_a_fresh_run_reads_as_written(tmp_path: Path, hold: Hold) -> None:
    found = read(hold(run_with(tmp_path, status())), now=1010.2)
    assert found.state == "training"
    assert found.components[0].state == "training"
    assert found.components[0].last_seen_s == pytest.approx(0.7)
    assert exit_code_of(found) == 0


def test_what_a_run_had_come_to_is_read_without_the_troubles_of_then(tmp_path: Path) -> None:
    kept = Checkpoint(step=20, age_s=None, trouble="disk full", fallback="an older one")
    run = run_with(tmp_path, status(components=[component(step=20, samples=640, rate=9.0, checkpoint=kept)]))
    (came,) = reached(run).values()
    assert (came["step"], came["samples"], came["checkpoint"]) == (20, 640, Checkpoint(step=20))
    assert "rate" not in came
    run.status.write_text("{")
    assert reached(run) == {}


@pytest.mark.parametrize("state", ["training", "waiting"])
def test_who_cannot_save_is_not_healthy(state: str) -> None:
    kept = Checkpoint(step=20, trouble="training has diverged, so no checkpoint is written")
    assert exit_code_of(status(components=[component(), component("c1", state=state, checkpoint=kept)])) == 1
    assert exit_code_of(status(components=[component(checkpoint=Checkpoint(step=20))])) == 0


def test_losses_that_are_no_numbers_are_shown_as_such_and_null_in_json(tmp_path: Path) -> None:
    nan = float("nan")
    row = component(loss=Losses(target=nan, student=nan, not_finite=["target", "student"]))
    run = run_with(tmp_path, status(components=[row]))
    assert msgspec.json.decode(run.status.read_bytes())["components"][0]["loss"]["target"] is None
    (found,) = read(run).components
    assert "loss nan student" in screen.plain_line(found)
    assert found.loss.distill is None, "it never was one"
    assert msgspec.json.decode(msgspec.json.encode(found.loss))["target"] is None


def test_a_run_whose_status_found_no_room_is_a_run(tmp_path: Path) -> None:
    run = run_with(tmp_path, status(), "c1")
    os.utime(run_with(tmp_path, status(), "older").plan, (1e9, 1e9))
    run.status.unlink()
    assert find_run(tmp_path, "c1") == find_run(tmp_path, None) == run
    assert find_component(tmp_path, "c1", None) == (run, None)
    with pytest.raises(RunError, match=r"status\.json is not written yet, or there was no room .* resume c1 --runs"):
        read(run)


def test_a_run_is_called_like_its_directory_also_where_that_was_renamed_or_copied(tmp_path: Path) -> None:
    run_with(tmp_path / "runs", status()).path.rename(tmp_path / "runs" / "moved")
    words = ("--runs", str(tmp_path / "runs"))
    shown = [CliRunner().invoke(cli, [*command, *words]).stdout for command in (["runs"], ["status", "moved"])]
    assert shown[0].splitlines()[1].startswith("moved ")
    assert shown[1].startswith("run moved  ")
    assert read(RunDir(tmp_path / "runs" / "moved")).run == "moved"


@pytest.mark.parametrize("damage", [b"", b'{"run": "r', b'{"run": "\xff"}'])
def test_a_damaged_status_is_told_from_one_of_another_version(tmp_path: Path, damage: bytes) -> None:
    run = run_with(tmp_path, status())
    run.status.write_bytes(damage)
    with pytest.raises(RunError, match=r"is damaged \(.*mach resume r --runs .* goes on all the same"):
        read(run)
    run.status.write_text('{"run": "r"}')
    with pytest.raises(RunError, match="no status of this version"):
        read(run)


def test_a_file_that_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    run = run_with(tmp_path, status())
    before = sorted(run.path.iterdir()), run.status.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(run, status())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (sorted(run.path.iterdir()), run.status.read_bytes()) == before


def test_who_was_silent_when_the_file_was_written_is_stalled(tmp_path: Path, hold: Hold) -> None:
    run = hold(run_with(tmp_path, status(components=[component(last_seen_s=12.0)])))
    found = read(run, now=1010.5)
    row = found.components[0]
    assert (row.state, row.last_seen_s) == ("stalled", pytest.approx(12.5))
    assert row.reason == "not heard of for 12 s"
    assert exit_code_of(found) == 1
    run.config.write_text("supervise: {stalled_ms: 60000}")
    assert read(run, now=1010.5).components[0].state == "training", "the limit is the run's own"


def test_a_file_that_a_living_launcher_does_not_write_says_so_and_judges_nobody(tmp_path: Path, hold: Hold) -> None:
    rows = [component(), component("c1", last_seen_s=None, state="starting")]
    run = hold(run_with(tmp_path, status(components=rows)))
    assert read(run, now=1010.0 + STALE_S).stale == ""
    found = read(run, now=1024.0)
    assert [(row.state, row.reason, row.last_seen_s) for row in found.components] == [
        ("training", "", 14.5),
        ("starting", "", None),
    ]
    assert found.stale.startswith("status.json is 14 s old, and so is what stands here: ")
    assert f"the launcher (pid {os.getpid()}) lives and cannot write it" in found.stale
    assert exit_code_of(found) == 1
    console = screen.Console(width=1000)
    with console.capture() as capture:
        console.print(screen.tables(found))
    assert capture.get().splitlines()[-1] == f"run r: {found.stale}"
    assert read(run_with(tmp_path, status(state="finished"), "s"), now=1024.0).stale == ""


def test_what_is_wrong_with_a_whole_run_is_told_and_is_why_nobody_can_be_restarted(tmp_path: Path, hold: Hold) -> None:
    run = hold(run_with(tmp_path, status(trouble="the directory of sockets is gone", written_s=time.monotonic())))
    assert exit_code_of(read(run)) == 1
    console = screen.Console(width=1000)
    with console.capture() as capture:
        console.print(screen.tables(read(run)))
    assert capture.get().splitlines()[-1] == "run r: the directory of sockets is gone"
    with pytest.raises(RunError, match="run r: the directory of sockets is gone"):
        restart(run, "c0")


def test_what_stands_below_the_tables_is_whole_in_a_pipe_and_wrapped_on_a_terminal(tmp_path: Path) -> None:
    """Paths, and commands to copy, are looked for by `grep`."""
    why = f"see {'/a-long-name' * 30}; then mach resume r"
    run = run_with(tmp_path / "runs", status(state="failed", reason=why))
    told = CliRunner().invoke(cli, ["status", "r", "--runs", str(run.path.parent)]).stdout.splitlines()
    assert told[-1] == f"run r: {why}"
    terminal = screen.Screen(width=80, force_terminal=True, color_system=None)
    with terminal.capture() as capture:
        terminal.print(screen.tables(read(run), 80))
    assert max(map(len, capture.get().splitlines())) <= 80


def test_a_launcher_that_is_stopped_is_told_from_one_that_cannot_write(tmp_path: Path, hold: Hold) -> None:
    launcher = subprocess.Popen(["sleep", "1000"])
    try:
        launcher.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, launcher.pid, os.WSTOPPED | os.WNOWAIT)
        its = {"launcher_pid": launcher.pid, "launcher_started": address.started(launcher.pid)}
        said = read(hold(run_with(tmp_path, status(**its))), now=1024.0).stale
    finally:
        launcher.kill()
        launcher.wait()
    assert f"(pid {launcher.pid}) is stopped (SIGSTOP, or Ctrl-Z), and nobody watches its components" in said
    assert f"kill -CONT {launcher.pid} has it go on" in said


def test_the_age_of_a_checkpoint_goes_on_when_nobody_writes_any_more(tmp_path: Path) -> None:
    saved = component(checkpoint=Checkpoint(step=5, age_s=2.0))
    gone = run_with(tmp_path, status(launcher_started="1", components=[saved]))
    assert read(gone, now=1040.0).components[0].checkpoint.age_s == 32.0
    of_another_boot = run_with(tmp_path, status(boot="another", components=[saved]), "s")
    assert read(of_another_boot, now=1040.0).components[0].checkpoint.age_s is None


def test_a_run_without_its_launcher_has_failed(tmp_path: Path) -> None:
    found = read(run_with(tmp_path, status(launcher_started="1")), now=1010.0)
    assert found.state == "failed"
    assert "launcher" in found.reason
    assert "is from 10.0 s after its start, when status.json was last written; go on with mach" in found.reason
    assert found.components[0].state == "failed"
    assert found.components[0].pid is None, "another process may have its number by now"
    assert exit_code_of(found) == 2


def test_one_without_a_process_has_no_number_also_where_an_older_version_wrote_one(tmp_path: Path, hold: Hold) -> None:
    run = hold(run_with(tmp_path, status(components=[component(pid=0), component("c1")])))
    assert [row.pid for row in read(run, now=1010.0).components] == [None, 4711]
    assert "pid: integer | null  Number of its process; null while it has none." in screen.fields_help()


def test_a_copy_of_a_run_that_goes_on_is_not_taken_for_it(tmp_path: Path, hold: Hold) -> None:
    """Or `mach stop COPY` would stop the run that it was copied of, whose launcher stands in its files."""
    run = hold(run_with(tmp_path, status()))
    run.plan.write_bytes(msgspec.json.encode(make_plan(Config(), run="r", directory=run.path, sockets=tmp_path)))
    copy = RunDir(shutil.copytree(run.path, tmp_path / "copy"))
    found = read(copy, now=1010.0)
    assert (read(run, now=1010.0).state, found.state, found.components[0].state) == ("training", "failed", "failed")
    assert found.reason.startswith(
        f"this is a copy of a run that its launcher (pid {os.getpid()}) trains in {run.path}, or was "
    )
    assert stop(copy, signal.SIGTERM) == f"run copy has failed already: {read(copy, now=1010.0).reason}"
    with pytest.raises(RunError, match="nothing to restart"):
        restart(copy, "c0")
    with pytest.raises(RunError, match="nothing to be hit"):
        running(copy)


@pytest.mark.parametrize("there", [{"launcher_started": "1"}, {"boot": "another"}])
def test_a_launcher_that_cannot_be_seen_from_here_lives_if_it_has_the_lock(
    tmp_path: Path, hold: Hold, there: dict[str, str]
) -> None:
    """As in another container, where a number means another process, or on another host."""
    run = hold(run_with(tmp_path, status(**there)))
    assert (read(run, now=1010.0).state, read(run, now=1010.0).stale) == ("training", "")
    for order in (partial(stop, run, signal.SIGTERM), partial(restart, run, "c0"), partial(running, run)):
        with pytest.raises(RunError, match=rf"launcher \(pid {os.getpid()}\) is in another container or on another h"):
            order()
    run = run_with(tmp_path, status(host="node17", **there), "s")
    hold(run)
    for order in (partial(stop, run, signal.SIGTERM), partial(restart, run, "c0"), partial(running, run)):
        with pytest.raises(RunError, match=r"\(pid \d+\) is on node17, or in a container of it: give the"):
            order()


def test_a_run_that_goes_on_elsewhere_is_said_to(tmp_path: Path, hold: Hold) -> None:
    runs = tmp_path / "runs"
    now = time.monotonic()
    hold(run_with(runs, status(host="node17", boot="another", written_s=now), "far"))
    hold(run_with(runs, status(host=os.uname().nodename, written_s=now), "near"))
    hold(run_with(runs, status(host=os.uname().nodename, launcher_started="1", written_s=now), "contained"))
    run_with(runs, status(host="node17", state="stopped"), "over")
    shown = CliRunner().invoke(cli, ["runs", "--runs", str(runs)]).stdout.splitlines()[1:]
    told = {words[0]: words[1:4] for words in map(str.split, shown)}
    here = os.uname().nodename
    assert (told["far"], told["contained"]) == (["training", "on", "node17"], ["training", "on", here])
    assert (told["near"][0], told["near"][1], told["over"][0]) == ("training", "1", "stopped")
    far = RunDir(runs / "far")
    far.plan.write_bytes(msgspec.json.encode(make_plan(Config(), run="far", directory=far.path, sockets=tmp_path)))
    for order in (partial(resume, far, None, (), None), partial(check_name, runs, "far")):
        with pytest.raises(RunError, match=rf"run 'far' is running \(pid {os.getpid()} on node17\)"):
            order()
    with pytest.raises(RunError, match=rf"is running \(pid {os.getpid()}\)"):
        check_name(runs, "near")


def test_a_run_of_another_boot_has_failed_and_its_ages_are_not_compared(tmp_path: Path) -> None:
    found = read(run_with(tmp_path, status(boot="another")), now=5000.0)
    assert found.state == "failed"
    assert "mach resume r" in found.reason
    assert found.components[0].last_seen_s == 0.5


def test_a_run_whose_clock_is_of_another_time_namespace_is_not_old_by_ours(tmp_path: Path, hold: Hold) -> None:
    saved = component(checkpoint=Checkpoint(step=5, age_s=2.0))
    run = hold(run_with(tmp_path, status(clock="time:[1]", components=[saved])))
    found = read(run, now=101010.0)
    assert (found.state, found.stale, found.components[0].last_seen_s) == ("training", "", 0.5)
    assert found.components[0].checkpoint.age_s is None
    hold(run_with(tmp_path, status(clock=address.clock(), components=[saved]), "s"))
    assert "is 100000 s old" in read(RunDir(tmp_path / "s"), now=101010.0).stale


def test_a_clock_on_the_wall_that_is_set_back_changes_nothing(
    tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = hold(run_with(tmp_path, status(written_s=time.monotonic())))
    an_hour_ago = time.time() - 3600.0
    monkeypatch.setattr(time, "time", lambda: an_hour_ago)
    found = read(run)
    assert (found.state, found.components[0].state) == ("training", "training")
    assert found.components[0].last_seen_s == pytest.approx(0.5, abs=1.0)


def test_one_that_waits_for_its_next_life_is_shown_so_however_long_it_is_unheard(tmp_path: Path, hold: Hold) -> None:
    row = component(state="restarting", last_seen_s=25.0, reason="ended by SIGKILL")
    run = hold(run_with(tmp_path, status(components=[row])))
    assert read(run, now=1010.2).components[0].state == "restarting"


def test_an_ended_run_stays_as_it_ended(tmp_path: Path) -> None:
    rows = [component(state="finished", exit_code=0), component("c1", state="failed", exit_code=-9, reason="SIGKILL")]
    found = read(run_with(tmp_path, status(state="finished", launcher_started="1", components=rows)), now=5000.0)
    assert [row.state for row in found.components] == ["finished", "failed"]
    assert exit_code_of(found) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": "r"}', '{"unknown": 1}'])
def test_a_torn_or_foreign_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    run = run_with(tmp_path, status())
    run.status.write_text(content)
    with pytest.raises(RunError, match=r"status\.json"):
        read(run)


def test_the_newest_run_is_the_default_and_names_are_helped_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in ((300, "older"), (100, "newest"), (200, "old")):
        run = run_with(tmp_path, status(run=name), name)
        os.utime(run.plan, (1e9 - age, 1e9 - age))
    assert find_run(tmp_path, None).name == "newest"
    monkeypatch.chdir(tmp_path.parent)
    assert find_run(Path("elsewhere"), f"{tmp_path.name}/old").name == "old"
    for path in ("old", str(tmp_path / "old"), f"../{tmp_path.name}/old"):  # as a launch prints it, or from elsewhere
        assert find_run(tmp_path, path).name == "old"
    with pytest.raises(NoSuchRun, match="did you mean 'newest'"):
        find_run(tmp_path, "newst")
    with pytest.raises(NoSuchRun, match="mach launch"):
        find_run(tmp_path / "nowhere", None)


KINDS = ("student", "child", "full")


def test_the_json_has_exactly_the_documented_fields() -> None:
    document = msgspec.to_builtins(status())
    assert list(document) == [field.name for field in msgspec.structs.fields(Status)]
    row = document["components"][0]
    assert set(row) == {field.name for field in msgspec.structs.fields(ComponentStatus)}
    assert set(row["staleness"]["target"]) == {"count", "p50", "p99", "max", "p50_ms", "p99_ms", "max_ms"}
    assert set(row["accuracy"]) == {field.name for field in msgspec.structs.fields(Accuracies)}
    assert set(row["loss"]) == {"target", "student", "distill", "trend", "not_finite"}
    assert set(row["messages"]) == {"sent", "received", "dropped", "faults"}
    assert set(row["window"]) == {"size", "in_use"}
    documented = screen.fields_help()
    for record in screen.RECORDS:
        for field in msgspec.structs.fields(record):
            assert f"  {field.name}: " in documented
            assert screen.meanings(record).get(field.name), f"{record.__name__}.{field.name} has no meaning"
            assert screen.meanings(record)[field.name].replace("None", "null") in documented
    assert "None" not in documented, "it is JSON that is told about"
    assert typing.get_type_hints(Status)["components"] == list[ComponentStatus]


def full() -> Status:
    spread = Spread(count=9, p50=1, p99=12, max=31, p50_ms=29.4, p99_ms=81.2, max_ms=204.0)
    row = component(
        samples=256000,
        rate=64.2,
        loss=Losses(target=0.0123, student=0.02, distill=0.5, trend=-0.2),
        accuracy=Accuracies(student=0.986, child=0.9917, step=2000),
        child_share=0.93,
        staleness=Staleness(target=spread, gradient=spread),
    )
    row.messages.dropped = {"timeout": 3, "bad-checksum": 1}
    row.restarts = 2
    row.failure = Failure(reason="ended by SIGSEGV", incarnation=2, at_s=3.0, exit_code=-11, log="logs/c0.2.log")
    return status(components=[row, component("c1", state="stalled", reason="not heard of for 12 s")])


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_screen_shows_every_number_at_any_width(width: int) -> None:
    console = screen.Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(screen.tables(full(), width))
        text = console.export_text()
    for shown in ("98.6%", "99.2%", "93%", "0.0123 ↓", "1/12/31", "29/81/204", "bad-checksum 1", "timeout 3", "0.5 s"):
        assert shown in text, shown
    assert "c1: not heard of for 12 s" in text
    assert "c0: restarted 2 times; its life 2 ended by SIGSEGV" in text
    assert "…" not in text, "nothing is cut off"


def test_where_no_answer_is_a_target_a_plain_line_tells_how_late_gradients_are() -> None:
    late = Spread(count=9, p50=5, p99=6, max=7, p50_ms=50, p99_ms=60, max_ms=70)
    line = screen.plain_line(component(staleness=Staleness(gradient=late)))
    assert " gradient staleness 5/6/7 versions 50/60/70 ms" in line
    both = screen.plain_line(component(staleness=Staleness(target=late, gradient=late)))
    assert "% staleness 5/6/7" in both.replace("–", "%")
    assert "staleness – versions – ms" in screen.plain_line(component())


def test_plain_lines_are_one_a_component() -> None:
    lines = screen.plain_lines(full())
    assert len(lines) == 2
    assert "student 98.6% child 99.2%" in lines[0]
    assert lines[0].endswith("restarts 2 (life 2 ended by SIGSEGV)")
    assert lines[1].endswith("(not heard of for 12 s)")


def test_checkpoints_show_their_age_and_their_trouble() -> None:
    saved = Checkpoint(step=1200, age_s=75.4, trouble="the disk is full", fallback="step 1300 is damaged")
    row = component(samples=256000, rate=64.2, checkpoint=saved)
    ended = component("c1", state="stopped", exit_code=0, checkpoint=Checkpoint(step=1200, age_s=9.0))
    console = screen.Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(screen.tables(status(components=[row, ended, component("c2")]), 80))
        text = console.export_text()
    assert "75 s ago !" in text
    assert "c0: the disk is full" in text
    assert "c0: step 1300 is damaged" in text
    assert "at 1,200" in text
    assert "…" not in text, "nothing is cut off"


def shown(*rows: ComponentStatus) -> str:
    console = screen.Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(screen.tables(status(components=list(rows)), 200))
        return console.export_text()


def test_who_has_no_accuracy_for_a_stub_above_is_told_why() -> None:
    said = shown(component(), component("c1", kind="stub"), *(component(name, below="c1") for name in ("c2", "c3")))
    assert said.count("no accuracy") == 1
    assert "c2, c3: no accuracy, since examinations come down from component 0 as far as c1, a stub" in said
    assert "no accuracy" not in shown(component(), component("c1"))
    assert "no accuracy" not in shown(component(kind="stub"), component("c1", kind="stub", below="c0"))


def test_who_ended_without_a_step_is_told_below_the_tables() -> None:
    end: dict[str, object] = {"state": "finished", "exit_code": 0}
    idle = [component(name, step=0, **end) for name in ("c1", "c2")]
    rows = [component(**end), *idle, component("c3", kind="stub", step=0, **end)]
    told = "c1, c2: ended without a step: nothing is learnt there; train longer"  # in either wiring
    assert told in shown(*rows)
    assert exit_code_of(status(state="finished", components=rows)) == 1
    assert "without a step" not in shown(component(**end), component("c1", step=0, state="stopped", exit_code=0))


def test_to_whom_nothing_came_is_not_told_to_train_longer() -> None:
    def idle(name: str, parent: str, elapsed_s: float = 60.0, **counts: dict[str, int]) -> ComponentStatus:
        end: dict[str, object] = {"state": "finished", "exit_code": 0, "step": 0, "elapsed_s": elapsed_s}
        edges = {parent: [Peer(role="parent", state="knocking")], "c9": [Peer(role="child", state="closed")]}
        return component(name, peers=edges, messages=Messages(**counts), **end)

    refused, below = idle("c1", "c0", 2.0, dropped={"bad-key": 445}), idle("c2", "c1")
    why = "nothing came from c0 to c1 (dropped: bad-key 445); nothing came from c1 to c2"
    assert untrained([refused, below]) == f"c1, c2: ended without a step: nothing is learnt there; {why}"
    assert untrained([idle("c1", "c0", received={"activation": 3})]).endswith("; train longer")
    assert untrained([idle("c1", "c0", 2.0)]).endswith("; train longer"), "the run was over before"


def test_messages_that_are_too_large_are_told_with_the_key_that_lets_them_through() -> None:
    rows = [component(name, messages=Messages(dropped={"too-large": 25})) for name in ("c1", "c2")]
    said = shown(component(messages=Messages(dropped={"timeout": 3, "too-large": 0})), *rows)
    assert "c1, c2: 50 messages were dropped, being larger than bus.max_message_mb; raise it" in said
    assert "max_message_mb" not in shown(component())


def test_a_resumed_run_shows_how_long_it_has_lasted_in_all() -> None:
    assert screen.headline(status(elapsed_s=8.0)).plain.endswith("training  8.0 s")
    resumed = status(elapsed_s=8.0, before_s=42.0)
    assert screen.headline(resumed).plain.endswith("training  8.0 s since it was resumed, 50.0 s in all")
    assert [*screen.run_lines([resumed]).columns[-1].cells] == ["50 s"]


def test_the_steps_of_a_run_are_those_of_the_slowest_that_trains() -> None:
    rows = [component(step=1200), component("c1", step=900), component("c2", kind="stub", step=0)]
    columns = {column.header: [*column.cells] for column in screen.run_lines([status(components=rows)]).columns}
    assert columns["steps"] == ["900"]


def test_the_name_of_a_run_is_listed_whole_however_long() -> None:
    console = screen.Console(width=60)
    with console.capture() as capture:
        console.print(screen.run_lines([status(run="n" * 99)]))
    assert capture.get().count("n") == 99 + "run components training".count("n")


def test_why_a_run_failed_is_the_last_line() -> None:
    console = screen.Console(width=120)
    for state, told in (("failed", True), ("training", False)):
        with console.capture() as capture:
            console.print(screen.tables(status(state=state, reason="the launcher is gone; go on with mach resume r")))
        assert ("mach resume r" in capture.get().splitlines()[-1]) == told


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (Peer(role="child", state="silent", heard_s=7.7), "c0 → c1 silent for 8.2 s (unanswered)"),
        (Peer(role="child", state="silent"), "c0 → c1 was never heard (unanswered)"),
        (Peer(role="child", state="knocking", heard_s=3.0), "c0 → c1 knocks; last heard 3.5 s ago (unanswered)"),
        (Peer(role="child", state="knocking"), "c0 → c1 was never heard (unanswered)"),
        (Peer(role="child", state="closed", heard_s=1.0), "c0 → c1 closed 1.5 s ago, though both go on"),
        (Peer(role="child", state="open", heard_s=9.0), None),
        (Peer(role="parent", state="silent", heard_s=9.0), None),
    ],
)
def test_an_edge_that_is_cut_is_said_below_the_tables(end: Peer, line: str | None) -> None:
    rows = [component(peers={"c1": [end]}, elapsed_s=60.0), component("c1", elapsed_s=60.0)]
    text = shown(*rows)
    assert "c0 → c1" in text if line else "→" not in text
    assert line is None or line in text
    slow = end.state == "silent" and end.heard_s is not None  # so short a silence may be one step of the child
    assert exit_code_of(status(components=rows)) == (line is not None and not slow)


@pytest.mark.parametrize(("step_ms", "code"), [(100.0, 1), (5_000.0, 0)])
def test_a_child_of_long_steps_may_be_silent_for_long(step_ms: float, code: int) -> None:
    edge = Peer(role="child", state="silent", heard_s=20.0)
    rows = [component(peers={"c1": [edge]}, elapsed_s=60.0), component("c1", elapsed_s=60.0, step_ms_p99=step_ms)]
    assert exit_code_of(status(components=rows)) == code
    assert "silent for" in shown(*rows)


def test_nothing_is_said_of_edges_at_the_start_or_to_a_peer_that_has_ended() -> None:
    silent, knocking = Peer(role="child", state="silent", heard_s=9.0), Peer(role="child", state="knocking")
    closed = Peer(role="child", state="closed", heard_s=9.0)
    young = component(peers={"c1": [knocking]}, elapsed_s=2.0)
    assert "→" not in shown(young, component("c1", elapsed_s=60.0))
    old = component(peers={"c1": [silent], "c2": [closed]}, elapsed_s=60.0)
    assert "→" not in shown(old, component("c1", state="failed", exit_code=-9), component("c2", state="finished"))
    done = component(state="finished", peers={"c1": [closed]}, elapsed_s=60.0)
    assert "→" not in shown(done, component("c1"))


@pytest.mark.parametrize("edge", [("knocking", None), ("silent", 1.0), ("closed", 1.0)])
def test_nothing_is_said_of_an_edge_to_a_child_that_is_not_up_yet(edge: tuple[str, float | None]) -> None:
    waits = component(peers={"c1": [Peer(role="child", state=edge[0], heard_s=edge[1])]}, elapsed_s=60.0)
    for child in ({"state": "starting"}, {"state": "restarting"}, {"elapsed_s": 2.0}):
        assert "→" not in shown(waits, component("c1", **({"elapsed_s": 60.0} | child)))


@pytest.mark.parametrize(
    ("above", "below", "told"),
    [
        ({}, {}, True),
        ({}, {"kind": "stub"}, False),
        ({}, {"state": "failed"}, False),
        ({}, {"elapsed_s": 2.0}, False),
        ({"kind": "stub"}, {}, False),
        ({"elapsed_s": 2.0}, {}, False),
        ({"peers": {"c1": [Peer(role="child", state="closed", heard_s=3.0)]}}, {}, False),
        ({"peers": {"c1": [Peer(role="parent", state="closed")]}}, {}, False),
    ],
)
def test_a_run_in_which_two_that_trained_to_the_end_never_met_has_not_done_well(
    above: dict[str, object], below: dict[str, object], told: bool
) -> None:
    end: dict[str, object] = {"state": "finished", "exit_code": 0, "elapsed_s": 60.0}
    edge = {"peers": {"c1": [Peer(role="child", state="closed")]}}
    rows = [component(**end | edge | above), component("c1", **end | below)]
    assert lacking(rows).startswith("c0 → c1: never heard, so nothing was learnt from each other" if told else "")
    assert bool(lacking(rows)) == told
    over = status(state="finished", components=rows)
    if "failed" not in below.values():
        assert exit_code_of(over) == told
    console = screen.Console(width=200)
    with console.capture() as capture:
        console.print(screen.verdict(over))
    line = "c0 → c1 was never heard (unanswered)"
    assert (line in capture.get()) == (line in shown(*rows)) == told


def test_an_edge_with_the_wrong_keys_is_said_to_be_one() -> None:
    above = component(peers={"c1": [Peer(role="child", state="knocking")]}, elapsed_s=60.0)
    below = component("c1", elapsed_s=60.0, messages=Messages(dropped={"bad-key": 1040}))
    line = "c0 → c1 was never heard (unanswered), and c1 refused 1,040 connections (bad-key: wrong keys, or none)"
    assert line in shown(above, below)


WORTH = {
    "salience/pruning/c10": 0.25,
    "salience/integrated/c10": -0.5,
    "salience/pruning/c2": 0.125,
    "salience/integrated/c2": 1.5,
    "salience/integrated/own": 2.0,
}


@pytest.mark.parametrize("width", [80, 200])
def test_edges_are_as_heavy_as_what_the_child_is_worth(width: int) -> None:
    rows = [component(probes={**WORTH, "cka/c2": 0.5}), component("c1", probes={"cka/c2": 0.5})]
    console = screen.Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(screen.tables(status(components=rows), width))
        text = console.export_text().splitlines()
    edges = [line.split() for line in text if "→ c" in line]
    assert edges == [
        ["c0", "━━━━╌╌╌╌╌╌→", "c2", "38%", "0.125", "–", "–", "1.5"],
        ["c0", "━╌╌╌╌╌╌╌╌╌→", "c10", "12%", "0.25", "–", "–", "-0.5"],
    ]


def test_a_worth_of_nothing_is_a_light_edge() -> None:
    row = component(probes={"salience/weight/c1": 0.25, "salience/integrated/c1": 0.0, "salience/integrated/own": 0.0})
    (table,) = screen.worth(status(components=[row]))
    assert table.row_count == 1
    assert screen.share_of(row, "c1") is None
    assert screen.worth(status()) == []
