"""What checkpoints cost a component: its rate with one a second over its rate without any.

    python -m benchmarks.checkpoint [--json] [--config digits] [--rounds 9] [--seconds 4] [--every-s 1]

Two learners are built from one seed, without neighbours. A round is a block of steps with a keeper that writes a
checkpoint every second, real files and `fsync` included, and as many steps without, in turns first and second; the
ratio of their times is the price of the copy on the training thread and of the writer's share of the machine. Both do
the same arithmetic (checked: their weights end bit-identical).
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from benchmarks.overhead import check_identical
from bus.virtual import VirtualBus
from configs.load import load
from configs.tree import Config
from mach.assemble import learner_of
from mach.data import load as load_data
from mach.recipes import RECIPES
from workers.keeper import Keeper
from workers.plan import Plan, make_plan
from workers.trainer import assemble
from workers.turns import Trainer

NAME = "c0"


def trainer(plan: Plan) -> Trainer:
    """A component with a student and nobody who ever answers."""
    process, config = plan.process(NAME), plan.config
    dataset = load_data(config.data)
    learner = learner_of(config, process.index, process.children, dataset, torch.device("cpu"))
    mailbox = VirtualBus(latency_s=0.0, seed=0).mailbox(
        NAME, children=process.children, parents=process.parents, bus=config.bus
    )
    return assemble(plan, process, learner, mailbox, dataset)


def block(trainer: Trainer, steps: int, keeper: Keeper | None) -> tuple[float, list[float]]:
    """Seconds of `steps` steps, and of each hand-over of a checkpoint among them."""
    handed: list[float] = []
    start = time.perf_counter()
    for _ in range(steps):
        step = trainer.learner.step(next(trainer.batches), 0.0)
        if keeper is None or step is None:
            continue
        now = time.perf_counter()
        if keeper.due(step.version, now):
            keeper.keep(step.version, trainer.state(), now)
            handed.append(time.perf_counter() - now)
    return time.perf_counter() - start, handed


def measure(config: Config, rounds: int, seconds: float) -> dict[str, object]:
    """Rounds of both, in turns; the fields of the JSON line."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory(prefix="mach-") as folder:
        plan = make_plan(config, run="checkpoint", directory=Path(folder), sockets=Path(folder))
        saving, plain = trainer(plan), trainer(plan)
        with contextlib.closing(Keeper(plan, NAME, incarnation=1)) as keeper:
            steps = max(1, round(100 * seconds / block(plain, 100, None)[0]))
            block(saving, 100, keeper)
            pairs, handed = [], []
            for number in range(rounds):
                found = {}
                for kind in ("saving", "plain") if number % 2 else ("plain", "saving"):
                    found[kind] = block(*((saving, steps, keeper) if kind == "saving" else (plain, steps, None)))
                pairs.append((found["saving"][0], found["plain"][0]))
                handed += found["saving"][1]
            keeper.finish(time.perf_counter())
            record = keeper.record(time.perf_counter())
            (newest, *_) = keeper.shelf.sound(NAME)
            size = sum(path.stat().st_size for path in keeper.shelf.path(newest).iterdir())
    check_identical(saving, plain)
    if record.trouble:
        sys.exit(f"benchmarks.checkpoint: {record.trouble}; the ratio would mean nothing")
    ratios = sorted(without / with_ for with_, without in pairs)
    return {
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(ratios[0], 4),
        "ratio_max": round(ratios[-1], 4),
        "rounds": rounds,
        "steps": steps,
        "step_ms_without": round(1000 * statistics.median(without for _, without in pairs) / steps, 3),
        "checkpoints": len(handed),
        "handover_ms": round(1000 * statistics.median(handed), 3) if handed else None,
        "bytes": size,
    }


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, last.")
@click.option("--config", "config_name", default="digits", show_default=True, help="Sizes and batch.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Of a block, about.")
@click.option("--every-s", default=1.0, show_default=True, help="Seconds between two checkpoints.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
def main(
    as_json: bool, config_name: str, rounds: int, seconds: float, every_s: float, settings: tuple[str, ...]
) -> None:
    """Parse, measure, print."""
    words = ("n_components=2", f"checkpoint.every_s={every_s}", *settings)
    result = measure(load(config_name, words, RECIPES), rounds, seconds)
    if not as_json:
        print(
            f"step {result['step_ms_without']} ms without checkpoints; with them ratio {result['ratio']} "
            f"({result['ratio_min']} … {result['ratio_max']} over {rounds} rounds), "
            f"{result['checkpoints']} of {result['bytes']} bytes, handed over in {result['handover_ms']} ms"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
