"""Every recipe of the table trains digits on two components, on real processes and sockets."""

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
@pytest.mark.parametrize("recipe", ["dgl", "mach-stream"])
def test_heads_fed_by_the_child_s_first_layer_reach_95_percent_on_three_components(launch: Launch, recipe: str) -> None:
    run = launch(
        "--components", "3", "--gpus", "cpu", "--set", f"recipe={recipe}", "--set", "method.momentum_head=true"
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
