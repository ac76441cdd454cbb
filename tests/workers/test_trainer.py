"""A turn and its lock-step twin, on a mailbox that is a list."""

import errno
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from bus.mailbox import Counts
from configs.errors import ConfigError
from configs.load import load
from mach.assemble import learner_of
from mach.data import Dataset
from mach.data import load as load_data
from mach.messages import Activation, Age, Gradient, Letter, Message, Target
from mach.recipes import RECIPES
from mach.state import Copies
from workers.part import part_of
from workers.plan import make_plan
from workers.trainer import Life, assemble, remedy
from workers.turns import Trainer

CONFIG = load("digits", ("n_components=3", "graph=chain", "train.batch_size=8"), RECIPES)
E = CONFIG.model.embedding


class ListMailbox:
    """A mailbox whose letters a test writes, turn by turn; `rooms` runs out like a window."""

    def __init__(self, turns: list[list[Letter]], rooms: int = 1000) -> None:
        self.turns = turns
        self.rooms = rooms
        self.sent: list[tuple[str, Message]] = []
        self.counts = Counts()

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        return self.turns.pop(0) if self.turns else []

    def in_flight(self, child: str) -> Collection[int]:
        return ()

    def room(self, child: str) -> bool:
        return self.rooms > 0

    def send(self, peer: str, message: Message) -> bool:
        self.rooms -= isinstance(message, Activation)
        self.sent.append((peer, message))
        return True

    def now(self) -> float:
        return 0.0

    def parents_left(self) -> bool:
        return True

    def kinds(self) -> Counter[str]:
        return Counter(type(message).__name__ for _, message in self.sent)


class Unconnected(ListMailbox):
    """One whose connection to the child is gone at the first questions; the child answers those that it gets."""

    def __init__(self, turns: list[list[Letter]], fails: int) -> None:
        super().__init__(turns)
        self.fails = fails

    def send(self, peer: str, message: Message) -> bool:
        if isinstance(message, Activation):
            if self.fails > 0:
                self.fails -= 1
                return False
            self.turns.append([target(message.id)])
        return super().send(peer, message)


def trainer_at(mailbox: ListMailbox, dataset: Dataset | None = None) -> Trainer:
    dataset = load_data(CONFIG.data) if dataset is None else dataset
    plan = make_plan(CONFIG, run="r", directory=Path(), sockets=Path())
    process = plan.process("c1")
    learner = learner_of(CONFIG, 1, process.children, dataset, torch.device("cpu"))
    return assemble(plan, process, learner, mailbox, dataset)


def target(id: int, version: int = 0) -> Letter:
    return Letter("c2", Target(id, version, torch.randn(8, E)), Age(0, 0.0))


def question(id: int) -> Letter:
    return Letter("c0", Activation(id, 0, torch.randn(8, 64)))


def test_a_turn_without_mail_asks_and_trains_on_the_student() -> None:
    mailbox = ListMailbox([])
    step = trainer_at(mailbox).turn()
    assert not step.on_child
    assert mailbox.kinds() == {"Activation": 1}


def test_a_turn_answers_trains_on_the_answered_batch_and_pays() -> None:
    mailbox = ListMailbox([[], [question(70), target(0)]])
    trainer = trainer_at(mailbox)
    trainer.turn()
    step = trainer.turn()
    assert step.on_child
    assert [(peer, type(message), message.id) for peer, message in mailbox.sent] == [
        ("c2", Activation, 0),
        ("c0", Target, 70),
        ("c2", Activation, 1),
        ("c2", Gradient, 0),
    ]


def test_a_full_window_is_not_asked_into_and_nobody_waits() -> None:
    mailbox = ListMailbox([], rooms=2)
    trainer = trainer_at(mailbox)
    assert [trainer.turn().version for _ in range(5)] == [1, 2, 3, 4, 5]
    assert mailbox.kinds() == {"Activation": 2}


def test_lockstep_waits_for_every_letter_and_puts_early_ones_aside() -> None:
    early = [question(11), target(0)]
    gradient = Letter("c0", Gradient(10, 0, torch.zeros(8, E)))
    mailbox = ListMailbox([[], [question(10)], early, [], [gradient], [target(1)]])
    trainer = trainer_at(mailbox)
    first = trainer.lockstep_turn(lambda: False)
    assert first is not None
    assert first.on_child
    assert [letter.message.id for letter in trainer.early] == [11]
    second = trainer.lockstep_turn(lambda: False)
    assert second is not None
    assert len(second.gradient_ages) == 1
    assert second.gradient_ages[0].versions == 1
    answers = [message for _, message in mailbox.sent if isinstance(message, Target)]
    assert [(answer.id, answer.version) for answer in answers] == [(10, 0), (11, 1)]


def test_lockstep_settles_before_it_is_saved_and_goes_on_as_if_nothing_were_under_way() -> None:
    """After step 0 the parent's gradient of it is taken; the next turn then waits for none, nor does a later life."""
    paid = [Letter("c0", Gradient(10, 0, torch.full((8, E), 0.1))), question(11)]  # the parent is a step ahead
    first = trainer_at(ListMailbox([[question(10), target(0)], [], paid]))
    assert first.lockstep_turn(lambda: False) is not None
    assert ("c0", Gradient) in first.due_letters()
    assert first.settle(lambda: False)
    assert first.due_letters() == {("c2", Target), ("c0", Activation)}
    saved = Copies().take(first.state())

    later = trainer_at(ListMailbox([[question(11)], [target(1)]]))
    later.restore(saved)
    step = later.lockstep_turn(lambda: False)
    assert step is not None
    assert step.version == 2
    assert [age.versions for age in step.gradient_ages] == [1]
    assert ("c0", Gradient) in later.due_letters()
    assert not later.settle(lambda: True)


@pytest.mark.parametrize("fails", [0, 1, 3])
def test_lockstep_asks_again_where_there_was_no_connection(fails: int) -> None:
    """And learns from that what it would have learnt; the batch is remembered once."""
    mailbox = Unconnected([[question(10)]], fails)
    trainer = trainer_at(mailbox)
    memory, looks = trainer.learner.memory, iter(range(100))
    step = trainer.lockstep_turn(lambda: next(looks, None) is None)
    assert step is not None
    assert step.on_child
    assert mailbox.kinds() == {"Activation": 1, "Target": 1, "Gradient": 1}
    assert (memory.under_way, memory.forgotten) == (0, {})


class Narrow(ListMailbox):
    """One that lets no message of a kind through: they are too large."""

    def __init__(self, turns: list[list[Letter]], kind: type) -> None:
        super().__init__(turns)
        self.kind = kind

    def send(self, peer: str, message: Message) -> bool:
        large = isinstance(message, self.kind)
        self.counts.dropped["too-large"] += large
        return not large and super().send(peer, message)


@pytest.mark.parametrize("kind", [Activation, Target])
def test_lockstep_ends_where_a_message_is_too_large_instead_of_waiting_for_it(kind: type) -> None:
    trainer, looks = trainer_at(Narrow([[question(10), target(0)]], kind)), iter(range(9))
    with pytest.raises(ConfigError, match=r"bus\.max_message_mb: a message is larger, and in lock-step nobody"):
        trainer.lockstep_turn(lambda: next(looks, None) is None)
    assert trainer.learner.version == 0


def test_lockstep_gives_up_when_told_so() -> None:
    assert trainer_at(ListMailbox([])).lockstep_turn(lambda: True) is None


def test_an_examination_takes_its_questions_through_the_window_and_owes_nothing() -> None:
    mailbox = ListMailbox([], rooms=3)
    trainer = trainer_at(mailbox)
    assert trainer.exam is not None
    trainer.exam.begin(0)
    trainer.serve(0.0)
    assert mailbox.kinds() == {"Activation": 3}
    assert not any(message.owes for _, message in mailbox.sent if isinstance(message, Activation))


def questions_and_batches(rooms: int, turns: int, freed: int) -> str:
    """What went to the child while an examination ran, q and b, with so many places free in every turn."""
    mailbox = ListMailbox([], rooms=rooms)
    trainer = trainer_at(mailbox)
    assert trainer.exam is not None
    trainer.exam.begin(0)
    for _ in range(turns):
        assert trainer.turn() is not None
        mailbox.rooms += freed
    return "".join("b" if message.owes else "q" for _, message in mailbox.sent if isinstance(message, Activation))


def test_a_question_of_an_examination_takes_the_room_that_a_batch_leaves() -> None:
    assert questions_and_batches(rooms=2, turns=3, freed=2) == "bqbqbq"


@pytest.mark.parametrize("rooms", [1, 3])
def test_where_there_is_no_room_for_both_every_fifth_place_goes_to_an_examination(rooms: int) -> None:
    """A window as short as the round trip, in which a place becomes free in every turn."""
    at_first = {1: "", 3: "bqbq"}[rooms]
    assert questions_and_batches(rooms, turns=20, freed=1).removeprefix(at_first).startswith("bbbbqbbbbqbbbb")


@pytest.mark.parametrize(("above", "steps"), [("components.0.stub.rate=1", 3), ("components={}", 5)])
def test_in_a_stream_a_component_below_a_stub_counts_its_own_steps(above: str, steps: int) -> None:
    config = load("digits", ("recipe=mach-hop", "n_components=3", "train.steps=3", above), RECIPES)
    dataset = load_data(config.data)
    plan = make_plan(config, run="r", directory=Path(), sockets=Path())
    process = plan.process("c1")
    asked = part_of(config, 0, dataset, seed=0).questions["c1"]
    mailbox = ListMailbox([[Letter("c0", replace(asked, id=id))] for id in range(5)])
    learner = learner_of(config, 1, process.children, dataset, torch.device("cpu"))
    trainer = assemble(plan, process, learner, mailbox, dataset)
    life = Life(plan, process, trainer, None, None, None)  # type: ignore[arg-type]
    while not life.trained() and mailbox.turns:
        assert trainer.turn() is not None
    assert learner.version == steps
    assert life.trained() == (steps == 3), "a parent that trains would say BYE"
    life.orders.add("orphaned")
    assert life.trained() == (steps == 3), "what has come is trained on first"
    life.idle = True
    assert life.trained()


@pytest.mark.parametrize(
    ("name", "settings", "orders", "said"),
    [
        ("c0", (), (), "has done its steps"),
        ("c1", (), (), "ends after 0 of 3 steps, since nothing more comes from c0"),
        ("c1", (), ("orphaned",), "ends after 0 of 3 steps, since nothing more comes from c0"),
        ("c1", ("train.minutes=1",), (), "ends after 0 steps, since nothing more comes from c0"),
        ("c1", ("components.0.stub.rate=1",), (), "has done its steps"),
        ("c1", ("recipe=mach",), (), "has done its steps"),
    ],
)
def test_who_ends_with_the_run_says_after_how_many_steps(
    name: str, settings: tuple[str, ...], orders: tuple[str, ...], said: str
) -> None:
    config = load("digits", ("recipe=mach-hop", "n_components=3", "train.steps=3", *settings), RECIPES)
    dataset = load_data(config.data)
    plan = make_plan(config, run="r", directory=Path(), sockets=Path())
    process = plan.process(name)
    learner = learner_of(config, process.index, process.children, dataset, torch.device("cpu"))
    trainer = assemble(plan, process, learner, ListMailbox([]), dataset)
    life = Life(plan, process, trainer, None, None, None)  # type: ignore[arg-type]
    life.orders.update(orders)
    assert life.ending() == said
    learner.descent.version = 3
    assert (life.ending() == "has done its steps") == (config.train.minutes is None), "nor does it matter who ended it"


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.EMFILE, "raise ulimit -n"),
        (errno.EFBIG, "raise ulimit -f"),
        (errno.ENOSPC, "make room"),
        (None, "make room"),
        (errno.EROFS, "make it writable"),
        (errno.EACCES, "make it writable"),
        (errno.EIO, "make it writable"),
    ],
)
def test_who_cannot_save_is_told_to_make_room_only_where_that_helps(number: int | None, way: str) -> None:
    assert remedy("r", 7, diverged=False, errno=number) == f"{way}, then mach resume r"


def test_who_diverged_is_told_what_to_lower_and_not_to_make_room() -> None:
    assert remedy("r", 7, diverged=False) == "make room, then mach resume r"
    again, anew = (remedy("r", kept, diverged=True) for kept in (7, None))
    assert again.startswith("mach resume r, or launch again, with --set optimiser.lr=SMALLER; ")
    assert anew.startswith("begin again with --set optimiser.lr=SMALLER; ")
