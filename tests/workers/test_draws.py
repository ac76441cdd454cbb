"""Networks that draw in a step, as dropout does: runs are the same for their seed, simulated, launched and resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from chaos.storm import on_path
from configs.load import load
from conftest import Launched
from mach.data import load as load_data
from mach.recipes import RECIPES
from workers.compare import Virtual, recipe
from workers.simulate import simulate
from workers.timing import timing_of

Launch = Callable[..., Launched]
TIMING = timing_of("4ms", "9ms", "5ms", [], 2)
SETTINGS = (
    *("model.family=dropping:mlp", "n_components=2", "train.batch_size=16", "data.noise=0.3"),
    *("optimiser.schedule=constant", "evaluate.every_steps=10000"),
)
WORDS = ("--gpus", "cpu", "--lockstep", "--seed", "3", *(word for each in SETTINGS for word in ("--set", each)))

pytestmark = pytest.mark.usefixtures("leaks")


def settings(steps: int, seed: int = 3, *more: str) -> tuple[str, ...]:
    return (*SETTINGS, f"train.steps={steps}", f"seed={seed}", *more)


def weights(directory: Path) -> dict[str, Tensor]:
    files = {name: load_file(directory / "weights" / f"{name}.safetensors") for name in ("c0", "c1")}
    return {f"{name}.{key}": tensor for name, tensors in files.items() for key, tensor in tensors.items()}


def simulated(tmp_path: Path, steps: int) -> dict[str, Tensor]:
    simulate(load("digits", settings(steps), RECIPES), TIMING, tmp_path / "simulated", lockstep=True)
    return weights(tmp_path / "simulated")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["mach", "mach-stream", "dgl"])
def test_a_simulation_is_the_same_for_its_seed_and_leaves_the_generator(tmp_path: Path, name: str) -> None:
    digests = []
    for number, seed in enumerate((3, 3, 4)):
        config = load("digits", settings(12, seed, f"recipe={name}", "graph=chain"), RECIPES)
        torch.rand(1)
        before = torch.get_rng_state()
        digests.append(simulate(config, TIMING, tmp_path / str(number)).digest)
        assert torch.equal(torch.get_rng_state(), before)
    assert digests[0] == digests[1] != digests[2]


def test_readings_of_networks_that_draw_are_the_same(tmp_path: Path) -> None:
    config = load("digits", settings(6), RECIPES)
    found = [recipe(config, load_data(config.data), Virtual(TIMING), tmp_path / name, 1.0) for name in ("one", "two")]
    assert found[0] == found[1]


def test_processes_in_lockstep_draw_what_the_simulation_of_their_seed_draws(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(monkeypatch)
    run = launch("--steps", "10", *WORDS)
    expected = simulated(tmp_path, 10)  # meanwhile
    assert run.end() == 0, run.output
    assert equal(weights(run.directory), expected)


@pytest.mark.slow
def test_a_run_that_goes_on_draws_on(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 steps, a resume and 100 more are 200, with dropout too."""
    on_path(monkeypatch)
    run = launch("--steps", "100", *WORDS)
    expected = simulated(tmp_path, 200)  # meanwhile
    assert run.end() == 0, run.output
    more = launch("--steps", "200", resume=True)
    assert more.end() == 0, more.output
    assert equal(weights(run.directory), expected)
