"""What the bus costs a component: its rate between neighbours over the rate of the same learner without a bus.

    python -m benchmarks.overhead [--json] [--config digits] [--rounds 150] [--steps 20] [--stubs]

One real component trains in this process. Its neighbour, child and parent at once as in a ring of two, is another
one that trains in a process of its own, and so never sleeps. With `--stubs` it has a parent and a child instead that
are scripted: they ask as soon as there is room, answer at once, and sleep in between, so that every message to them
wakes a process, of three on the machine. A round is a block of turns over the bus, whose letters are written down, and
then a block in which a second learner, built from the same seed, gets exactly those letters from memory. Both do the
same arithmetic on the same numbers (checked: their weights end bit-identical), interleaved, so that the ratio of
their times is the price of the bus and of what neighbours do to the machine because of it. Blocks are short, and there
are many: a machine changes its pace from second to second, and letters of a long block fill the cache that both share.
"""

import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import torch

from bus.mailbox import Mailbox, MailboxRelay
from bus.sockets import ZmqMailbox
from configs.load import load
from configs.tree import Config
from mach.assemble import learner_of, samples_of
from mach.data import Dataset
from mach.data import load as load_data
from mach.messages import Letter, Message
from mach.recipes import RECIPES
from workers.part import part_of
from workers.plan import Plan, make_plan
from workers.stub import Stub
from workers.trainer import assemble
from workers.turns import Trainer

SCRIPTED: dict[int, dict[str, dict[str, float]]] = {0: {"stub": {}}, 2: {"stub": {}}}
"""The neighbours of c1 in a chain of three."""


class Recorder(MailboxRelay):
    """A mailbox that writes down what its inner one gave: letters and rooms, turn by turn."""

    def __init__(self, inner: Mailbox) -> None:
        super().__init__(inner)
        self.letters: deque[list[Letter]] = deque()
        self.rooms: deque[bool] = deque()

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        """Pass on, and keep."""
        letters = self.inner.receive(wait_s)
        self.letters.append(letters)
        return letters

    def room(self, child: str) -> bool:
        """Pass on, and keep."""
        room = self.inner.room(child)
        self.rooms.append(room)
        return room


class Replay(MailboxRelay):
    """The same letters and rooms from memory: a mailbox without a bus."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder.inner)
        self.recorder = recorder

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        """The letters of the recorded turn."""
        return self.recorder.letters.popleft()

    def room(self, child: str) -> bool:
        """What was so in the recorded turn."""
        return self.recorder.rooms.popleft()

    def send(self, peer: str, message: Message) -> bool:
        """Into the void: the replies are recorded already."""
        return True


def neighbour(plan_json: bytes, name: str, stop: "multiprocessing.synchronize.Event") -> None:
    """The body of a neighbour's process."""
    plan = msgspec.json.decode(plan_json, type=Plan)
    torch.set_num_threads(plan.config.threads)
    process, config = plan.process(name), plan.config
    dataset = load_data(config.data)
    script = config.components[process.index].stub if process.index in config.components else None
    with contextlib.closing(mailbox_of(plan, name)) as mailbox:
        if script is None:
            training = trainer(plan, name, dataset, mailbox)
            while not stop.is_set():
                training.turn()
            return
        stub = Stub(script, mailbox, part_of(config, process.index, dataset, seed=process.index))
        while not stop.is_set():
            stub.turn(stub.idle_s())


def mailbox_of(plan: Plan, name: str) -> ZmqMailbox:
    """The real mailbox of one process of the plan."""
    process = plan.process(name)
    return ZmqMailbox(
        name,
        run_id=plan.run_id,
        incarnation=1,
        children=process.children,
        parents=process.parents,
        bus=plan.config.bus,
        directory=Path(plan.sockets),
        samples=samples_of(plan.config, load_data(plan.config.data)),
    )


@contextlib.contextmanager
def neighbours(plan: Plan, name: str) -> Iterator[None]:
    """All but this one, running for as long as the block."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    processes = [
        context.Process(target=neighbour, args=(msgspec.json.encode(plan), other.name, stop), daemon=True)
        for other in plan.processes
        if other.name != name
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for process in processes:
            process.join()


def block(trainer: Trainer, steps: int) -> float:
    """Seconds of `steps` turns."""
    start = time.perf_counter()
    for _ in range(steps):
        trainer.turn()
    return time.perf_counter() - start


def measure(config: Config, name: str, rounds: int, steps: int) -> dict[str, object]:
    """Interleaved rounds of the component of this name; the fields of the JSON line."""
    torch.set_num_threads(config.threads)
    dataset = load_data(config.data)
    with tempfile.TemporaryDirectory(prefix="mach-") as folder:
        plan = make_plan(config, run="overhead", directory=Path(folder), sockets=Path(folder))
        with neighbours(plan, name), contextlib.closing(mailbox_of(plan, name)) as mailbox:
            recorder = Recorder(mailbox)
            with_bus = trainer(plan, name, dataset, recorder)
            without = trainer(plan, name, dataset, Replay(recorder))
            settle(with_bus, recorder)
            block(without, with_bus.learner.version)
            times = [(block(with_bus, steps), block(without, steps)) for _ in range(rounds)]
            received = dict(mailbox.counts.received)
    check_identical(with_bus, without)
    ratios = sorted(alone / bus for bus, alone in times)
    turns = with_bus.learner.version
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(ratios[0], 4),
        "ratio_max": round(ratios[-1], 4),
        "rounds": rounds,
        "steps": steps,
        "step_ms_with_bus": round(1000 * statistics.median(bus for bus, _ in times) / steps, 3),
        "step_ms_without": round(1000 * statistics.median(alone for _, alone in times) / steps, 3),
        "received_per_step": {kind: round(count / turns, 2) for kind, count in sorted(received.items())},
    }


def trainer(plan: Plan, name: str, dataset: Dataset, mailbox: Mailbox) -> Trainer:
    """A component that trains, at a mailbox of its own."""
    process = plan.process(name)
    learner = learner_of(plan.config, process.index, process.children, dataset, torch.device("cpu"))
    return assemble(plan, process, learner, mailbox, dataset)


def settle(trainer: Trainer, recorder: Recorder) -> None:
    """Turns until every neighbour's messages have come and the caches are warm."""
    while min(recorder.counts.received[kind] for kind in ("activation", "target", "gradient")) < 100:
        trainer.turn()


def check_identical(one: Trainer, other: Trainer) -> None:
    """Both learners did the same work, or the ratio means nothing."""
    pairs = zip(one.learner.component.parameters(), other.learner.component.parameters(), strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        sys.exit("the two learners did not do the same work; the ratio would mean nothing")


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, last.")
@click.option("--config", "config_name", default="digits", show_default=True, help="Sizes and batch.")
@click.option("--rounds", default=150, show_default=True)
@click.option("--steps", default=20, show_default=True, help="Steps of a block.")
@click.option("--stubs", is_flag=True, help="Scripted neighbours in place of one that trains.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
def main(as_json: bool, config_name: str, rounds: int, steps: int, stubs: bool, settings: tuple[str, ...]) -> None:
    """Parse, measure, print."""
    shape = ("n_components=3", "graph=chain") if stubs else ("n_components=2", "graph=ring")
    config = load(config_name, (*shape, *settings), RECIPES)
    if stubs:
        config = msgspec.convert(msgspec.to_builtins(config) | {"components": SCRIPTED}, Config)
    result = measure(config, "c1" if stubs else "c0", rounds, steps)
    if not as_json:
        print(
            f"step with the bus {result['step_ms_with_bus']} ms, without {result['step_ms_without']} ms; "
            f"ratio {result['ratio']} ({result['ratio_min']} … {result['ratio_max']} over {rounds} rounds)"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
