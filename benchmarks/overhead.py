"""What the bus costs a component: its rate between stub neighbours over the rate of the same learner without a bus.

    python -m benchmarks.overhead [--json] [--config digits] [--rounds 15] [--steps 200]

One real component (the middle one of three) trains in this process; its parent and its child are stubs in
processes of their own. A round is a block of turns over ZeroMQ, whose letters are written down, and then a block
in which a second learner, built from the same seed, gets exactly those letters from memory. Both do the same
arithmetic on the same numbers (checked: their weights end bit-identical), interleaved, so that the ratio of
their times is the price of the bus and of sharing the machine with two neighbours.
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
from workers.plan import Plan, make_plan
from workers.stub import Stub
from workers.trainer import assemble
from workers.turns import Trainer

PARENT, SELF, CHILD = "c0", "c1", "c2"
SCRIPTED: dict[int, dict[str, dict[str, float]]] = {0: {"stub": {}}, 2: {"stub": {}}}


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
    """The body of a stub's process."""
    torch.set_num_threads(1)
    plan = msgspec.json.decode(plan_json, type=Plan)
    process, config = plan.process(name), plan.config
    script = config.components[process.index].stub
    assert script is not None
    with contextlib.closing(mailbox_of(plan, name)) as mailbox:
        stub = Stub(
            script,
            mailbox,
            children=process.children,
            embedding=config.model.embedding,
            sample_shape=load_data(config.data).train_inputs.shape[1:],
            batch_size=config.train.batch_size,
            seed=process.index,
        )
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
def neighbours(plan: Plan) -> Iterator[None]:
    """Both stubs, running for as long as the block."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    processes = [
        context.Process(target=neighbour, args=(msgspec.json.encode(plan), name, stop), daemon=True)
        for name in (PARENT, CHILD)
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


def measure(config: Config, rounds: int, steps: int) -> dict[str, object]:
    """Interleaved rounds; the fields of the JSON line."""
    torch.set_num_threads(config.threads)
    dataset = load_data(config.data)
    with tempfile.TemporaryDirectory(prefix="mach-") as folder:
        plan = make_plan(config, run="overhead", directory=Path(folder), sockets=Path(folder))
        with neighbours(plan), contextlib.closing(mailbox_of(plan, SELF)) as mailbox:
            recorder = Recorder(mailbox)
            with_bus, without = trainer(plan, dataset, recorder), trainer(plan, dataset, Replay(recorder))
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


def trainer(plan: Plan, dataset: Dataset, mailbox: Mailbox) -> Trainer:
    """The component under measurement, at a mailbox of its own."""
    process = plan.process(SELF)
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
@click.option("--rounds", default=15, show_default=True)
@click.option("--steps", default=200, show_default=True, help="Steps of a block.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
def main(as_json: bool, config_name: str, rounds: int, steps: int, settings: tuple[str, ...]) -> None:
    """Parse, measure, print."""
    config = load(config_name, ("n_components=3", "graph=chain", *settings), RECIPES)
    config = msgspec.convert(msgspec.to_builtins(config) | {"components": SCRIPTED}, Config)
    result = measure(config, rounds, steps)
    if not as_json:
        print(
            f"step with the bus {result['step_ms_with_bus']} ms, without {result['step_ms_without']} ms; "
            f"ratio {result['ratio']} ({result['ratio_min']} … {result['ratio_max']} over {rounds} rounds)"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
