"""Answers from further down between trainers on the virtual clock: they come, later, and nobody waits for them."""

from pathlib import Path

import pytest
import torch

from bus.virtual import VirtualBus
from configs.load import load
from mach.assemble import learner_of
from mach.data import load as load_data
from mach.recipes import RECIPES
from workers.plan import make_plan
from workers.trainer import assemble
from workers.turns import Trainer

TURN_S = 0.01


class Turns:
    """A trainer's turns, each 10 ms."""

    def __init__(self, name: str, trainer: Trainer) -> None:
        self.name = name
        self.trainer = trainer
        self.steps = 0
        self.ages: list[float] = []

    def turn(self, now: float) -> float:
        step = self.trainer.turn()
        assert step is not None
        self.steps += 1
        self.ages += [age.seconds for age in step.target_ages]
        return TURN_S


def run(depth: int, *, until_s: float = 2.0, dead: str = "", graph: str = "chain") -> dict[str, Turns]:
    """Four components, 5 ms apart."""
    settings = ("recipe=mach", f"graph={graph}", "n_components=4", f"method.depth={depth}", "train.batch_size=8")
    config = load("digits", (*settings, "bus.timeout_ms=400", "bus.window=3"), RECIPES)
    dataset = load_data(config.data)
    bus = VirtualBus(latency_s=0.005)
    actors: dict[str, Turns] = {}
    for process in make_plan(config, run="r", directory=Path(), sockets=Path()).processes:
        door = bus.mailbox(process.name, children=process.children, parents=process.parents, bus=config.bus)
        learner = learner_of(config, process.index, process.children, dataset, torch.device("cpu"))
        plan = make_plan(config, run="r", directory=Path(), sockets=Path())
        actors[process.name] = Turns(process.name, assemble(plan, process, learner, door, dataset))
    if dead:
        bus.kill(dead)
    bus.run(list(actors.values()), until_s=until_s)
    return actors


@pytest.mark.parametrize("graph", ["chain", "ring"])
def test_answers_from_further_down_are_later_and_every_component_steps_as_often(graph: str) -> None:
    flat, deep = run(0, graph=graph), run(2, graph=graph)
    for name in flat:
        assert deep[name].steps == flat[name].steps > 150
    first, second = flat["c0"], deep["c0"]
    assert len(second.ages) > 30
    assert min(second.ages) > max(first.ages)
    for name in ("c0", "c1"):  # with c1's places shared between its own questions and its parent's
        learner = deep[name].trainer.learner
        assert not learner.unfit
        assert len(deep[name].ages) > 20
    middle = deep["c1"].trainer.mailbox.counts
    assert middle.received["gradient"] > 20
    assert middle.sent["gradient"] > len(deep["c1"].ages)  # its own, and those passed on


def test_when_nobody_answers_further_down_the_student_does_and_nobody_waits() -> None:
    actors = run(1, dead="c2")
    assert actors["c0"].steps == actors["c1"].steps > 150
    ages = actors["c0"].ages
    assert len(ages) > 5, "nobody but the student of c1 can have given them"
    assert max(ages) < 0.4, "given before the parent gives its place up"
    assert not actors["c0"].trainer.mailbox.counts.dropped["timeout"]


def test_who_has_left_asks_nobody_and_answers_at_once() -> None:
    actors = run(1, until_s=0.5)
    trainer = actors["c1"].trainer
    trainer.leave()
    trainer.take([])
    assert trainer.learner.deep.ask("c2", 0, trainer.mailbox.now()) is None
    assert not trainer.mailbox.room("c2")
