"""What networks draw goes by seed and component, whoever else draws in the process."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configs.load import load
from mach import controls
from mach.assemble import component_of
from mach.data import load as load_data
from mach.draws import Draws, begin
from mach.late import Held
from mach.messages import Target
from mach.recipes import RECIPES
from mach.sieve import Sieve

DROPPING = ("model.family=dropping:mlp", "n_components=2", "graph=chain", "train.steps=4", "train.batch_size=16")


def drawn_by(draws: Draws) -> torch.Tensor:
    with draws:
        return torch.rand(5)


def test_components_that_share_a_process_draw_as_each_would_in_its_own() -> None:
    expected = []
    for component in range(2):
        with torch.random.fork_rng(devices=[]):
            begin(7, component)
            expected.append(torch.rand(15))
    assert not torch.equal(*expected)
    draws = [Draws(7, component) for component in range(2)]
    found: list[list[torch.Tensor]] = [[], []]
    for _ in range(3):
        for component in range(2):
            found[component].append(drawn_by(draws[component]))
            torch.rand(2)  # of somebody else
    assert all(torch.equal(torch.cat(mine), alone) for mine, alone in zip(found, expected, strict=True))


def test_an_error_leaves_others_what_they_would_have_drawn() -> None:
    before, draws = torch.get_rng_state(), Draws(7, 0)
    with pytest.raises(RuntimeError), draws:
        torch.rand(3).view(2, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["alone+student", "backprop", "wide"])
def test_a_control_of_networks_that_draw_is_the_same_for_its_seed_and_leaves_the_generator(name: str) -> None:
    found = []
    for seed in (1, 1, 2):
        config = load("digits", (*DROPPING, f"seed={seed}"), RECIPES)
        dataset = load_data(config.data)
        torch.rand(1)
        before = torch.get_rng_state()
        found.append(controls.train(name, config, dataset).curve)
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] != found[2]


class Always(nn.Module):
    """Draws in evaluation mode, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.3, training=True)


def test_what_an_answer_must_look_like_is_found_without_drawing() -> None:
    """It is asked once a life: one that goes on from a checkpoint would draw once more than one that did not end."""
    config = load("digits", DROPPING, RECIPES)
    dataset = load_data(config.data)
    component = component_of(config, 0, ["c1"], dataset)
    component.students["c1"] = nn.Sequential(component.students["c1"], Always())
    sieve = Sieve(component, config.method, torch.device("cpu"), dataset.sample_shape, dataset.symbols)
    held = Held(0, (dataset.train_inputs[:3],), None, "", 0, 0.0, torch.Size())
    before = torch.get_rng_state()
    assert sieve.embedding("c1", held, Target(0, 0, torch.zeros(3, config.model.embedding)))
    assert torch.equal(torch.get_rng_state(), before)
