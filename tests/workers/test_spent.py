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


def test_students_that_learn_now_and_then_cost_as_much_less(tmp_path: Path) -> None:
    """Only the one in the middle has such a student. A width of 8 all along: student 8 → 32 → 8, joiner 16 → 32 → 8,
    head 8 → 10, each forward and twice back, but for the student's first layer, whose section it does not pull.
    """
    readout = 3 * ((8 * 32 + 32 * 8) + (16 * 32 + 32 * 8) + 8 * 10) - 8 * 32
    found = [
        spent(3, tmp_path / each, "recipe=mach-stream", f"method.student_every={each}") for each in ("1", "3", "5")
    ]
    assert [found[0] - each for each in found[1:]] == pytest.approx([readout * 2 / 3, readout * 4 / 5])
