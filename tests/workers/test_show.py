"""What controls are made of, beside which recipes."""

import pytest

from configs.load import load
from configs.tree import Config
from mach.recipes import RECIPES
from workers.show import control_of


def configured(recipe: str, seed: int) -> Config:
    return load("digits", (f"recipe={recipe}", "graph=chain", f"seed={seed}"), RECIPES)


@pytest.mark.parametrize(
    ("recipes", "along"),
    [(("dgl", "ddg"), False), (("dgl", "mach-stream"), True), (("mach-stream",), True), (("dgl", "takd"), False)],
)
def test_controls_get_x_again_where_a_recipe_beside_them_does(recipes: tuple[str, ...], along: bool) -> None:
    beside = {name: [configured(name, seed) for seed in range(2)] for name in recipes}
    config = control_of(configured, "stream", beside, 1)
    assert (config.recipe, config.seed, config.method.context) == ("backprop", 1, along)
    assert config.method.gradient_reach == "full"


def test_another_wiring_s_context_is_none_of_theirs() -> None:
    beside = {"mach-stream": [configured("mach-stream", 0)], "mach": [configured("mach", 0)]}
    assert not control_of(configured, "skip", beside, 0).method.context
