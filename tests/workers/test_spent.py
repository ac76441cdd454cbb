"""What a run computes, counted on the virtual bus."""

from pathlib import Path

import pytest

from configs.load import load
from configs.tree import Config
from mach.recipes import RECIPES
from workers.spent import effort_of
from workers.timing import timing_of

pytestmark = pytest.mark.usefixtures("leaks")

FORWARD = 64 * 32 + 32 * 8 + 8 * 10
ALONE = 3 * FORWARD - 64 * 32
"""A step of one component of the sizes below on a sample: the input's own gradient is not needed."""


def config(count: int, *settings: str) -> Config:
    sizes = ("model.joiner=[32]", "model.student=[32]", "model.embedding=8", "train.batch_size=16")
    return load("digits", (f"n_components={count}", "graph=chain", *sizes, *settings), RECIPES)


def spent(count: int, folder: Path, *settings: str, latency: str = "1ms") -> float:
    return effort_of(config(count, *settings), timing_of(latency, "0", "5ms", [], count), folder)


def test_one_component_computes_what_its_layers_do(tmp_path: Path) -> None:
    assert spent(1, tmp_path) == ALONE


def test_examinations_and_the_length_of_the_run_do_not_count(tmp_path: Path) -> None:
    assert spent(1, tmp_path, "train.steps=7", "evaluate.every_steps=1") == ALONE


def test_late_answers_are_fewer_and_so_is_what_they_cost(tmp_path: Path) -> None:
    near, far = spent(2, tmp_path / "near"), spent(2, tmp_path / "far", latency="8steps")
    assert 2 * ALONE < far < near
