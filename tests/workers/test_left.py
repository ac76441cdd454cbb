"""What the last examination says of a component is true of the weights that the run leaves."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from configs.load import load
from configs.tree import Config
from mach.controls import whole_of
from mach.data import load as load_data
from mach.export import load as shipped
from mach.recipes import RECIPES
from mach.whole import Whole, readings
from workers.rundir import RunDir
from workers.simulate import simulate
from workers.timing import timing_of


def configured(*settings: str) -> Config:
    base = ("n_components=3", "train.steps=40", "train.batch_size=32", "evaluate.every_steps=20", "seed=5")
    return load("digits", (*base, *settings), RECIPES)


def left_by(of: Config, run: Path) -> Whole:
    """The whole network that a run has left."""
    whole = whole_of(of, load_data(of.data))
    for index in range(of.n_components):
        whole.part(index).load_state_dict(load_file(RunDir(run).weights(f"c{index}")))
    return whole


@pytest.mark.parametrize("window", [4, 16])
@pytest.mark.parametrize("recipe", ["dgl", "mach-hop", "ddg", "ampnet"])
def test_the_last_examination_of_a_stream_is_of_the_weights_that_are_left(
    tmp_path: Path, recipe: str, window: int
) -> None:
    of = configured(f"recipe={recipe}", f"bus.window={window}")
    outcome = simulate(of, timing_of("1ms", "0", "5ms", ["c1=2x", "c2=3x"], 3), tmp_path / "run")
    dataset = load_data(of.data)
    for index, row in enumerate(outcome.status.components):
        if of.method.heads == "last" and index < 2:
            continue  # it is judged by what the last says, below
        z = shipped(tmp_path / "run" / "weights", index)(dataset.test_inputs)
        bits = float(cross_entropy(z, dataset.test_labels)) / math.log(2)
        assert row.accuracy.student_bits == pytest.approx(bits, rel=1e-5), row.component
    read = readings(left_by(of, tmp_path / "run"), dataset, of.train.batch_size, heads=of.method.heads == "every")
    for row in outcome.status.components:
        assert row.accuracy.full_bits == pytest.approx(read["full"].bits, rel=1e-5), row.component
    first = outcome.status.components[0].accuracy
    if recipe == "mach-hop":
        assert first.child_bits == pytest.approx(read["child"].bits, rel=1e-5)


@pytest.mark.parametrize("recipe", ["mach", "takd"])
def test_with_averaged_weights_children_are_examined_as_they_are_left(tmp_path: Path, recipe: str) -> None:
    of = configured(f"recipe={recipe}", "n_components=2", "graph=chain", "evaluate.average=0.9")
    first, _ = simulate(of, timing_of("1ms", "0", "5ms", (), 2), tmp_path / "run").status.components
    found = readings(left_by(of, tmp_path / "run"), load_data(of.data), of.train.batch_size)["child"]
    assert first.accuracy.child == pytest.approx(found.accuracy, abs=1e-9)
    assert first.accuracy.child_bits == pytest.approx(found.bits, rel=1e-5)
