"""Stream wiring: trainers that take turns down the chain equal textbook loops; how late `ddg` is, exactly."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import reference_stream
from bus.mailbox import Counts
from bus.virtual import VirtualBus
from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from mach.assemble import component_of, learner_of
from mach.component import Component
from mach.data import Batches, Dataset
from mach.data import load as load_data
from mach.graph import children_of, name_of, parents_of
from mach.learner import Step
from mach.messages import Activation, Age, Letter, Message, Target
from mach.recipes import RECIPES
from mach.seeds import seed_of
from workers.turns import WAIT_S, Trainer

CPU = torch.device("cpu")
ROUNDS = 50


class Door:
    """A mailbox over lists: what is sent lies in the other's box at once; a window of `size` unanswered."""

    def __init__(self, name: str, boxes: dict[str, deque[Letter]], size: int) -> None:
        self.name = name
        self.boxes = boxes
        self.size = size
        self.flying: dict[str, set[int]] = {}
        self.refuses = 0
        self.counts = Counts()
        self.rounds = 0

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        come = list(self.boxes[self.name])
        self.boxes[self.name].clear()
        for letter in come:
            if isinstance(letter.message, Target):
                self.flying[letter.sender].discard(letter.message.id)
        return come

    def in_flight(self, child: str) -> set[int]:
        return self.flying.setdefault(child, set())

    def room(self, child: str) -> bool:
        return len(self.in_flight(child)) < self.size

    def send(self, peer: str, message: Message) -> bool:
        if isinstance(message, Activation):
            if self.refuses:
                self.refuses -= 1
                return False
            self.in_flight(peer).add(message.id)
        age = Age(0, 0.0) if isinstance(message, Target) else None
        self.boxes[peer].append(Letter(self.name, message, age))
        return True

    def now(self) -> float:
        return float(self.rounds)

    def lose(self, child: str) -> None:
        """The child began anew, and knows nothing of what it was asked."""
        assert self.flying[child]
        self.flying[child].clear()
        self.boxes[child].clear()

    def refuse(self, child: str) -> None:
        """The child is away: the next questions find no connection."""
        self.refuses = 3

    def give_back(self, child: str) -> None:
        """Places time out; the child was only slow, and then answers after all."""
        assert self.flying[child]
        self.flying[child].clear()


def configuration(recipe: str, *settings: str) -> Config:
    base = (f"recipe={recipe}", "data.noise=0", "train.batch_size=16", "seed=3", "n_components=3")
    return load("digits", (*base, *settings), RECIPES)


def doubled(dataset: Dataset) -> Dataset:
    return replace(dataset, train_inputs=dataset.train_inputs.double(), test_inputs=dataset.test_inputs.double())


def batches_of(config: Config, dataset: Dataset) -> Batches:
    return Batches(dataset, config.train.batch_size, seed=seed_of(config.seed, 0, "data"))


def networks(config: Config, dataset: Dataset) -> list[Component]:
    children = children_of(config.graph, config.n_components)
    return [
        component_of(config, i, [name_of(j) for j in own], dataset).to(dataset.train_inputs.dtype)
        for i, own in enumerate(children)
    ]


class Chain:
    """The same with learners: every round each component takes one turn, component 0 first."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        children = children_of(config.graph, config.n_components)
        parents = parents_of(children)
        boxes: dict[str, deque[Letter]] = {name_of(i): deque() for i in range(config.n_components)}
        self.trainers: list[Trainer] = []
        for i, (own, component) in enumerate(zip(children, networks(config, dataset), strict=True)):
            names = [name_of(j) for j in own]
            learner = learner_of(config, i, names, dataset, CPU, component)
            door = Door(name_of(i), boxes, config.bus.window)
            batches = batches_of(config, dataset)
            above = [name_of(j) for j in parents[i]]
            self.trainers.append(Trainer(learner, door, batches, children=names, parents=above))

    def run(self, rounds: int) -> Iterator[list[Step | None]]:
        for _ in range(rounds):
            yield [trainer.turn() for trainer in self.trainers]


def gap(found: list[Component], expected: list[Component]) -> float:
    """Largest difference of two weights."""
    rows = zip(found, expected, strict=True)
    return max(
        float((a - b).detach().abs().max())
        for ours, theirs in rows
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("recipe", ["mach-hop", "dgl", "dni", "ampnet", "backprop", "ddg"])
def test_with_a_window_of_one_a_recipe_equals_its_textbook_loop(recipe: str, optimiser: str) -> None:
    window = 3 if recipe == "ddg" else 1
    config = configuration(recipe, f"bus.window={window}", f"optimiser.name={optimiser}", "optimiser.schedule=constant")
    dataset = doubled(load_data(config.data))
    expected = networks(config, dataset)
    reference_stream.TEXTBOOK[recipe](config, expected, batches_of(config, dataset), ROUNDS)
    chain = Chain(config, dataset)
    end_to_end = recipe in ("ampnet", "backprop")  # then a batch takes a round for every section's way back
    for _ in chain.run(ROUNDS * (config.n_components if end_to_end else 1)):
        pass
    found = [trainer.learner.component for trainer in chain.trainers]
    assert gap(found, networks(config, dataset)) > 1e-3, "nothing was learnt"
    difference = gap(found, expected)
    assert difference <= (0.0 if recipe == "backprop" else 1e-6), difference


@pytest.mark.parametrize("trouble", [Door.lose, Door.refuse, Door.give_back], ids=lambda each: each.__name__)
@pytest.mark.parametrize("recipe", ["backprop", "ddg"])
def test_end_to_end_what_a_child_cannot_answer_any_more_is_put_to_it_again(
    recipe: str, trouble: Callable[[Door, str], None]
) -> None:
    """Else all above wait for its answer as long as their own time-out, which is minutes."""
    config = configuration(recipe)
    chain = Chain(config, load_data(config.data))
    for _ in chain.run(20):
        pass
    upper, middle, last = chain.trainers
    door = middle.mailbox
    assert isinstance(door, Door)
    while not door.boxes["c2"]:
        for trainer in (upper, middle):
            trainer.turn()
    before = [trainer.learner.version for trainer in chain.trainers]
    trouble(door, "c2")
    for _ in chain.run(40):
        pass
    assert all(trainer.learner.version > was + 5 for trainer, was in zip(chain.trainers, before, strict=True))
    assert len(middle.open["c2"]) <= config.bus.window
    assert last.learner.memory.under_way == 0


def test_a_late_gradient_that_is_scaled_teaches_a_guess_so_much_less() -> None:
    settings = "optimiser.name=sgd", "optimiser.schedule=constant", "bus.window=1"
    plain = configuration("dni", *settings)
    scaled = configuration("dni", *settings, "staleness.policies=[shrink]", "staleness.shrink=0.25")
    dataset = doubled(load_data(plain.data))
    expected, other = networks(scaled, dataset), networks(plain, dataset)
    reference_stream.dni(scaled, expected, batches_of(scaled, dataset), ROUNDS)
    reference_stream.dni(plain, other, batches_of(plain, dataset), ROUNDS)
    chain, unscaled = Chain(scaled, dataset), Chain(plain, dataset)
    said = [
        next(step.losses["guess"] for steps in run.run(ROUNDS) if (step := steps[1]) and "guess" in step.losses)
        for run in (chain, unscaled)
    ]
    assert said[0] == said[1] > 0, "what is told is the loss, and not what is left of it"
    for _ in chain.run(ROUNDS - chain.trainers[0].learner.version):
        pass
    found = [trainer.learner.component for trainer in chain.trainers]
    assert gap(found, expected) <= 1e-6
    assert gap(found, other) > 1e-4


def test_the_comparison_would_notice_a_difference() -> None:
    dataset = doubled(load_data(configuration("mach-hop").data))
    plain = configuration("mach-hop", "bus.window=1")
    expected = networks(plain, dataset)
    reference_stream.mach_stream(plain, expected, batches_of(plain, dataset), 5)
    for change in ("loss.late=0.9", "loss.child=0.9", "loss.distill=0.9", "loss.activation=0.9"):
        chain = Chain(configuration("mach-hop", "bus.window=1", change), dataset)
        for _ in chain.run(5):
            pass
        assert gap([trainer.learner.component for trainer in chain.trainers], expected) > 1e-6, change


def test_with_a_window_of_one_late_end_to_end_recipes_are_backpropagation() -> None:
    found = {}
    for recipe in ("backprop", "ddg", "ampnet"):
        config = configuration(recipe, "bus.window=1", "method.update_every=1", "optimiser.schedule=constant")
        chain = Chain(config, doubled(load_data(config.data)))
        for _ in chain.run(12):
            pass
        found[recipe] = [trainer.learner.component for trainer in chain.trainers]
    assert gap(found["ddg"], found["backprop"]) <= 1e-12
    assert gap(found["ampnet"], found["backprop"]) == 0.0


@pytest.mark.parametrize("recipe", ["mach-stream", "mach-hop", "dni", "dgl", "ddg"])
@pytest.mark.parametrize("part", ["encoder", ""])
def test_a_chain_of_which_much_is_frozen_makes_its_steps(recipe: str, part: str) -> None:
    """What nothing learns from has no graph to be pulled along; what passes through it goes on to the parent."""
    config = configuration(recipe, "graph=chain", *(f"probes.{name}=true" for name in ("agreement", "fresh")))
    dataset = load_data(config.data)
    chain = Chain(config, dataset)
    learners = [trainer.learner for trainer in chain.trainers]
    for learner in learners[:2]:
        learner.component.get_submodule(part).requires_grad_(requires_grad=False)
    for _ in chain.run(12):
        pass
    assert min(learner.version for learner in learners) >= 10
    for learner, before in zip(learners, networks(config, dataset), strict=True):
        now, then = (parameters_to_vector(net.encoder.parameters()) for net in (learner.component, before))
        assert torch.equal(now, then) == (learner is not learners[2])


class Turns:
    """A trainer's turns on the virtual bus, each 10 ms."""

    def __init__(self, name: str, trainer: Trainer) -> None:
        self.name = name
        self.trainer = trainer
        self.steps: list[Step] = []

    def turn(self, now: float) -> float:
        step = self.trainer.turn()
        if step is not None:
            self.steps.append(step)
        return 0.01


@pytest.mark.parametrize("n_components", [2, 4])
def test_on_the_virtual_clock_ddg_is_as_late_as_its_update_rule_says(n_components: int) -> None:
    config = configuration("ddg", f"n_components={n_components}", f"bus.window={n_components}", "train.steps=100")
    dataset = load_data(config.data)
    bus = VirtualBus()
    children = children_of(config.graph, n_components)
    parents = parents_of(children)
    actors = []
    for i, own in enumerate(children):
        names, above = [name_of(j) for j in own], [name_of(j) for j in parents[i]]
        door = bus.mailbox(name_of(i), children=names, parents=above, bus=config.bus)
        learner = learner_of(config, i, names, dataset, CPU)
        trainer = Trainer(learner, door, batches_of(config, dataset), children=names, parents=above)
        actors.append(Turns(name_of(i), trainer))
    bus.run(actors, until_s=0.5)
    for k, actor in enumerate(actors[:-1], start=1):  # section k of K, as the paper counts
        ages = [age.versions for step in actor.steps for age in step.gradient_ages]
        assert len(ages) > 20
        assert set(ages[n_components:]) == {n_components - k}, (k, ages)
    assert not any(step.gradient_ages for step in actors[-1].steps)


def test_a_component_with_nothing_to_train_on_waits_at_its_mailbox_and_makes_no_step() -> None:
    chain = Chain(configuration("mach-hop"), load_data(configuration("mach-hop").data))
    waits: list[float] = []
    door = chain.trainers[1].mailbox
    receive = door.receive

    def listening(wait_s: float = 0.0) -> list[Letter]:
        waits.append(wait_s)
        return receive(wait_s)

    door.receive = listening  # type: ignore[method-assign]
    door.now = lambda: sum(waits)  # type: ignore[method-assign]
    assert chain.trainers[1].turn() is None
    assert waits == [0.0, WAIT_S]
    assert chain.trainers[1].waited_s == pytest.approx(WAIT_S), "and that is known as idle time"
    chain.trainers[0].turn()
    assert chain.trainers[0].waited_s == 0.0


def test_a_batch_that_came_is_trained_on_once_and_the_source_waits_for_nobody() -> None:
    config = configuration("mach-hop", "n_components=2", "bus.window=2")
    chain = Chain(config, load_data(config.data))
    first, second = chain.trainers
    for _ in range(5):
        step = first.turn()
        assert step is not None  # its window is full after two, and it goes on alone
        assert not step.on_child
    assert [second.turn() is None for _ in range(4)] == [False, False, True, True]
    assert first.turn() is not None
    step = first.turn()
    assert step is not None


def test_end_to_end_a_full_window_is_waited_for() -> None:
    config = configuration("ddg", "n_components=2", "bus.window=2")
    chain = Chain(config, load_data(config.data))
    first, second = chain.trainers
    assert [first.turn() for _ in range(4)] == [None] * 4
    assert [second.turn() is None for _ in range(3)] == [False, False, True]
    step = first.turn()
    assert step is not None
    assert step.on_child


@pytest.mark.parametrize("graph", ["ring", "kgraph", "[[1],[2],[1]]", "[[2],[2],[]]"])
def test_a_stream_on_a_graph_that_is_no_tree_is_refused(graph: str) -> None:
    config = configuration("dgl", f"graph={graph}")
    with pytest.raises(ConfigError, match="graph: in stream wiring"):
        networks(config, load_data(config.data))


def test_a_tree_streams_to_every_child() -> None:
    config = configuration("backprop", "graph=[[1,2],[],[]]")
    chain = Chain(config, load_data(config.data))
    steps = list(chain.run(4))
    assert [step is not None for step in steps[1]] == [True, False, False]
    assert len(steps[1][0].gradient_ages) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("recipe", "settings", "terms"),
    [
        ("mach-hop", ("method.targets=logits", "loss.logits=1"), {"logits", "activation", "late", "distill"}),
        ("mach-hop", ("staleness.late=stash", "bus.window=2"), {"activation", "late"}),
        ("mach-hop", ("staleness.policies=[accumulate,clip]", "staleness.accumulate=2"), {"activation", "late"}),
        ("mach-hop", ("staleness.late=stash", "staleness.policies=[predict,compensate]"), {"activation", "late"}),
        ("mach-hop", ("method.gradient_reach=full", "model.join=residual"), {"target", "student", "activation"}),
        ("mach-hop", ("model.join=sum", "staleness.late=stash"), {"student", "distill", "activation", "late"}),
        ("takd", ("wiring=stream", "model.join=mean"), {"target", "student", "distill", "logits"}),
        ("ddg", ("method.heads=every", "staleness.policies=[bound,shrink]"), {"target", "activation"}),
    ],
)
def test_parts_of_the_method_go_together(recipe: str, settings: tuple[str, ...], terms: set[str]) -> None:
    config = configuration(recipe, *settings)
    chain = Chain(config, load_data(config.data))
    seen: set[str] = set()
    for steps in chain.run(20):
        step = steps[1]  # with a parent and a child
        if step is not None:
            seen |= set(step.losses)
            assert all(bool(torch.isfinite(value)) for value in step.losses.values())
    assert terms <= seen
    for trainer in chain.trainers:
        learner = trainer.learner
        assert learner.version > 5
        assert not learner.unfit
        assert set(learner.staleness.counts) <= set(config.staleness.policies)
