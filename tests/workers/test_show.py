"""Stdout is what was asked for alone."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from configs.load import load
from mach.component import Component
from mach.networks.mlp import mlp
from mach.networks.place import Place
from mach.recipes import RECIPES
from workers.compare import Virtual
from workers.rows import Rows
from workers.show import comparison, simulation
from workers.timing import timing_of


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
        rows = Rows("digits", {"mach": [config]}, {"skip": [config]}, {})
        comparison(rows, Virtual(timing), None, target=0.9, as_json=True, png=None)
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert "factory\n" in err
    assert "forward\n" in err
