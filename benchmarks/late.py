"""Late gradients by recompute and by stash: what either costs in time and memory, at windows of 1, 2 and 8.

    python -m benchmarks.late                 a table
    python -m benchmarks.late --json          one object a line

A component answers questions and is paid for each W answers later, as a parent with a full window pays; every step has
one late gradient. Two learners of equal weights, one by recompute and one by stash, take turns in blocks; the rate of a
round is its blocks' medians, and what is printed is the median over rounds of their ratio, with its quartiles. Memory
is what a learner holds beyond weights and optimiser when its window is full: inputs, copies of weights and graphs, by
adding up storages that live tensors refer to.
"""

import gc
import json
import statistics
import time
from typing import Any, cast

import click
import torch
from torch import Tensor

from configs.load import load
from mach.assemble import learner_of
from mach.data import Batches, Dataset
from mach.data import load as load_data
from mach.learner import Learner
from mach.messages import Activation, Gradient, Letter
from mach.recipes import RECIPES

WAYS = ("recompute", "stash")
WINDOWS = (1, 2, 8)
BLOCK = 20
"""Steps of one block."""


class Side:
    """A learner by one way, driven as if its parent had a window of W."""

    def __init__(self, way: str, window: int, dataset: Dataset, settings: tuple[str, ...]) -> None:
        words = (*settings, f"staleness.late={way}", f"bus.window={window}", "n_components=2", "graph=chain")
        config = load("digits", words, RECIPES)
        before = held_bytes()
        self.learner: Learner = learner_of(config, 1, (), dataset, torch.device("cpu"))
        self.window = window
        self.batches = Batches(dataset, config.train.batch_size, seed=1)
        self.gradient = 1e-3 * torch.randn(config.train.batch_size, config.model.embedding)
        self.asked = 0
        self.step(pay=False)
        gc.collect()
        base = held_bytes()
        for _ in range(window):
            self.step(pay=False)
        gc.collect()
        self.held_bytes = held_bytes() - base
        self.weight_bytes = sum(weight.nbytes for weight in self.learner.component.parameters())
        assert base >= before

    def step(self, *, pay: bool = True) -> None:
        """Answer one question, be paid for that of W steps ago, train."""
        batch = next(self.batches)
        if self.learner.version > 0:
            self.learner.answer("c0", Activation(self.asked, 0, batch.inputs), 0.0)
            self.asked += 1
        if pay:
            self.learner.keep(Letter("c0", Gradient(self.asked - 1 - self.window, 0, self.gradient)), 0.0)
        self.learner.step(next(self.batches), 0.0)

    def block(self) -> float:
        """Steps a second, over one block."""
        start = time.perf_counter()
        for _ in range(BLOCK):
            self.step()
        return BLOCK / (time.perf_counter() - start)


def held_bytes() -> int:
    """Bytes of all storages that a live tensor refers to; what only a graph holds is counted through `saved`."""
    seen: dict[int, int] = {}
    for each in gc.get_objects():
        if type(each) in (Tensor, torch.nn.Parameter):
            note(each, seen)
            walk(each.grad_fn, seen, set())
    return sum(seen.values())


def note(tensor: Tensor, seen: dict[int, int]) -> None:
    """Count a storage once."""
    storage = tensor.untyped_storage()
    seen[storage.data_ptr()] = storage.nbytes()


def walk(node: Any, seen: dict[int, int], visited: set[Any]) -> None:
    """What a graph saved for its backward pass."""
    if node is None or node in visited:
        return
    visited.add(node)
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                saved = getattr(node, name)
            except RuntimeError:  # freed already
                continue
            for each in saved if isinstance(saved, tuple) else (saved,):
                if isinstance(each, Tensor):
                    note(each, seen)
    for following, _ in node.next_functions:
        walk(following, seen, visited)


def measure(window: int, rounds: int, dataset: Dataset, settings: tuple[str, ...]) -> dict[str, Any]:
    """One window: both ways in turns."""
    sides = {way: Side(way, window, dataset, settings) for way in WAYS}
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS if number % 2 else reversed(WAYS):
            rate = sides[way].block()
            if number:  # the first warms up
                rates[way].append(rate)
    ratios = [stash / again for again, stash in zip(rates["recompute"], rates["stash"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "window": window,
        "steps_per_s": {way: round(statistics.median(rates[way]), 1) for way in WAYS},
        "stash_over_recompute": {"p25": round(low, 3), "p50": round(middle, 3), "p75": round(high, 3)},
        "held_kib": {way: round(sides[way].held_bytes / 1024, 1) for way in WAYS},
        "weights_kib": round(sides["recompute"].weight_bytes / 1024, 1),
    }


@click.command()
@click.option("--rounds", default=21, show_default=True, help="Pairs of blocks.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As of mach launch; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def main(rounds: int, settings: tuple[str, ...], *, as_json: bool) -> None:
    """Measure both ways at every window."""
    torch.set_num_threads(1)
    dataset = load_data(load("digits", settings, RECIPES).data)
    for window in WINDOWS:
        found = measure(window, rounds, dataset, settings)
        if as_json:
            click.echo(json.dumps(found))
            continue
        ratio = cast(dict[str, float], found["stash_over_recompute"])
        click.echo(
            f"W={window}  steps/s {found['steps_per_s']}  stash/recompute {ratio['p50']:.2f} "
            f"({ratio['p25']:.2f} to {ratio['p75']:.2f})  held KiB {found['held_kib']}, weights {found['weights_kib']}"
        )


if __name__ == "__main__":
    main()
