"""Virtual time: exact, repeatable, and a whole neighbourhood of actors in one process."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from bus.post import EdgeMailbox
from bus.virtual import VirtualBus, VirtualClock
from configs.tree import Bus
from mach.messages import Activation, Age, Gradient, Target

X = torch.zeros(2)


@dataclass
class Worker:
    """Asks its child whenever there is room, answers its parent, pays, and writes down what happened when."""

    name: str
    box: EdgeMailbox
    child: str
    step_s: float
    diary: list[tuple[float, str, int]] = field(default_factory=list)
    ages: list[Age] = field(default_factory=list)
    steps: int = 0

    def turn(self, now: float) -> float:
        for letter in self.box.receive():
            match letter.message:
                case Activation(id=id):
                    self.box.send(letter.sender, Target(id, self.steps, X))
                    self.diary.append((now, "answered", id))
                case Target(id=id, version=version):
                    assert letter.age is not None
                    self.ages.append(letter.age)
                    self.box.send(letter.sender, Gradient(id, version, X))
                    self.diary.append((now, "learned", id))
                case Gradient(id=id):
                    self.diary.append((now, "was paid", id))
        if self.box.room(self.child):
            self.box.send(self.child, Activation(self.steps, self.steps, X))
        self.steps += 1
        return self.step_s


def ring(bus: VirtualBus, count: int = 3, step_s: float = 0.004) -> list[Worker]:
    names = [f"c{i}" for i in range(count)]
    return [
        Worker(
            name,
            bus.mailbox(name, children=[names[(i + 1) % count]], parents=[names[i - 1]]),
            names[(i + 1) % count],
            step_s,
        )
        for i, name in enumerate(names)
    ]


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    def diaries(seed: int) -> list[list[tuple[float, str, int]]]:
        bus = VirtualBus(latency_s=0.003, jitter_s=0.01, seed=seed)
        workers = ring(bus)
        bus.run(workers, until_s=2.0)
        return [worker.diary for worker in workers]

    assert diaries(1) == diaries(1)
    assert diaries(1) != diaries(2)
    assert all(len(diary) > 100 for diary in diaries(1))


def test_latency_is_exact() -> None:
    bus = VirtualBus(latency_s=0.010)
    workers = ring(bus, 2, step_s=0.001)
    bus.run(workers, until_s=1.0)
    # 10 ms there and 10 ms back; the child reads at the turn at which it arrives
    assert {round(age.seconds, 9) for age in workers[0].ages} <= {0.020, 0.021, 0.022}
    assert workers[0].steps == pytest.approx(1001, abs=1)


def test_jitter_never_lets_a_message_overtake() -> None:
    bus = VirtualBus(jitter_s=0.5, seed=3)
    settings = Bus(window=50)
    parent, child = bus.mailbox("a", children=["b"], bus=settings), bus.mailbox("b", parents=["a"], bus=settings)
    while not parent.room("b"):
        parent.receive(0.1)
        child.receive(0.1)
    for id in range(50):
        parent.send("b", Activation(id, 0, X))
    ids: list[int] = []
    while len(ids) < 50:
        ids += [letter.message.id for letter in child.receive(0.1)]
    assert ids == list(range(50))
    assert not child.counts.dropped


def test_a_killed_neighbour_slows_nobody_and_a_restarted_one_is_asked_again() -> None:
    bus = VirtualBus(latency_s=0.002)
    workers = ring(bus)
    bus.run(workers, until_s=1.0)
    before = [worker.steps for worker in workers]
    bus.kill("c1")
    bus.run(workers, until_s=2.0)
    assert workers[1].steps == before[1]
    assert workers[0].steps - before[0] == pytest.approx(250, abs=1)
    workers[1] = Worker("c1", bus.mailbox("c1", children=["c2"], parents=["c0"], incarnation=2), "c2", 0.004)
    learned = len(workers[0].ages)
    bus.run(workers, until_s=3.0)
    assert len(workers[0].ages) > learned + 50


def test_a_stopped_neighbour_gives_its_places_back_and_comes_back() -> None:
    bus = VirtualBus(latency_s=0.002)
    workers = ring(bus)
    bus.run(workers, until_s=1.0)
    bus.stop("c1")
    bus.run(workers, until_s=5.0)
    assert workers[0].box.edges()["c1"][0].state == "silent"
    assert workers[0].box.counts.dropped["timeout"] == 2
    asked = workers[0].box.counts.sent["activation"]
    bus.resume("c1")
    bus.run(workers, until_s=6.0)
    assert workers[0].box.edges()["c1"][0].state == "open"
    assert workers[0].box.counts.sent["activation"] > asked + 50


def test_inside_a_run_waiting_returns_what_is_there() -> None:
    bus = VirtualBus()
    seen: list[float] = []

    @dataclass
    class Waiter:
        name: str

        def turn(self, now: float) -> float:
            assert box.receive(10.0) == []
            seen.append(box.now())
            return 1.0 if now < 2 else math.inf

    box = bus.mailbox("a", children=["b"])
    bus.run([Waiter("a")])
    assert seen == [0.0, 1.0, 2.0]
    box.receive(0.5)
    assert bus.clock.now == pytest.approx(2.5)


def test_turns_are_counted_and_must_take_time() -> None:
    bus = VirtualBus(VirtualClock(5.0))
    workers = ring(bus)
    bus.run(workers, turns=7)
    assert [worker.steps for worker in workers] == [3, 2, 2]
    workers[0].step_s = 0.0
    with pytest.raises(ValueError, match="c0: a turn must take more than 0 s"):
        bus.run(workers, until_s=6.0)
    assert not bus.running


def test_what_is_sent_is_what_it_was_when_it_left() -> None:
    bus = VirtualBus(latency_s=1.0)
    parent, child = bus.mailbox("a", children=["b"]), bus.mailbox("b", parents=["a"])
    while not parent.room("b"):
        parent.receive(0.1)
        child.receive(0.1)
    x = torch.zeros(3)
    parent.send("b", Activation(0, 0, x))
    x += 1
    (letter,) = child.receive(2.0)
    assert isinstance(letter.message, Activation)
    assert letter.message.inputs.tolist() == [0, 0, 0]
