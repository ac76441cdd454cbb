"""Why a turn asks before it pays, and what lies unread at a child therefore: W + 1 gradients of an edge, and no more.

A turn takes a target, asks about the next batch with the place that it has freed, learns from it, and pays for it. So
an activation leaves while a gradient is due, and a child that reads in between takes the activation without the
gradient, and answers it: then W + 1 targets are to be paid for. It is one more and not two, since a child is asked
once a turn, and all earlier turns have paid. (Who gathers targets for one step, policy `accumulate`, owes those, too.)

To pay before anything new is asked would hold the bound at W, and was tried. It keeps a place empty for the length of a
step, since a gradient is what the step makes: every round trip takes a step more, and the share of steps on a child's
answer is W ÷ round trip. `mach simulate` (digits, a chain of three, 400 steps of 5 ms, messages of 1 ms, seeds 1 to 3,
whose shares are equal) had of them 49 % → 33 % with a window of 1, and 98 % → 66 % with the usual 2; with 2 at a child
three times slower 65 % → 49 %, with 4 and messages of 3 steps 56 % → 48 %. Accuracy moved by at most 0.6 points either
way, its spread being 0.1 to 0.4. To ask late only where the window was full helped little (33, 66, 49 and 49 %). In
stream wiring an activation is the step's own forward pass, too: after the step it would be one of old weights, or have
to be computed anew. A gradient more in a child's memory costs less, and the bus has room for it (`bus.lane.slots_of`).
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from bus.post import EdgeMailbox
from bus.virtual import VirtualBus
from configs.load import load
from mach.assemble import learner_of
from mach.data import load as load_data
from mach.learner import Step
from mach.messages import Activation, Target
from mach.recipes import RECIPES
from workers.plan import bus_of, make_plan
from workers.stage import Paced
from workers.trainer import assemble

TURNS = 80


class PaysFirst(Paced):
    """What was tried: a turn that asks when it has paid."""

    def turn(self) -> Step | None:
        """Read, learn, pay, ask."""
        self.take(self.mailbox.receive())
        batch = next(self.batches)
        step = self.learner.step(batch, self.mailbox.now())
        assert step is not None
        self.pay(step)
        for child in self.children:
            if self.mailbox.room(child):
                self.mailbox.send(child, self.learner.ask(batch, child))
        return step


class Pair:
    """A trainer c0, and its child c1, which reads when a test says so and answers all that it reads at once."""

    def __init__(self, order: type[Paced], window: int, in_step: Callable[["Pair"], None]) -> None:
        """`in_step`: what happens while c0 takes a step, which is before it pays."""
        config = load("digits", ("n_components=2", "train.batch_size=8", f"bus.window={window}"), RECIPES)
        plan = make_plan(config, run="r", directory=Path(), sockets=Path())
        bus, process, dataset = VirtualBus(), plan.process("c0"), load_data(config.data)
        self.embedding = config.model.embedding
        self.parent: EdgeMailbox = bus.mailbox("c0", children=["c1"], bus=bus_of(plan))
        self.child: EdgeMailbox = bus.mailbox("c1", parents=["c0"], bus=bus_of(plan))
        learner = learner_of(config, 0, ["c1"], dataset, torch.device("cpu"))
        kind = partial(order, spend=lambda: in_step(self))
        self.trainer = assemble(plan, process, learner, self.parent, dataset, kind)
        while not self.parent.room("c1"):
            self.parent.receive()
            self.child.receive()

    def read(self) -> None:
        for letter in self.child.receive():
            if isinstance(letter.message, Activation):
                embedding = torch.zeros(8, self.embedding)
                assert self.child.send("c0", Target(letter.message.id, 0, embedding))

    def unread(self) -> int:
        """Gradients that have left and that the child has not taken."""
        return self.parent.counts.sent["gradient"] - self.child.counts.received["gradient"]

    def steps(self) -> Iterator[Step]:
        for _ in range(TURNS):
            step = self.trainer.turn()
            assert step is not None
            yield step


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize(("order", "more"), [(Paced, 1), (PaysFirst, 0)])
def test_a_child_has_a_window_of_gradients_unread_and_one_if_it_is_asked_first(
    order: type[Paced], more: int, window: int
) -> None:
    """Over a few ways to read now and then, in the middle of its parent's steps and between them."""
    most = 0
    for seed in range(2):
        chance = random.Random(seed)

        def now_and_then(pair: Pair, chance: random.Random = chance) -> None:
            if chance.random() < 0.3:
                pair.read()

        pair = Pair(order, window, now_and_then)
        for _ in pair.steps():
            most = max(most, pair.unread())
            now_and_then(pair)
        assert not pair.parent.counts.dropped
        assert not pair.child.counts.dropped
    assert most == window + more


@pytest.mark.parametrize(("order", "every"), [(Paced, 1), (PaysFirst, 2)])
def test_who_asks_first_learns_from_a_child_at_every_step_and_who_pays_first_at_every_other(
    order: type[Paced], every: int
) -> None:
    """With a window of one, and a child that answers within a step."""
    pair = Pair(order, 1, Pair.read)
    on_child = [step.on_child for step in pair.steps()]
    assert sum(on_child) == (TURNS - 1) // every
