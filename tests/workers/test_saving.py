"""Who is told to leave and still writes its checkpoint is given the time, and says so at once."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bus import address
from configs.load import load
from configs.tree import Supervise
from fakes import Life
from mach.recipes import RECIPES
from workers.gather import Gathering
from workers.member import Member
from workers.plan import make_plan
from workers.report import SAVING
from workers.rundir import RunDir
from workers.supervisor import Supervisor
from workers.trainer import Life as TrainersLife

GRACE_S = 5.0
STALLED_S = 10.0


@pytest.fixture
def lives() -> Iterator[list[Life]]:
    """Of two components."""
    lives = [Life(), Life()]
    yield lives
    for life in lives:
        life.close()


@pytest.fixture
def members(tmp_path: Path, lives: list[Life]) -> list[Member]:
    run = RunDir(tmp_path / "r")
    run.make()
    return [Member(lambda _, __, life=life: life.attempt, 1, Supervise(), run, 0.0) for life in lives]


@pytest.fixture
def supervisor(tmp_path: Path, members: list[Member]) -> Iterator[Supervisor]:
    config = load("digits", ("n_components=2",), RECIPES)
    plan = make_plan(config, run="r", directory=tmp_path / "r", sockets=address.make_directory())
    supervisor = Supervisor(plan)
    supervisor.members = members
    yield supervisor
    supervisor.__exit__(None, None, None)


def look(supervisor: Supervisor, now: float) -> list[int]:
    """How often each was killed."""
    supervisor.clock.now = now
    for member in supervisor.members:
        member.look(now)
    supervisor._decide(now)
    return [member.attempt.process.killed for member in supervisor.members]  # type: ignore[attr-defined]


def test_while_a_checkpoint_is_written_nobody_is_killed_and_then_the_time_to_leave_begins(
    supervisor: Supervisor, lives: list[Life]
) -> None:
    supervisor.stop("by SIGTERM")
    now = 0.0
    for _ in range(100):
        now += 1.0
        lives[1].say("waiting", 7, SAVING)
        lives[0].say("waiting", 7, "does something else")
        assert look(supervisor, now) == [0, 0]
        assert supervisor._deadline > now, "it waits, and does not spin"
    shown = [(row.state, row.reason) for row in supervisor.status.components]
    assert shown == [("stopping", "told to save and leave"), ("stopping", SAVING)]
    for life in lives:
        life.say("waiting", 7, "does something else")
    assert look(supervisor, now + 0.9 * GRACE_S) == [0, 0]
    assert look(supervisor, now + GRACE_S) == [1, 1]


def test_who_hangs_while_it_writes_is_killed(supervisor: Supervisor, lives: list[Life]) -> None:
    supervisor.stop("by SIGTERM")
    lives[0].say("waiting", 7, SAVING)
    lives[1].say("stopped", 7)
    look(supervisor, 1.0)
    look(supervisor, 1.1 + STALLED_S)
    assert supervisor.members[0].attempt.killed.startswith("made no progress for ")
    assert look(supervisor, 2.0 + STALLED_S)[0] == 1


def test_a_second_ctrl_c_does_not_wait_for_a_checkpoint(supervisor: Supervisor, lives: list[Life]) -> None:
    supervisor.stop("by SIGINT")
    for life in lives:
        life.say("waiting", 7, SAVING)
    assert look(supervisor, GRACE_S + 1.0) == [0, 0]
    supervisor.stop("by SIGINT", at_once=True)
    assert look(supervisor, GRACE_S + 1.0) == [1, 1]


def test_one_that_was_asked_to_restart_may_end_its_checkpoint(members: list[Member], lives: list[Life]) -> None:
    member, life = members[0], lives[0]
    life.say("training", 7)
    member.look(0.0)
    member.restart(0.0)
    for now in (0.5, GRACE_S, 2 * GRACE_S):
        life.say("waiting", 7, SAVING)
        member.look(now)
        assert life.process.killed == 0
        assert member.wake_at() > now
    life.say("waiting", 7, "does something else")
    member.look(3 * GRACE_S - 0.1)
    assert life.process.killed == 0
    member.look(3 * GRACE_S)
    assert life.process.killed == 1


def test_in_lockstep_nobody_is_given_up_while_a_checkpoint_is_written(members: list[Member], lives: list[Life]) -> None:
    gathering = Gathering(members, 2.5, 1.0)
    for now in (1.0, 3.5, 6.0):
        lives[0].say("waiting", 7, SAVING)
        members[0].look(now)
        assert gathering.order(now) is None
    lives[0].say("waiting", 7, bound=7)
    members[0].look(8.0)
    assert gathering.order(8.0) is None
    assert gathering.order(8.5) == "stop"


@pytest.mark.parametrize(("orders", "due", "said"), [({"stop"}, False, 1), (set(), False, 0), ({"gather"}, True, 3)])
def test_who_is_told_to_leave_says_at_once_that_it_writes(orders: set[str], due: bool, said: int) -> None:
    """Before its next report would be due; the disk takes four waits."""
    reports: list[tuple[str, str]] = []
    written = iter([False, False, False, True])
    plan = make_plan(load("digits", ("n_components=2",), RECIPES), run="r", directory=Path(), sockets=Path())
    trainer = SimpleNamespace(mailbox=SimpleNamespace(now=lambda: 0.0), learner=SimpleNamespace(stream=None))
    keeper = SimpleNamespace(finish=lambda now, wait_s: next(written))
    journal, control = SimpleNamespace(due=lambda now: due), SimpleNamespace(orders=lambda: orders)
    life = TrainersLife(plan, plan.process("c0"), trainer, journal, keeper, control)  # type: ignore[arg-type]
    life.report = lambda state, reason="": reports.append((state, reason))  # type: ignore[method-assign]
    life.see_written()
    assert reports == [("waiting", SAVING)] * said
