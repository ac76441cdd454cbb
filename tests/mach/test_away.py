"""What trains does so away from the CPU, too: on the device of `tests/away.py` everywhere, on a GPU where one is."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import placed
import workers.stage
from conftest import DEADLINE_S, Launched
from mach.checkpoint import load_state
from mach.draws import CPU
from mach.recipes import RECIPES
from mach.shelf import Shelf

TESTS = Path(__file__).resolve().parent.parent
PAIRS = [(recipe, "digits") for recipe in RECIPES]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_every_recipe_family_optimiser_and_probe_works_away_from_the_cpu() -> None:
    """In a process of its own: torch knows one more device there, which must be there before anything computes."""
    words = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(TESTS / "away_cases.py"))
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=DEADLINE_S, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


SITE = """
import away
import workers.process

workers.process.device_of = lambda process: away.NAME + ":0"
"""


@pytest.mark.slow
def test_a_run_on_such_a_device_saves_ends_and_goes_on(
    launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in processes: every one of them finds the device when it starts."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS.parent, TESTS, tmp_path))))
    words = ("recipe=mach-stream", "optimiser.name=nadam", "data.noise=0.1", "checkpoint.every_steps=20")
    sets = [word for each in words for word in ("--set", each)]
    run = launch("--components", "2", "--gpus", "cpu", "--steps", "40", *sets)
    assert run.end() == 0, run.output
    newest = load_state(Shelf(run.directory / "checkpoints" / "c0"), 40, "c0")[1]
    assert "generators/away" in newest.tensors, "it was there"
    again = launch("--gpus", "cpu", "--steps", "60", resume=True)
    assert again.end() == 0, again.output
    assert again.component("c0")["step"] == 60
    assert not again.component("c1")["messages"]["dropped"].get("unfit")


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.stage, "load", placed.small)


@pytest.mark.gpu
@GPU
@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize(("recipe", "source"), [*PAIRS, ("mach", "mnist1d"), ("mach-stream", "bytes-lm")])
def test_a_run_learns_on_a_cuda_device_what_it_learns_on_the_cpu(tmp_path: Path, recipe: str, source: str) -> None:
    of = placed.config(source, f"recipe={recipe}")
    there = placed.simulated(of, tmp_path / "there", torch.device("cuda:0"))
    here = placed.simulated(of, tmp_path / "here", CPU)
    for one, other in zip(there.status().components, here.status().components, strict=True):
        assert (one.step, one.messages) == (other.step, other.messages)
    found = placed.weights(there)
    for key, each in placed.weights(here).items():
        if each.is_floating_point():
            assert (found[key] - each).abs().mean() < 1e-3, key


@pytest.mark.gpu
@GPU
@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "nadam", "muon"])
def test_who_goes_on_on_a_cuda_device_waits_for_it_no_more_than_before(tmp_path: Path, optimiser: str) -> None:
    of = placed.config("digits", f"optimiser.name={optimiser}", components=1)
    one, other = (placed.alone(of, tmp_path / name, torch.device("cuda:0")) for name in ("one", "other"))
    for _ in range(3):
        one.turn()
    placed.saved(one, tmp_path / "saved")
    placed.gone_on(other, tmp_path / "saved")
    try:
        for trainer in (one, other):
            trainer.turn()  # whatever is done once
            torch.cuda.set_sync_debug_mode("error")
            trainer.turn()
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    states = [trainer.learner.state(0.0).tensors for trainer in (one, other)]
    for key, each in states[0].items():
        torch.testing.assert_close(states[1][key].cpu(), each.cpu(), msg=key)


@pytest.mark.gpu
@GPU
def test_a_run_on_a_cuda_device_finishes(launch: Callable[..., Launched]) -> None:
    run = launch("--components", "2", "--gpus", "0", "--steps", "60", "--set", "checkpoint.every_steps=20")
    assert run.end() == 0, run.output
    assert [row["device"] for row in run.status()["components"]] == ["0", "0"]
    assert all(row["checkpoint"]["step"] == 60 for row in run.status()["components"])
