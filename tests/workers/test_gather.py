"""How lock-step stops: what is ordered when, on members whose lives a test plays; and whole runs in virtual time, told
to stop at any moment, whose components all end with the same step, bit for bit that of the plain loop.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reference
from configs.load import load
from configs.tree import Supervise
from fakes import Life
from mach.recipes import RECIPES
from workers.gather import Gathering
from workers.keeper import Unkept
from workers.member import Member
from workers.report import Report
from workers.rundir import RunDir
from workers.simulate import Orders, Simulation
from workers.timing import timing_of


class Crowd:
    """Members told to gather, and the time at which they are given up."""

    def __init__(self, path: Path, count: int = 3) -> None:
        run = RunDir(path / "r")
        run.make()
        self.now = 0.0
        self.lives = [Life() for _ in range(count)]
        self.members = [
            Member(lambda _, __, life=life: life.attempt, 1, Supervise(), run, 0.0, mends=False) for life in self.lives
        ]
        self.gathering = Gathering(self.members, 2.5, 0.0)
        for member in self.members:
            member.order("gather")

    def say(self, index: int, state: str, step: int, **more: object) -> None:
        self.lives[index].say(state, step, **more)  # type: ignore[arg-type]
        self.members[index].look(self.now)

    def end(self, index: int, code: int) -> None:
        self.lives[index].process.exitcode = code
        self.members[index].look(self.now)

    def order(self) -> str | None:
        return self.gathering.order(self.now)


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    crowd = Crowd(tmp_path)
    yield crowd
    for life in crowd.lives:
        life.close()


def test_all_go_on_to_the_furthest_bound_and_leave_when_all_have_saved(crowd: Crowd) -> None:
    assert [life.orders() for life in crowd.lives] == [["gather"]] * 3
    assert crowd.members[0].status(0.0).state == "stopping"
    crowd.say(0, "waiting", 7, bound=7)
    crowd.say(1, "waiting", 7, bound=8)
    crowd.say(2, "training", 9)
    assert crowd.order() is None, "nobody knows yet what the third is bound to reach"
    crowd.say(2, "waiting", 9, bound=9)
    assert crowd.order() == "until 9"
    assert crowd.order() is None, "told once"
    for index in (2, 0):
        crowd.say(index, "stopping", 9, bound=9)
        assert crowd.order() is None
    crowd.say(1, "stopping", 9, bound=8)
    assert crowd.order() == "stop"


def test_who_has_finished_needs_no_word(crowd: Crowd) -> None:
    crowd.say(0, "finished", 50)
    crowd.say(1, "waiting", 49, bound=49)
    crowd.say(2, "waiting", 48, bound=49)
    assert crowd.order() == "until 50"
    crowd.end(0, 0)
    assert crowd.members[0].over == "finished"
    crowd.say(1, "stopping", 50)
    crowd.say(2, "stopping", 50)
    assert crowd.order() == "stop"


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("how", ["dead", "left", "silent"])
def test_one_that_does_not_come_keeps_nobody(crowd: Crowd, how: str, told: bool) -> None:
    for index in range(3 if told else 2):
        crowd.say(index, "waiting", 7, bound=8)
    assert crowd.order() == ("until 8" if told else None)
    crowd.say(0, "stopping", 8)
    if how == "dead":
        crowd.end(2, -9)
    elif how == "left":
        crowd.say(2, "stopped", 7)
        crowd.end(2, 0)
    else:
        crowd.now = 2.4
        assert crowd.order() is None
        crowd.now = 2.5
    assert crowd.order() == "stop"


class Heard:
    """A member of a simulated run, as its newest report shows it."""

    over = None
    saving = False

    def __init__(self, report: Report | None) -> None:
        self.gathered = report is not None and report.state in ("stopping", "finished")
        self.bound = None if report is None else report.step if report.state == "finished" else report.bound


@pytest.mark.parametrize(("rounds", "saves"), [(1, False), (1, True), (3, True)])
@pytest.mark.parametrize(
    "graph", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("chain", "kgraph")), "ring"]
)
def test_told_to_stop_at_any_moment_all_end_with_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str, rounds: int, saves: bool
) -> None:
    """The word comes to c0 first, 3 ms later to c1, and so on; a step is of so many rounds. `saves`: it may come while
    they settle to save, every other step.
    """
    words = ("n_components=4", "train.steps=9", "train.batch_size=16", "evaluate.every_steps=1000", f"graph={graph}")
    config = load("digits", (*words, f"method.update_every={rounds}"), RECIPES)
    timing = timing_of("3ms", "5ms", "5ms,c2=9ms", [], 4)
    monkeypatch.setattr(Unkept, "due", lambda self, version, now: saves and version % 2 == 0)
    ended: set[int] = set()
    for moment in range(12):
        simulation = Simulation(config, timing, tmp_path / f"run{moment}", lockstep=True)
        monkeypatch.setattr(Orders, "orders", called_at(0.02 * moment * rounds))
        simulation.run()
        [step] = {trainer.learner.version for trainer in simulation.trainers.values()}
        assert not any(trainer.learner.descent.gathered for trainer in simulation.trainers.values())
        assert {report.state for report in simulation.reports.values()} <= {"stopped", "finished"}
        if rounds == 1 and step not in ended:
            for i, expected in enumerate(reference.train(config, step)):
                found = load_file(RunDir(tmp_path / f"run{moment}").weights(f"c{i}"))
                assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        ended.add(step)
    assert len(ended) >= 4, ended


def called_at(at_s: float) -> Callable[[Orders], set[str]]:
    """What a supervisor orders that is told to stop at that moment."""
    given: list[str] = []

    def orders(self: Orders) -> set[str]:
        now = self.simulation.stage.bus.clock.now
        if now < at_s + 0.003 * self.process.index:
            return {"release"} if self.simulation.all_done() else set()
        heard = [Heard(self.simulation.reports.get(name)) for name in self.simulation.trainers]
        order = Gathering(heard, float("inf"), now).order(now)  # type: ignore[arg-type]
        if order is not None and (not given or order == "stop"):
            given.append(order)
        return {"gather", *given}

    return orders
