"""Words into the rows of a comparison: recipes and files, what controls are made of, and what is set for all."""

from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from mach.recipes import RECIPES
from workers.rows import Rows, control_of, rows_of, shared

MINE = "recipe: ddg\nwiring: stream\nn_components: 3\nbus: {window: 6}\nmethod: {update_every: 2}\n"
BASE = "recipe: mach\nwiring: skip\ngraph: ring\nn_components: 3\nbus: {window: 2}\n"


def configured(recipe: str, seed: int) -> Config:
    return load("digits", (f"recipe={recipe}", "graph=chain", f"seed={seed}"), RECIPES)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where base.yaml and my.yaml are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "my.yaml").write_text(MINE)
    return tmp_path


def rows(*names: str, config: str = "base.yaml", settings: tuple[str, ...] = (), seeds: int = 1) -> Rows:
    words = {"config_name": config, "components": None, "seed": None, "steps": 7, "minutes": None}
    return rows_of(names, {**words, "settings": settings}, seeds)


def test_a_file_is_a_row_that_keeps_its_method_to_itself(files: Path) -> None:
    found = rows("my.yaml", "dgl", settings=("seed=4",), seeds=2)
    assert list(found.configs) == ["my", "dgl"]
    mine = found.configs["my"]
    assert [config.seed for config in mine] == [config.seed for config in found.configs["dgl"]] == [4, 5]
    assert {(config.recipe, config.graph, config.train.steps) for config in mine} == {("ddg", "chain", 7)}
    assert (mine[0].bus.window, mine[0].method.update_every) == (6, 2)
    assert found.configs["dgl"][0].method.update_every == 1
    assert found.base["stream"][0].method.update_every == 1
    assert found.shared == {}


def test_every_wiring_of_a_row_has_its_controls(files: Path) -> None:
    (files / "theirs.yml").write_text(BASE)
    found = rows("./my.yaml", "theirs.yml")
    assert {wiring: each[0].recipe for wiring, each in found.base.items()} == {"stream": "backprop", "skip": "mach"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("n_components: 4", "my.yaml: n_components is 4, but 3 in the other rows (base.yaml)"),
        ("data: {noise: 0.5}", "data.noise is 0.5, but 0.0"),
        ("model: {joiner: [8], embedding: 8}", "model.embedding is 8, but 64"),
        ("train: {batch_size: 8}", "train.batch_size is 8, but 128"),
        ("optimiser: {lr: 1e-4}", "optimiser.lr is 0.0001, but 0.001"),
        ("optimiser: {momentum: 0.5}", "optimiser.momentum is 0.5, but null"),
        ("seed: 3", "seed is 3, but 0"),
        ("graph: kgraph", "graph is kgraph, and all rows are compared on one, a chain; --set graph=… for all"),
    ],
)
def test_a_row_of_other_data_sizes_or_training_is_refused(files: Path, line: str, sentence: str) -> None:
    text = MINE.replace("n_components: 3\n", "") if line.startswith("n_components") else MINE
    (files / "my.yaml").write_text(text + line + "\n")
    with pytest.raises(ConfigError) as raised:
        rows("my.yaml", "dgl")
    assert sentence in str(raised.value)


def test_what_is_set_for_all_rows_is_no_difference(files: Path) -> None:
    (files / "my.yaml").write_text(MINE + "optimiser: {lr: 1e-4}\ntrain: {steps: 3}\n")
    found = rows("my.yaml", "dgl", settings=("optimiser.lr=0.5",))
    assert {config.optimiser.lr for config in found.every()} == {0.5}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("my.yaml", "./my.yaml"), "./my.yaml: another row is called 'my'"),
        (("dgl", "mach", "dgl"), "dgl: another row is called 'dgl'"),
        (("other/dgl.yaml", "dgl"), "dgl: another row is called 'dgl'"),
        (("other/controls.yaml",), "none can be called 'controls'; rename the file"),
        (("nowhere.yaml",), "no configuration 'nowhere.yaml'"),
    ],
)
def test_rows_of_one_name_or_of_none_are_refused(files: Path, names: tuple[str, ...], sentence: str) -> None:
    (files / "other").mkdir()
    for name in ("dgl", "controls"):
        (files / "other" / f"{name}.yaml").write_text(BASE)
    with pytest.raises(ConfigError) as raised:
        rows(*names)
    assert sentence in str(raised.value)


def test_what_a_file_or_a_setting_makes_of_all_methods_is_known(files: Path) -> None:
    found = rows("dgl", "mach", config="my.yaml", settings=("loss.student=0.5", "optimiser.lr=0.1"))
    assert found.shared == {"method.update_every": "my.yaml", "loss.student": "--set"}
    assert found.configs["dgl"][0].method.update_every == 2, "it holds, and so it has to be told"


@pytest.mark.parametrize(
    ("text", "recipes", "keys"),
    [
        ("method: {targets: none}", {"dgl", "backprop"}, set()),  # they set it themselves
        ("method: {targets: none}", {"dgl", "mach"}, {"method.targets"}),
        ("method: {targets: embedding}", {"dgl", "mach"}, set()),  # as it is anyway
        ("staleness: {policies: [clip]}", {"dgl"}, {"staleness.policies"}),
        ("bus: {window: 9}", {"mach"}, set()),
    ],
)
def test_of_a_file_that_is_told_which_changes_a_recipe(
    files: Path, text: str, recipes: set[str], keys: set[str]
) -> None:
    (files / "base.yaml").write_text(text)
    assert set(shared("base.yaml", (), recipes)) == keys


@pytest.mark.parametrize(
    ("recipes", "along"),
    [(("dgl", "ddg"), False), (("dgl", "mach-stream"), True), (("mach-stream",), True), (("dgl", "takd"), False)],
)
def test_controls_get_x_again_where_a_recipe_beside_them_does(recipes: tuple[str, ...], along: bool) -> None:
    beside = {name: [configured(name, seed) for seed in range(2)] for name in recipes}
    config = control_of(configured, "stream", beside, 1)
    assert (config.recipe, config.seed, config.method.context) == ("backprop", 1, along)
    assert config.method.gradient_reach == "full"


def test_another_wiring_s_context_is_none_of_theirs() -> None:
    beside = {"mach-stream": [configured("mach-stream", 0)], "mach": [configured("mach", 0)]}
    assert not control_of(configured, "skip", beside, 0).method.context
