"""Networks that look at their mode, in simulated runs: what is reported of them is true of those that ship."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from configs.load import load
from mach.data import load as load_data
from mach.export import load as load_network
from mach.recipes import RECIPES
from workers.rundir import RunDir
from workers.simulate import simulate
from workers.timing import timing_of

pytestmark = pytest.mark.usefixtures("leaks")

STEPS = 40


@pytest.mark.parametrize("family", ["normed:normed", "normed:frozen"])
@pytest.mark.parametrize("recipe", ["mach", "dgl", "mach-stream"])
def test_the_accuracy_reported_is_that_of_the_network_that_ships_and_statistics_are_of_what_was_trained_on(
    tmp_path: Path, recipe: str, family: str
) -> None:
    settings = (
        f"model.family={family}",
        f"recipe={recipe}",
        "graph=chain",
        "n_components=3",
        "evaluate.every_steps=20",
    )
    config = load("digits", (*settings, f"train.steps={STEPS}", "train.batch_size=64", "seed=5"), RECIPES)
    dataset = load_data(config.data)
    outcome = simulate(config, timing_of("1ms", "0ms", "5ms", (), 3), tmp_path / "run")
    weights = RunDir(tmp_path / "run").weights("c0")
    found = outcome.status.components[0].accuracy
    assert found is not None
    network = load_network(weights.parent, family=family)
    right = network(dataset.test_inputs).argmax(dim=1) == dataset.test_labels
    assert found.student == int(right.sum()) / len(right)
    tracked = {key: int(value) for key, value in load_file(weights).items() if key.endswith("num_batches_tracked")}
    encoder = {count for key, count in tracked.items() if key.startswith("encoder.")}
    again = outcome.status.components[0].child_steps if recipe == "mach-stream" else 0
    """Batches that were trained on a second time, when their answers came."""
    assert encoder == {0 if family == "normed:frozen" else STEPS + again}
    assert found.step == STEPS
    if recipe == "dgl":
        last = load_network(weights.parent, 2, family=family)(dataset.test_inputs)
        assert found.full == int((last.argmax(dim=1) == dataset.test_labels).sum()) / len(right)


def test_a_part_of_one_sample_is_examined(tmp_path: Path) -> None:
    settings = ("model.family=normed:normed", "n_components=2", "train.steps=3", "train.batch_size=358")
    config = load("digits", settings, RECIPES)
    assert len(load_data(config.data).test_labels) == 359
    outcome = simulate(config, timing_of("1ms", "0ms", "5ms", (), 2), tmp_path / "run")
    assert [row.accuracy.child is None for row in outcome.status.components if row.accuracy] == [False, False]


def test_statistics_of_batches_whose_graphs_are_kept_are_those_of_the_network_that_ships(tmp_path: Path) -> None:
    settings = ("model.family=normed:normed", "recipe=ddg", "n_components=2", "train.steps=20", "train.batch_size=64")
    config = load("digits", settings, RECIPES)
    simulate(config, timing_of("1ms", "0ms", "5ms", (), 2), tmp_path / "run")
    for name, parts in (("c0", ("encoder",)), ("c1", ("encoder", "joiner"))):
        saved = load_file(RunDir(tmp_path / "run").weights(name))
        counts = [int(saved[key]) for key in saved if key.endswith("tracked") and key.startswith(parts)]
        assert len(counts) == 2 * len(parts)
        assert all(20 <= count <= 20 + config.bus.window for count in counts)
