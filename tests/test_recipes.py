"""Every recipe of the table trains digits on two components, on real processes and sockets."""

from collections.abc import Callable

import pytest

from conftest import Launched
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
