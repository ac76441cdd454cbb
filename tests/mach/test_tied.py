"""Weights that a family ties, one parameter under two names or one module: saved, and copied by those above."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from built import build
from configs.tree import Model
from mach.below import Below, chain
from mach.checkpoint import load_state, load_weights, save_state, save_weights
from mach.component import Component
from mach.momentum import Momentum, first_layer, flat, frozen
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


def trained(component: Component) -> Component:
    with torch.no_grad():
        for number, weight in enumerate(component.parameters()):
            weight.add_(number + 1.0)
    return component


@pytest.mark.parametrize("decay", [0.0, 0.75])
@pytest.mark.parametrize("tie", TIES)
def test_copies_of_tied_weights_stay_tied(tie: str, decay: float) -> None:
    child = component_with(tie)
    child.encoder, child.head = tied(tie), tied(tie)
    below = Below({"c1": child.encoder}, child.joiner, child.head, decay, context=False)
    before = frozen(child)
    assert below.shape("c1") == flat(chain(child)).shape
    trained(child)
    for version in (4, 5):  # the first time a copy is what is shown; then it has come all the way already
        below.take("c1", flat(chain(child)), version)
        for copies, section in ((below.sections["c1"], child.encoder), (below.joiner, child.joiner)):
            expected = section.state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in copies.state_dict().items())
    below.take("c1", flat([before.get_buffer(name) for name, _ in child.named_parameters()]), 6)
    copies, old, new = (each.state_dict() for each in (below.head, before.head, child.head))
    for name, copied in copies.items():
        torch.testing.assert_close(copied, decay * new[name] + (1 - decay) * old[name])


class Opening(nn.Sequential):
    """Shows all of itself."""

    def opening(self) -> nn.Module:
        return self


@pytest.mark.parametrize("tie", TIES)
def test_a_copy_of_a_tied_first_layer_stays_tied(tie: str) -> None:
    child = component_with(tie)
    child.encoder = Opening(*tied(tie))
    momentum = Momentum({"c1": child.encoder.opening()}, E, 0.75)
    trained(child)
    assert momentum.shape("c1") == flat(first_layer(child)).shape
    momentum.take("c1", flat(first_layer(child)), 1)
    expected = child.encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in momentum.layers["c1"].state_dict().items())
