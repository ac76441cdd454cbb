"""A component over all its lives, in virtual time: fake processes, real pairs of sockets, no waiting."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import RunError, Unsaved
from configs.tree import Supervise
from fakes import Life
from workers.member import DUMP_S, Member
from workers.report import Checkpoint
from workers.rundir import RunDir


class Harness:
    """A member, the lives that it began, and the time in the tester's hand."""

    def __init__(
        self, path: Path, kind: str = "trainer", *, mends: bool = True, before: Any = None, **rules: int
    ) -> None:
        self.kind = kind
        self.now = 0.0
        self.lives: list[Life] = []
        self.broken: Exception | None = None
        self.run = RunDir(path / "r")
        self.run.make()
        self.member = Member(self.start, 1, Supervise(**rules), self.run, 0.0, mends=mends, before=before)

    def start(self, incarnation: int, now: float) -> object:
        if self.broken is not None:
            raise self.broken
        self.lives.append(Life(incarnation, now, self.kind))
        return self.lives[-1].attempt

    @property
    def life(self) -> Life:
        return self.lives[-1]

    @property
    def shown(self) -> tuple[str, str]:
        status = self.member.status(self.now)
        return status.state, status.reason

    def pass_s(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.member.look(self.now)

    def say(self, state: str, step: int = 0, **more: object) -> None:
        self.life.say(state, step, **more)  # type: ignore[arg-type]
        self.pass_s()

    def end(self, code: int) -> None:
        self.life.process.exitcode = code
        self.pass_s()

    def train(self, step: int = 1) -> None:
        self.say("training", step)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    for life in harness.lives:
        life.close()


def test_an_orphan_that_fails_begins_anew_and_its_next_life_is_told_again(one: Harness) -> None:
    one.train(7)
    one.member.tell("orphaned")
    one.member.tell("orphaned")
    assert one.life.orders() == ["orphaned"]
    one.end(-9)
    assert len(one.lives) == 2
    one.member.tell("orphaned")
    assert one.life.orders() == ["orphaned"]
    one.say("finished", 7)
    one.end(0)
    assert one.member.over == "finished"


def test_it_shows_what_it_says(one: Harness) -> None:
    assert one.shown == ("starting", "")
    one.train(7)
    assert one.shown[0] == "training"
    one.say("waiting", 7, reason="waits for c2")
    assert one.shown == ("waiting", "waits for c2")
    one.say("finished", 8)
    one.end(0)
    status = one.member.status(1.0)
    assert (status.state, status.exit_code, status.step, status.restarts) == ("finished", 0, 8, 0)


def test_a_killed_one_begins_anew_at_once_and_keeps_its_numbers_until_it_speaks(one: Harness) -> None:
    one.train(7)
    one.end(-9)
    status = one.member.status(one.now)
    assert (status.state, status.incarnation, status.restarts, status.step) == ("starting", 2, 1, 7)
    assert status.failure is not None
    assert status.failure.reason.startswith("ended by SIGKILL")
    assert (status.failure.incarnation, status.failure.exit_code, status.failure.log) == (1, -9, "logs/c1.1.log")
    one.pass_s(0.75)
    one.train(5)
    status = one.member.status(one.now)
    assert (status.state, status.step, status.restart_s, status.log) == ("training", 5, [0.75], "logs/c1.2.log")


def test_what_it_had_come_to_before_it_was_resumed_is_shown_until_it_speaks(tmp_path: Path) -> None:
    one = Harness(tmp_path, before={"step": 20, "samples": 640, "checkpoint": Checkpoint(step=20, age_s=2.0)})
    status = one.member.status(1.0)
    assert (status.state, status.step, status.checkpoint.step, status.checkpoint.age_s) == ("starting", 20, 20, 3.0)
    one.life.say("failed", reason="no such module")
    one.end(2)
    status = one.member.status(one.now)
    assert (status.state, status.reason, status.step, status.samples) == ("failed", "no such module", 20, 640)
    assert one.member.refused, "it has made no step since"
    one.life.close()


def test_a_second_failure_in_a_row_waits_and_says_so(one: Harness) -> None:
    for _ in range(2):
        one.train(7)
        one.end(-11)
    assert one.shown[0] == "restarting"
    assert "SIGSEGV" in one.shown[1]
    assert "begins in 0.5 s" in one.shown[1]
    assert one.member.status(one.now).pid is None, "0 would be the whole group of whoever kills it"
    assert one.member.wake_at() == 0.5
    one.pass_s(0.4)
    assert len(one.lives) == 2
    one.pass_s(0.1)
    assert len(one.lives) == 3
    assert one.member.status(one.now).pid == one.life.process.pid


def test_a_new_checkpoint_makes_the_next_restart_immediate(one: Harness) -> None:
    for step in (100, 200, 300, 400, 500):
        one.train(step)
        one.say("training", step + 1, saved=step)
        one.end(-9)
        assert one.shown[0] == "starting"
    assert one.member.status(0.0).restarts == 5


def test_three_restarts_in_a_row_without_a_checkpoint_are_the_last(one: Harness) -> None:
    for pause_s in (0.0, 0.5, 1.0):
        one.train(7)
        one.end(-9)
        one.pass_s(pause_s)
    one.train(7)
    one.end(-9)
    assert one.member.over == "failed"
    assert one.member.incarnation == 4
    assert one.member.cause.startswith("c1 failed: ended by SIGKILL")
    assert "after 3 restarts in a row that brought no new checkpoint" in one.member.cause
    assert one.member.cause.endswith("logs/c1.4.log")
    assert one.member.status(0.0).exit_code == -9
    way = f"; mach restart {one.member.run.called} c1 has it begin anew"
    assert one.member.status(0.0).reason.endswith(way)
    one.member.order("release")
    assert way not in one.member.status(0.0).reason, "nobody restarts it when all is over"


def test_a_failure_before_the_first_step_is_tried_once_more(one: Harness) -> None:
    one.end(1)
    assert one.shown[0] == "starting"
    one.end(1)
    assert one.member.over == "failed"
    assert "2 times before its first step" in one.member.cause


def test_a_refusal_is_not_tried_again_and_its_sentence_stands_alone(one: Harness) -> None:
    one.life.say("failed", reason="data.path: there is nothing")
    one.end(2)
    assert one.member.refused
    assert one.member.cause == "data.path: there is nothing"
    assert len(one.lives) == 1


def test_a_refusal_after_it_has_trained_is_a_failure_like_others(one: Harness) -> None:
    one.train(7)
    one.end(-9)
    one.life.say("failed", reason="data.path: there is nothing any more")
    one.end(2)
    assert not one.member.refused
    assert one.shown[0] == "restarting"


def test_leaving_with_exit_code_0_in_the_middle_is_a_failure(one: Harness) -> None:
    one.train(7)
    one.end(0)
    assert one.member.restarts == 1
    failure = one.member.status(0.0).failure
    assert failure is not None
    assert failure.reason == "left without finishing, exit code 0"


def test_in_lockstep_the_first_failure_is_the_last(tmp_path: Path) -> None:
    one = Harness(tmp_path, mends=False)
    one.train(7)
    one.end(-9)
    assert one.member.over == "failed"
    assert len(one.lives) == 1
    one.life.close()


def test_without_progress_it_writes_its_stacks_and_is_killed_and_begins_anew(tmp_path: Path) -> None:
    one = Harness(tmp_path, stalled_ms=1000)
    one.train(7)
    one.pass_s(1.0)
    assert one.shown[0] == "training"
    one.pass_s(0.1)
    assert one.life.dumped == 1
    assert one.life.process.killed == 0, "there is a moment to write"
    assert one.shown[0] == "stalled"
    assert "its log ends with its stacks" in one.shown[1]
    assert one.member.wake_at() == pytest.approx(one.now + DUMP_S)
    hung = one.life
    one.pass_s(DUMP_S)
    assert hung.process.killed == 1
    one.pass_s()
    assert one.member.incarnation == 2
    failure = one.member.status(0.0).failure
    assert failure is not None
    assert "made no progress for 1.1 s" in failure.reason
    assert "launcher: c1 made no progress" in one.run.log("c1", 1).read_text()
    assert hung.dumped == 1
    for life in one.lives:
        life.close()


def test_a_stopped_one_cannot_write_its_stacks_and_is_killed_at_once(tmp_path: Path) -> None:
    one = Harness(tmp_path, stalled_ms=1000)
    one.train(7)
    one.life.stopped = True
    stopped = one.life
    one.pass_s(1.5)
    assert (stopped.dumped, stopped.process.killed) == (0, 1)
    one.pass_s()
    assert one.member.incarnation == 2
    failure = one.member.status(0.0).failure
    assert failure is not None
    assert "stopped by a signal (SIGSTOP)" in failure.reason
    for life in one.lives:
        life.close()


def test_slow_steps_are_no_stall_and_neither_is_a_slow_start(tmp_path: Path) -> None:
    one = Harness(tmp_path, stalled_ms=1000, starting_ms=5000)
    one.pass_s(4.9)
    assert one.shown[0] == "starting"
    one.say("training", 1, step_ms_p99=2000.0)
    one.pass_s(9.9)
    assert one.shown[0] == "training"
    one.pass_s(0.2)
    assert one.shown[0] == "stalled"
    one.life.close()


def test_told_to_stop_it_is_not_restarted_and_its_end_is_as_it_was(one: Harness) -> None:
    one.train(7)
    one.member.order("stop")
    assert one.life.orders() == ["stop"]
    assert one.shown[0] == "stopping"
    one.life.say("stopped", 7, reason="asked to stop")
    one.end(0)
    assert (one.member.over, one.shown) == ("stopped", ("stopped", "asked to stop"))
    assert one.member.lost == "c1 was stopped alone"


def test_told_to_stop_it_does_not_begin_the_life_that_was_due(one: Harness) -> None:
    for _ in range(2):
        one.train(7)
        one.end(-9)
    one.member.order("stop")
    one.pass_s(100.0)
    assert one.member.over == "stopped"
    assert len(one.lives) == 2
    assert one.member.lost.startswith("c1: the run ended before its next life began; before, it ended by SIGKILL")


@pytest.mark.parametrize(("said", "over"), [("training", "stopped"), ("finished", "finished")])
def test_killed_in_the_end_it_is_what_it_had_become(one: Harness, said: str, over: str) -> None:
    one.say(said, 7)
    one.member.order("release")
    one.member.kill("killed, since it did not leave in time")
    one.pass_s()
    assert one.member.over == over
    assert "did not leave in time" in one.shown[1]


def unsaved(one: Harness) -> None:
    one.life.say("failed", reason="could not save its end: No space left on device")
    one.end(Unsaved.exit_code)


@pytest.mark.parametrize("told", ["release", "stop", ""])
def test_one_that_could_not_save_its_end_has_failed_and_is_not_begun_anew(one: Harness, told: str) -> None:
    one.say("finished", 7)
    if told:
        one.member.order(told)
    unsaved(one)
    assert (one.member.over, one.member.unsaved, len(one.lives)) == ("failed", True, 1)
    assert "No space left on device" in one.member.cause


def test_the_age_of_its_checkpoint_goes_on_between_reports(one: Harness) -> None:
    one.life.say("training", 7, checkpoint=Checkpoint(step=5, age_s=1.5))
    one.pass_s()
    one.pass_s(4.0)
    assert one.member.status(one.now).checkpoint.age_s == 5.5


def test_a_restart_that_was_asked_for_saves_first_and_costs_no_budget(tmp_path: Path) -> None:
    one = Harness(tmp_path, max_restarts=0)
    one.train(7)
    promise = one.member.restart(one.now)
    assert promise() is None
    assert one.shown[0] == "stopping"
    again = one.member.restart(one.now)
    assert one.life.orders() == ["stop"], "asked twice, told once"
    one.life.say("stopped", 9)
    one.end(0)
    for asked in (promise, again):
        answer = asked()
        assert answer is not None
        assert (answer.done, answer.text) == (True, "c1 begins anew, incarnation 2")
    assert one.member.status(0.0).failure is None
    assert one.member.restart(one.now)() is not None, "the life that is beginning is the new one"
    assert one.member.incarnation == 2
    for life in one.lives:
        life.close()


def test_a_hung_one_that_was_asked_to_restart_is_killed(tmp_path: Path) -> None:
    one = Harness(tmp_path, grace_ms=1000)
    one.train(7)
    promise = one.member.restart(one.now)
    hung = one.life
    one.pass_s(1.0)
    assert hung.process.killed == 1
    one.pass_s()
    answer = promise()
    assert answer is not None
    assert answer.done
    for life in one.lives:
        life.close()


def test_one_that_failed_for_good_lives_again_when_somebody_asks(one: Harness) -> None:
    one.end(1)
    one.end(1)
    assert one.member.over == "failed"
    promise = one.member.restart(one.now)
    one.pass_s()
    answer = promise()
    assert answer is not None
    assert answer.done
    assert (one.member.over, one.member.incarnation) == (None, 3)


@pytest.mark.parametrize("how", ["finished", "lockstep"])
def test_a_restart_that_makes_no_sense_is_refused_with_a_sentence(tmp_path: Path, how: str) -> None:
    one = Harness(tmp_path, mends=how != "lockstep")
    one.train(7)
    if how == "finished":
        one.say("finished", 8)
        one.end(0)
    answer = one.member.restart(one.now)()
    assert answer is not None
    assert not answer.done
    assert ("nothing to restart" if how == "finished" else "mach resume") in answer.text
    one.life.close()


def test_a_stub_saves_nothing_so_each_restart_counts(tmp_path: Path) -> None:
    one = Harness(tmp_path, "stub")
    for pause_s in (0.0, 0.5, 1.0, 0.0):
        one.say("waiting")
        one.end(-9)
        one.pass_s(pause_s)
    assert one.member.over == "failed"
    assert one.member.incarnation == 4
    for life in one.lives:
        life.close()


@pytest.mark.parametrize("error", [OSError(11, "Resource temporarily unavailable"), RunError("the forkserver ended")])
def test_a_life_that_cannot_even_begin_is_a_failure(one: Harness, error: Exception) -> None:
    one.train(7)
    one.broken = error
    one.end(-9)
    assert one.shown[0] == "restarting"
    assert "could not be started" in one.shown[1]
    one.broken = None
    one.pass_s(0.5)
    assert one.shown[0] == "starting"
