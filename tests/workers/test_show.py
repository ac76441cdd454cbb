"""What controls are made of, beside which recipes; and that stdout is what was asked for alone."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from configs.load import load
from configs.tree import Config
from mach.component import Component
from mach.networks.mlp import mlp
from mach.networks.place import Place
from mach.recipes import RECIPES
from workers.compare import Virtual
from workers.show import comparison, control_of, simulation
from workers.timing import timing_of


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


class Chatty(nn.Module):
    """Says so when it computes."""

    def forward(self, e: torch.Tensor) -> torch.Tensor:
        """As it came."""
        print("forward")
        return e


def chatty(place: Place) -> Component:
    print("factory")
    component = mlp(place)
    component.joiner = nn.Sequential(component.joiner, Chatty())
    return component


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_what_networks_print_is_in_no_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setitem(sys.modules, "theirs", ModuleType("theirs"))
    monkeypatch.setattr(sys.modules["theirs"], "chatty", chatty, raising=False)
    config = load("digits", ("model.family=theirs:chatty", "n_components=2", "graph=chain", "train.steps=3"), RECIPES)
    timing = timing_of("1ms", "0ms", "5ms", [], 2)
    if command == "simulate":
        simulation(config, timing, lockstep=False, target=0.9, as_json=True)
    else:
        told = {"seeds": 1, "target": 0.9, "as_json": True, "png": None}
        comparison(["mach"], lambda name, seed: config, Virtual(timing), None, **told)
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert "factory\n" in err
    assert "forward\n" in err
