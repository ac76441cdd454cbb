"""Every recipe of the table trains digits on two components, on real processes and sockets."""

import os
import signal
from collections.abc import Callable

import pytest

from configs.tree import Method
from conftest import Launched
from mach.checkpoint import load_weights
from mach.recipes import RECIPES

Launch = Callable[..., Launched]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_reaches_95_percent_on_digits_with_two_components(launch: Launch, recipe: str) -> None:
    run = launch("--components", "2", "--gpus", "cpu", "--set", f"recipe={recipe}")
    assert run.end() == 0, run.output
    first, second = run.status()["components"]
    assert first["step"] == 1000, "as configs/digits.yaml says"
    assert second["step"] > 0
    for row in (first, second):
        assert row["accuracy"]["student"] >= 0.95, run.output
    if RECIPES[recipe]["wiring"] == "stream":
        assert first["accuracy"]["full"] >= 0.95
    assert not first["messages"]["dropped"].get("unfit")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dgl", "mach-hop"])
def test_heads_fed_by_the_child_s_first_layer_reach_95_percent_on_three_components(launch: Launch, recipe: str) -> None:
    run = launch(
        "--components", "3", "--gpus", "cpu", "--set", f"recipe={recipe}", "--set", "method.momentum_head=layer"
    )
    assert run.end() == 0, run.output
    rows = run.status()["components"]
    for row, child in zip(rows, [*rows[1:], None], strict=True):
        assert row["accuracy"]["student"] >= 0.95, run.output
        assert not row["messages"]["dropped"].get("unfit")
        shown = load_weights(run.directory / "weights" / f"{row['component']}.safetensors").get("momentum.shown")
        if child is None:
            assert shown is None, "the last has nobody to look at"
        else:
            assert child["step"] - 2 * Method().momentum_every < int(shown) <= child["step"], "shown of late"


def shown_to(run: Launched, name: str) -> int:
    """Version at which the child of a component showed it its first layer last."""
    return int(load_weights(run.directory / "weights" / f"{name}.safetensors")["momentum.shown"])


@pytest.mark.slow
def test_a_head_outlives_the_child_that_feeds_it_and_the_run_itself(launch: Launch) -> None:
    words = ("recipe=dgl", "method.momentum_head=layer", "method.momentum_every=16", "report.every_ms=100")
    words = tuple(word for each in words for word in ("--set", each))
    run = launch("--components", "2", "--gpus", "cpu", "--minutes", "5", "--set", "checkpoint.every_steps=32", *words)
    before = run.until(lambda status: all(row["step"] > 100 for row in status["components"]))["components"]
    os.kill(before[1]["pid"], signal.SIGKILL)
    after = run.until(
        lambda status: (row := status["components"][1])["incarnation"] == 2 and row["step"] > before[1]["step"] + 100
    )["components"]
    assert after[0]["incarnation"] == 1, "the parent trained on"
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output
    first, child = shown_to(run, "c0"), run.component("c1")["step"]
    assert child - 64 < first <= child, "the new life showed its layer, and went on to"
    resumed = launch("--minutes", "5", resume=True)
    resumed.until(lambda status: status["components"][1]["step"] > child + 100)
    resumed.process.send_signal(signal.SIGINT)
    assert resumed.end() == 130, resumed.output
    assert first < shown_to(resumed, "c0") <= resumed.component("c1")["step"]
    assert not resumed.component("c0")["messages"]["dropped"].get("unfit")
