"""The supervisor's clock: monotonic, and fair to components while the launcher itself was away; who is an orphan; how
often a run is told to stop, and judged.
"""

import io
import multiprocessing
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import msgspec
import pytest

from bus import address
from configs.errors import RunError
from configs.load import load
from configs.tree import Supervise
from fakes import Life
from mach.recipes import RECIPES
from workers.attempt import Attempt
from workers.clock import AWAY_S, Clock
from workers.forkserver import HELPER, QUIET
from workers.member import Member
from workers.output import UNREAD, Output, Unwritable
from workers.plan import ProcessPlan, make_plan
from workers.rundir import RunDir
from workers.status import read
from workers.supervisor import SAME_S, Supervisor, orphans


class FakeTime:
    """A monotonic clock in the tester's hand."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def test_it_counts_from_the_launch() -> None:
    time = FakeTime()
    clock = Clock(time)
    assert clock.look() == 0.0
    time.now += 0.25
    assert clock.look() == 0.25
    assert clock.now == clock.elapsed_s() == 0.25


def test_time_in_which_the_launcher_was_stopped_is_nobodys_silence() -> None:
    time = FakeTime()
    clock = Clock(time)
    time.now += 3600.0
    assert clock.look() == AWAY_S
    time.now += 0.25
    assert clock.look() == AWAY_S + 0.25
    assert clock.elapsed_s() == 3600.25


def test_an_orphan_is_who_has_parents_that_have_all_ended_for_good(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    run.make()
    parents = {"c0": (), "c1": ("c0",), "c2": ("c0", "c1"), "c3": ("c2",)}
    members, lives = [], {}
    for index, (name, above) in enumerate(parents.items()):
        life = lives[name] = Life()
        life.attempt.plan = ProcessPlan(
            name=name, index=index, kind="trainer", device="cpu", children=(), parents=above
        )
        members.append(Member(lambda _, __, life=life: life.attempt, 1, Supervise(), run, 0.0, mends=True))
    assert orphans(members) == []
    members[0].over = "failed"
    assert [member.name for member in orphans(members)] == ["c1"]
    members[1].over = "finished"
    assert [member.name for member in orphans(members)] == ["c1", "c2"]
    for _ in range(2):
        members[2].tell("orphaned")
    assert lives["c2"].orders() == ["orphaned"]
    assert members[2].over is None
    for life in lives.values():
        life.close()


def test_below_a_stub_that_has_gone_silent_is_an_orphan_unless_a_new_life_of_the_stub_is_due(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    run.make()
    members, lives = [], []
    for index, kind in enumerate(("stub", "trainer")):
        lives.append(Life(kind=kind))
        above = ("c0",) if index else ()
        lives[-1].attempt.plan = ProcessPlan(
            name=f"c{index}", index=index, kind=kind, device="cpu", children=(), parents=above
        )
        members.append(Member(lambda _, __, life=lives[-1]: life.attempt, 1, Supervise(), run, 0.0, mends=True))
    stub, _ = members

    def says(state: str) -> list[str]:
        lives[0].say(state)
        stub.look(0.1)
        return [member.name for member in orphans(members)]

    assert says("waiting") == []
    assert says("finished") == ["c1"]
    assert stub.over is None
    assert says("waiting") == []
    stub.restart(0.1)
    assert says("finished") == [], "it leaves, to begin anew"
    for life in lives:
        life.close()


@pytest.fixture
def lockstep(tmp_path: Path) -> Iterator[tuple[Supervisor, list[Life]]]:
    """A run of two in lock-step that a test plays."""
    yield from played(tmp_path, lockstep=True)


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Supervisor, list[Life]]]:
    """One of a recipe."""
    yield from played(tmp_path, f"recipe={request.param}")


def played(tmp_path: Path, *settings: str, lockstep: bool = False) -> Iterator[tuple[Supervisor, list[Life]]]:
    config = load("digits", ("n_components=2", *settings), RECIPES)
    sockets = address.make_directory()
    plan = make_plan(config, run="r", directory=tmp_path / "r", sockets=sockets, lockstep=lockstep)
    supervisor, lives = Supervisor(plan), [Life(), Life()]
    supervisor.run.make()
    supervisor._lock = supervisor.run.lock()
    supervisor.members = [
        Member(lambda _, __, life=life: life.attempt, 1, Supervise(), supervisor.run, 0.0, mends=False)
        for life in lives
    ]
    yield supervisor, lives
    supervisor.__exit__(None, None, None)
    for life in lives:
        life.close()


def test_who_watches_an_ended_run_again_finds_the_same_verdict(lockstep: tuple[Supervisor, list[Life]]) -> None:
    """As when the reader of `mach launch | tee log` dies of the Ctrl-C that stopped the run, at its last line."""
    supervisor, _ = lockstep
    supervisor.stop("by SIGINT")
    for member in supervisor.members:
        member.over = "stopped"
    found = [(last.state, last.reason, last.exit_code) for last in (next(supervisor.watch()), *supervisor.watch())]
    assert found == [("stopped", "by SIGINT", 130)] * 2
    assert read(supervisor.run).exit_code == 130


@pytest.mark.parametrize("recipe", ["dgl"], indirect=True)
@pytest.mark.parametrize("step", [0, 5])
def test_a_run_in_which_somebody_made_no_step_is_no_success(recipe: tuple[Supervisor, list[Life]], step: int) -> None:
    """Of earlier lives count as well: who goes on from a checkpoint and has done its steps reports them."""
    supervisor, lives = recipe
    for life, done in zip(lives, (40, step), strict=True):
        life.say("finished", done)
        life.process.exitcode = 0
    for member in supervisor.members:
        member.look(0.1)
    *_, last = supervisor.watch()
    assert (last.state, last.exit_code) == ("finished", 0 if step else 3)
    assert last.reason.startswith("c1: ended without a step") == (step == 0)


@pytest.mark.parametrize(("recipe", "ends"), [("ddg", True), ("backprop", True), ("dgl", False)], indirect=["recipe"])
def test_where_gradients_go_end_to_end_a_run_ends_with_who_is_gone_for_good(
    recipe: tuple[Supervisor, list[Life]], ends: bool
) -> None:
    """The others would wait for its answers for ever."""
    supervisor, lives = recipe
    supervisor.members[1]._end("failed", "killed", 0.0)
    supervisor._decide(0.0)
    assert lives[0].orders() == (["stop"] if ends else [])
    supervisor.members[0].over = "stopped" if ends else "finished"
    *_, last = supervisor.watch()
    assert (last.state, last.exit_code) == (("failed", 1) if ends else ("finished", 3))
    assert "failed: killed" in last.reason
    together = "; with gradients end to end nobody goes on alone: mach resume r --runs {} does, together"
    together = together.format(supervisor.run.path.parent)
    assert last.reason.endswith(together) == ends


@pytest.mark.parametrize("recipe", ["mach-hop"], indirect=True)
def test_whose_examination_needs_a_stub_that_has_gone_silent_is_told_once(
    recipe: tuple[Supervisor, list[Life]],
) -> None:
    supervisor, lives = recipe
    for process, member, kind in zip(supervisor.plan.processes, supervisor.members, ("trainer", "stub"), strict=True):
        member.plan = msgspec.structs.replace(process, kind=kind)
    told = []
    for state in ("waiting", "finished", "finished"):
        lives[1].say(state)
        supervisor.members[1].look(0.0)
        supervisor._decide(0.0)
        told.append(lives[0].orders())
    assert told == [[], ["unanswered"], []]
    assert lives[1].orders() == []
    supervisor.members[0].over = supervisor.members[1].over = "finished"


@pytest.mark.parametrize(("recipe", "ends"), [("backprop", True), ("dgl", False)], indirect=["recipe"])
def test_where_gradients_go_end_to_end_a_run_ends_with_who_was_stopped_alone(
    recipe: tuple[Supervisor, list[Life]], ends: bool
) -> None:
    """As by SIGTERM to its process: it does not come back either."""
    supervisor, lives = recipe
    lives[1].say("stopped", step=7)
    lives[1].process.exitcode = 0
    supervisor.members[1].look(0.0)
    supervisor._decide(0.0)
    assert lives[0].orders() == (["stop"] if ends else [])
    supervisor.members[0].over = "stopped" if ends else "finished"
    *_, last = supervisor.watch()
    assert (last.state, last.exit_code) == (("failed", 1) if ends else ("finished", 3))
    assert last.reason.startswith("c1 was stopped alone")


def above_a_stub(supervisor: Supervisor, lives: list[Life]) -> None:
    """From now on c0 trains, and asks c1, a stub."""
    kinds: tuple[Literal["trainer", "stub"], ...] = ("trainer", "stub")
    for index, kind in enumerate(kinds):
        children, parents = (("c1",), ()) if kind == "trainer" else ((), ("c0",))
        plan = ProcessPlan(name=f"c{index}", index=index, kind=kind, device="cpu", children=children, parents=parents)
        supervisor.members[index].plan = lives[index].attempt.plan = plan


@pytest.mark.parametrize(("recipe", "ends"), [("backprop", True), ("mach-hop", False)], indirect=["recipe"])
def test_where_gradients_go_end_to_end_a_run_ends_when_a_stub_below_goes_silent(
    recipe: tuple[Supervisor, list[Life]], ends: bool
) -> None:
    supervisor, lives = recipe
    above_a_stub(supervisor, lives)
    for state, orders in (("waiting", []), ("finished", ["unanswered", "stop"] if ends else ["unanswered"])):
        lives[1].say(state)
        supervisor.members[1].look(0.0)
        supervisor._decide(0.0)
        assert lives[0].orders() == orders
    assert (supervisor._gone is supervisor.members[1]) == ends
    assert supervisor.members[1].lost == "stub c1 sends nothing more"


@pytest.mark.parametrize("recipe", ["backprop"], indirect=True)
def test_a_stub_that_goes_silent_when_those_above_have_finished_is_missed_by_nobody(
    recipe: tuple[Supervisor, list[Life]],
) -> None:
    supervisor, lives = recipe
    above_a_stub(supervisor, lives)
    for life, member in zip(lives, supervisor.members, strict=True):
        life.say("finished")
        member.look(0.0)
    supervisor._decide(0.0)
    assert [life.orders() for life in lives] == [["unanswered", "release"], ["release"]]


def test_a_reader_that_leaves_while_a_run_stops_changes_nothing(lockstep: tuple[Supervisor, list[Life]]) -> None:
    supervisor, lives = lockstep
    supervisor.stop("by SIGINT")
    supervisor.stop(UNREAD)
    assert [life.orders() for life in lives] == [["gather"]] * 2, "nobody leaves in the middle of a step"
    assert (supervisor.state, supervisor.reason) == ("stopping", "by SIGINT")
    supervisor.stop("by SIGQUIT", at_once=True)
    assert [life.orders() for life in lives] == [["stop"]] * 2


@pytest.mark.parametrize(
    ("signals", "late_s", "why"),
    [
        ((signal.SIGTERM,), 1e9, "killed, since it did not leave in time"),
        ((signal.SIGQUIT,), 0.0, "killed at once, as asked by SIGQUIT (mach stop --now, or a second Ctrl-C)"),
        ((signal.SIGINT,) * 2, 0.0, "killed at once, as asked by SIGINT (mach stop --now, or a second Ctrl-C)"),
    ],
)
def test_who_is_killed_on_purpose_is_told_from_who_did_not_leave_in_time(
    lockstep: tuple[Supervisor, list[Life]], signals: tuple[signal.Signals, ...], late_s: float, why: str
) -> None:
    supervisor, _ = lockstep
    supervisor.clock = Clock(time := FakeTime())
    for number in signals:
        supervisor._note(number, None)
        supervisor._obey()
        time.now += 2 * SAME_S
    supervisor._gathering = None
    supervisor._decide(late_s)
    for member in supervisor.members:
        member.look(late_s)
    assert [(row.state, row.reason) for row in supervisor.status.components] == [("stopped", why)] * 2


def test_a_status_that_cannot_be_written_ends_no_run_whose_output_lies_on_the_same_full_disk(
    lockstep: tuple[Supervisor, list[Life]], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, _ = lockstep
    shutil.rmtree(supervisor.run.path)
    supervisor.run.path.write_text("in the way")
    said = io.TextIOWrapper(io.BufferedWriter(Output("/dev/full", "w")))
    monkeypatch.setattr("sys.stdout", said)
    for _ in range(2):
        supervisor._write()
    with pytest.raises(Unwritable):
        said.close()


def test_a_private_directory_that_vanishes_is_made_again_while_the_run_is_watched(
    lockstep: tuple[Supervisor, list[Life]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor, _ = lockstep
    monkeypatch.setattr(supervisor, "_wait", lambda: None)
    sockets = Path(supervisor.plan.sockets)
    shutil.rmtree(sockets)
    assert next(supervisor.watch()).trouble == ""
    assert (sockets / "desk.sock").is_socket()
    assert f"mach: {sockets}, the directory of sockets, was removed" in capsys.readouterr().out
    shutil.rmtree(sockets)
    sockets.write_text("in the way")
    supervisor._written = float("-inf")
    trouble = next(supervisor.watch()).trouble
    assert f"{sockets}, the directory of sockets, is gone and cannot be made again" in trouble
    assert read(supervisor.run).trouble == trouble
    supervisor._end("stopped", "by SIGTERM", 130)
    assert supervisor.status.trouble == "", "it is over"
    sockets.unlink()


@pytest.mark.parametrize("removed", [True, False])
def test_a_run_whose_folder_is_gone_says_so_once_when_it_is_made_again(
    lockstep: tuple[Supervisor, list[Life]], capsys: pytest.CaptureFixture[str], *, removed: bool
) -> None:
    supervisor, _ = lockstep
    run = supervisor.run
    supervisor._write()
    run.plan.unlink()
    supervisor._write()
    assert capsys.readouterr().out == "", "a file of it"
    if removed:
        shutil.rmtree(run.path)
    else:
        run.path.rename(run.path.with_name("moved"))
    (run.path / "checkpoints").mkdir(parents=True)  # a component was faster
    for _ in range(2):
        supervisor._write()
    assert read(run).state == "starting"
    way = f"training goes on, and it is made again; mach stop {run.called} stops it"
    assert capsys.readouterr().out == f"mach: {run.path} was removed or moved; {way}\n"


def test_a_run_whose_name_another_launch_has_taken_since_it_was_removed_leaves_it_to_that(
    lockstep: tuple[Supervisor, list[Life]], hold: Callable[[RunDir], RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor, _ = lockstep
    shutil.rmtree(supervisor.run.path)
    supervisor.run.make()
    for path in (supervisor.run.plan, supervisor.run.config):
        path.write_text("another's")
    hold(supervisor.run)
    for _ in range(2):
        supervisor._write()
    assert supervisor.run.plan.read_text() == "another's"
    said = capsys.readouterr().out
    assert said == (
        f"mach: {supervisor.run.status} cannot be written (another launcher has the run by now); training goes on\n"
    )


def test_of_a_run_that_has_ended_nobody_says_that_training_goes_on(
    lockstep: tuple[Supervisor, list[Life]], capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor, _ = lockstep
    shutil.rmtree(supervisor.run.path)
    supervisor.run.path.write_text("in the way")
    supervisor._end("failed", "the launcher failed", 2)
    supervisor._write()
    assert re.fullmatch(r"mach: .*status\.json cannot be written \(.*\)\n", capsys.readouterr().out)


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), ConnectionRefusedError()])
def test_a_helper_that_ends_as_it_is_to_start_a_component_is_one_sentence(
    lockstep: tuple[Supervisor, list[Life]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    supervisor, _ = lockstep

    def start() -> None:
        raise error

    context = SimpleNamespace(Process=lambda **_: SimpleNamespace(start=start))
    monkeypatch.setattr("workers.forkserver.warm", lambda: None)
    monkeypatch.setattr("workers.forkserver.cause", lambda helper: "ended with exit code 1: so it said")
    monkeypatch.setattr("workers.supervisor.get_context", lambda _: context)
    with pytest.raises(RunError) as told:
        supervisor._start(supervisor.plan.processes[0], 1, 0.0)
    assert str(told.value) == f"{HELPER}, as it was to start c0, ended with exit code 1: so it said"


def test_a_first_signal_stops_cleanly_also_when_the_reader_left_before_it(
    lockstep: tuple[Supervisor, list[Life]],
) -> None:
    """Ctrl-C kills `tee`, too, and may be heard of second."""
    supervisor, lives = lockstep
    supervisor.clock = Clock(time := FakeTime())
    supervisor.stop(UNREAD)
    for expected in (["gather"], ["stop"]):
        supervisor._note(signal.SIGINT, None)
        supervisor._obey()
        time.now += 2 * SAME_S
        assert [life.orders() for life in lives] == [expected] * 2


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_what_a_scheduler_sends_before_the_time_is_over_stops_cleanly(
    lockstep: tuple[Supervisor, list[Life]], number: signal.Signals
) -> None:
    supervisor, lives = lockstep
    before = {each: signal.getsignal(each) for each in QUIET}
    supervisor._listen()
    try:
        signal.raise_signal(number)
        supervisor._obey()
        assert [life.orders() for life in lives] == [["gather"]] * 2
        assert supervisor.reason == f"by {number.name}"
        for member in supervisor.members:
            member.over = "stopped"
        supervisor.__exit__(None, None, None)
        assert signal.getsignal(number) == signal.SIG_IGN, "a second one does not cost the verdict"
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_second_sigterm_hurries_nobody(lockstep: tuple[Supervisor, list[Life]]) -> None:
    """`timeout` sends one to the launcher and then one to its group."""
    supervisor, lives = lockstep
    supervisor.clock = Clock(time := FakeTime())
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        supervisor._note(number, None)
        supervisor._obey()
        time.now += 2 * SAME_S
    assert [life.orders() for life in lives] == [["gather"]] * 2
    supervisor._note(signal.SIGINT, None)
    supervisor._obey()
    assert [life.orders() for life in lives] == [["stop"]] * 2, "a Ctrl-C after it does"


@pytest.mark.parametrize("together", [True, False])
def test_a_ctrl_c_that_comes_twice_at_once_is_one(lockstep: tuple[Supervisor, list[Life]], together: bool) -> None:
    """As of `timeout -s INT`; however late the launcher looks, it counts when they came."""
    supervisor, lives = lockstep
    supervisor.clock = Clock(time := FakeTime())
    for _ in range(2):
        supervisor._note(signal.SIGINT, None)
        if not together:
            supervisor._obey()
        time.now += SAME_S
    supervisor._obey()
    assert [life.orders() for life in lives] == [["gather"]] * 2
    supervisor._note(signal.SIGINT, None)
    supervisor._obey()
    assert [life.orders() for life in lives] == [["stop"]] * 2, "one that is pressed later ends it at once"


@pytest.mark.parametrize("obeyed", [True, False])
def test_a_second_sigterm_after_the_end_does_not_cost_the_verdict(
    lockstep: tuple[Supervisor, list[Life]], obeyed: bool
) -> None:
    """It comes as soon as `timeout` has sent the first, and a run may have little left to do."""
    supervisor, _ = lockstep
    before = {each: signal.getsignal(each) for each in QUIET}
    supervisor._listen()
    try:
        signal.raise_signal(signal.SIGTERM)
        if obeyed:
            supervisor._obey()
        for member in supervisor.members:
            member.over = "stopped"
        supervisor.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_hangup_that_nohup_has_it_ignore_stays_ignored(lockstep: tuple[Supervisor, list[Life]]) -> None:
    supervisor, _ = lockstep
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervisor._listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == supervisor._note
    finally:
        supervisor.__exit__(None, None, None)
        signal.signal(signal.SIGHUP, before)


def test_components_that_a_signal_reached_before_their_launcher_were_stopped_by_it(
    lockstep: tuple[Supervisor, list[Life]],
) -> None:
    supervisor, _ = lockstep
    for member in supervisor.members[1:]:
        member.over = "stopped"
    supervisor.members[0]._end("stopped", "asked to stop")
    supervisor._note(signal.SIGTERM, None)
    supervisor._obey()
    *_, last = supervisor.watch()
    assert (last.state, last.reason, last.exit_code) == ("stopped", "by SIGTERM", 130)


def test_a_launch_that_fails_halfway_leaves_no_process_and_no_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("digits", ("n_components=2",), RECIPES)
    sockets = address.make_directory()
    plan = make_plan(config, run="r", directory=tmp_path / "r", sockets=sockets)
    start, begun = Supervisor._start, list[str]()

    def start_one(self: Supervisor, process: ProcessPlan, incarnation: int, now: float) -> Attempt:
        if begun:
            raise BlockingIOError("no more processes")
        begun.append(process.name)
        return start(self, process, incarnation, now)

    monkeypatch.setattr(Supervisor, "_start", start_one)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BlockingIOError, match="no more processes"), Supervisor(plan):
        pytest.fail("it has begun")
    assert begun == ["c0"]
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGTERM) == before
    assert not sockets.exists()
    assert (tmp_path / "r" / "status.json").exists(), "what became of it can be read"
