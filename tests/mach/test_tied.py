"""Weights that a family ties: one parameter under two names, or one module."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from built import build
from configs.tree import Model
from mach.checkpoint import load_state, load_weights, save_state, save_weights
from mach.component import Component
from mach.shelf import Shelf
from mach.state import State

E = 4
TIES = ["one parameter", "one module"]


def tied(tie: str) -> nn.Sequential:
    """[B, E] → [B, E], twice with the same weight."""
    first, second = nn.Linear(E, E), nn.Linear(E, E)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second if tie == "one parameter" else first)


def component_with(tie: str) -> Component:
    component = build(Model(embedding=E), (5,), 3, ())
    component.joiner = nn.Sequential(component.joiner, tied(tie))
    return component


@pytest.mark.parametrize("tie", TIES)
def test_tied_weights_are_saved_under_each_of_their_names_and_come_back(tmp_path: Path, tie: str) -> None:
    component, twin = component_with(tie), component_with(tie)
    save_weights(component, tmp_path / "c0.safetensors", {})
    saved = load_file(tmp_path / "c0.safetensors")
    assert saved.keys() == component.state_dict().keys()
    assert torch.equal(saved["joiner.1.0.weight"], saved["joiner.1.2.weight"])
    twin.load_state_dict(load_weights(tmp_path / "c0.safetensors"))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in twin.state_dict().items())
    assert twin.joiner[1][2].weight is twin.joiner[1][0].weight


def test_what_lies_in_one_memory_is_saved_in_a_checkpoint(tmp_path: Path) -> None:
    whole, shelf = torch.arange(6.0), Shelf(tmp_path / "c0")
    state = State({"whole": whole, "again": whole, "part": whole[2:4], "turned": whole.view(2, 3).T})
    save_state(shelf, state, component="c0", version=1, incarnation=1, config="", keep=1)
    found = load_state(shelf, 1, "c0")[1].tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in state.tensors.items())
