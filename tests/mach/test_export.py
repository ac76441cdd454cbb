"""A run's weights as a network: as good as the run said, in either wiring; and one sentence where there is none."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from configs.errors import ConfigError, DataError
from configs.load import LONGEST, dump
from configs.load import load as load_config
from configs.tree import Config
from mach import export
from mach.assemble import component_of
from mach.checkpoint import load_about, load_weights, save_weights
from mach.controls import whole_of
from mach.data import Dataset
from mach.data import load as load_data
from mach.recipes import RECIPES
from mach.whole import reading
from workers.simulate import Outcome, simulate
from workers.timing import timing_of

SMALL = ("n_components=3", "train.steps=24", "train.batch_size=32", "evaluate.every_steps=1000", "seed=3")
TINY = ("model.embedding=16", "model.blocks=1", "model.joiner=[16]", "model.student=[16]", "data.length=16")
ALIASES = "a: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}\n" for i in range(1, 40))
"""Forty lines, and as a tree 2⁴⁰ leaves."""
TEXT = ("data.train_samples=256", "data.test_samples=32", *TINY)


def trained(directory: Path, *settings: str, name: str = "digits") -> tuple[Config, Outcome]:
    config = load_config(name, (*SMALL, *settings), RECIPES)
    timing = timing_of("1ms", "0", "5ms", [], config.n_components)
    return config, simulate(config, timing, directory)


@pytest.fixture(scope="module", params=["mach", "mach-stream"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a short run in either wiring."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    trained(directory, f"recipe={request.param}")
    return directory / "weights"


def told(file: Path, **changes: str | None) -> None:
    """Write a file of weights anew, with something else in its metadata."""
    about = {**load_about(file), **changes}
    save_file(load_file(file), file, metadata={key: value for key, value in about.items() if value is not None})


def own(weights: Path, tmp_path: Path) -> Path:
    """A copy of a run's weights, to be spoilt."""
    copy = tmp_path / "weights"
    copy.mkdir()
    for file in weights.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("digits", ()),
        ("digits", ("graph=chain", "model.join=sum")),
        ("digits", ("graph=kgraph", "model.join=residual", "evaluate.average=0.9")),
        ("digits", ("recipe=mach-stream",)),
        ("digits", ("recipe=mach-hop", "method.momentum_head=layer")),
        ("digits", ("recipe=dgl", "method.context=true")),
        ("digits", ("recipe=mach-hop", "graph=[[1, 2], [], []]", "method.context=false")),
        ("bytes-lm", TEXT),
        ("bytes-lm", ("recipe=mach-stream", *TEXT)),
    ],
)
def test_the_network_is_as_good_as_the_run_said(tmp_path: Path, name: str, settings: tuple[str, ...]) -> None:
    """In lock-step nobody moves on while it is examined: then every component's own word can be compared."""
    config, outcome = trained(tmp_path / "run", *settings, name=name)
    dataset = load_data(config.data)
    for k, row in enumerate(outcome.status.components):
        assert row.accuracy is not None
        network = export.load(tmp_path / "run" / "weights", k)
        found = reading(network, dataset, config.train.batch_size)
        assert found.accuracy == row.accuracy.student, row.component
        assert found.bits == row.accuracy.student_bits
        assert network(dataset.test_inputs[:5]).shape == (*dataset.test_labels[:5].shape, dataset.classes)


def test_component_0_is_as_good_as_it_said_while_others_train_on(tmp_path: Path) -> None:
    config, outcome = trained(tmp_path / "run", "recipe=mach-stream")
    found = reading(export.load(tmp_path / "run" / "weights"), load_data(config.data), config.train.batch_size)
    assert found.accuracy == outcome.status.components[0].accuracy.student


def test_logits_are_those_of_the_components_put_together(run: Path) -> None:
    """By the whole network, which readings of finished runs are made with."""
    config, _ = export.described(run, 0)
    dataset = load_data(config.data)
    whole = whole_of(config, dataset)
    for k in range(3):
        whole.part(k).load_state_dict(load_weights(run / f"c{k}.safetensors"))
    x = dataset.test_inputs[:7]
    for k, z in enumerate(whole.every(x) if config.wiring == "stream" else [whole.read(k, (x,), 0) for k in range(3)]):
        assert torch.equal(export.load(run, k)(x), z)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(5, 63), r"takes samples \[B, 64\], and got \[5, 63\]$"),
        (torch.zeros(64), r"takes samples \[B, 64\], and got \[64\]; of one sample alone give x\[None\]$"),
        (torch.tensor(1.0), r"and got \[\]$"),
        *(
            (torch.zeros(5, 64, dtype=kind), rf"takes quantities, as torch\.float32, and got {kind}; give samples as")
            for kind in (torch.uint8, torch.float64, torch.bfloat16)
        ),
    ],
)
def test_what_are_no_samples_is_one_sentence(run: Path, x: torch.Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said):
        export.load(run)(x)
    assert export.load(run)(torch.zeros(0, 64)).shape == (0, 10)
    assert export.load(run).double()(torch.zeros(0, 64, dtype=torch.float64)).shape == (0, 10)


@pytest.mark.parametrize(("recipe", "k"), [("mach", 0), ("dgl", 1)])
def test_what_are_no_symbols_is_one_sentence(tmp_path: Path, recipe: str, k: int) -> None:
    config, _ = trained(tmp_path / "run", "train.steps=1", f"recipe={recipe}", *TEXT, name="bytes-lm")
    network, dataset = export.load(tmp_path / "run" / "weights", k), load_data(config.data)
    x = dataset.test_inputs[:2].long()
    for odd in (-1, dataset.symbols):
        with pytest.raises(DataError, match=rf"knows the symbols 0 to {dataset.symbols - 1}, and got {odd}$"):
            network(x.clone().fill_(odd))
    with pytest.raises(DataError, match=r"takes whole numbers, which stand for symbols, and got torch\.float32"):
        network(x.float())
    with pytest.raises(DataError, match=r"takes samples \[B, 16\], and got \[2, 17\]"):
        network(torch.cat([x, x[:, :1]], dim=1))
    assert torch.allclose(network(x[:, :9]), network(x)[:, :9], atol=1e-5), (
        "of what was there, later ones change nothing"
    )


def test_what_ships_learns_no_more_and_holds_nothing_that_it_does_not_use(run: Path) -> None:
    random = torch.random.get_rng_state()
    network = export.load(str(run), 1)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not network.training
    assert not any(each.requires_grad for each in network.parameters())
    config, dataset = export.described(run, 1)
    assert not network(torch.rand(2, *dataset.sample_shape)).requires_grad
    sections = [name for name, _ in network.named_modules() if name.startswith("above.") and name.count(".") == 1]
    assert sections == (["above.0"] if config.wiring == "stream" else [])
    assert not any("below" in name for name in network.state_dict())


def test_copies_of_what_is_deeper_are_not_asked_for(run: Path, tmp_path: Path) -> None:
    weights, config = own(run, tmp_path), export.described(run, 0)[0]
    for file in weights.iterdir():
        bare = {name: each for name, each in load_file(file).items() if not name.startswith("below.")}
        save_file(bare, file, metadata=load_about(file))
    x = load_data(config.data).test_inputs[:3]
    assert torch.equal(export.load(weights, 1)(x), export.load(run, 1)(x))


def test_neither_the_data_nor_the_rest_of_the_run_is_needed(run: Path, tmp_path: Path) -> None:
    weights = own(run, tmp_path)
    config, _ = export.described(weights, 0)
    gone = load_about(weights / "c0.safetensors")["config"].replace("source: digits", "source: gone:away")
    for file in weights.iterdir():
        told(file, config=gone)
    x = load_data(config.data).test_inputs[:3]
    assert torch.equal(export.load(weights, 2)(x), export.load(run, 2)(x))


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"config": None}, DataError, r"c1\.safetensors: holds no configuration; give the weights folder of a run"),
        ({"component": "c2"}, DataError, r"c1\.safetensors: holds the weights of c2; give it the name it had"),
        ({"samples": None}, DataError, r"c1\.safetensors: does not say what samples it takes"),
        ({"samples": "[]"}, DataError, r"c1\.safetensors: does not say what samples it takes"),
        (
            {"samples": f'{{"sample_shape": [64], "classes": 10, "symbols": {1 << 63}}}'},
            DataError,
            r"does not say what samples it takes .*\$\.symbols",
        ),
        (
            {"samples": '{"sample_shape": [0], "classes": 10, "symbols": 0}'},
            DataError,
            r"does not say what samples it takes .*>= 1",
        ),
        *(
            (
                {"samples": f'{{"sample_shape": {shape}, "classes": 10, "symbols": 0}}'},
                DataError,
                rf"does not say what samples it takes .{wrong}",
            )
            for shape, wrong in (([10**30], "Expected `int` <= 9"), ([2**40, 2**40], "sizes beyond 64 bits"))
        ),
        (
            {"samples": '{"sample_shape": [3, 3], "classes": 10, "symbols": 0}'},
            DataError,
            r"does not fit the network .* size mismatch",
        ),
        (
            {"samples": '{"sample_shape": [64], "classes": 1000000000000000, "symbols": 0}'},
            DataError,
            r"does not fit the network .* size mismatch",
        ),
        (
            {
                "config": "n_components: 3",
                "samples": '{"sample_shape": [1000000, 1000000], "classes": 2, "symbols": 0}',
            },
            DataError,
            r"does not fit the network",
        ),
        ({"samples": f'{{"sample_shape": {[1] * 99}, "classes": 10, "symbols": 0}}'}, DataError, "does not say what"),
        (
            {"config": ALIASES},
            DataError,
            r"c1\.safetensors: configuration: is none that .* aliases in it; use a file as",
        ),
        ({"config": f"#{'!' * LONGEST}"}, DataError, r"c1\.safetensors: configuration: is none that .* characters"),
        ({"config": "graph: " + "[" * 5000}, ConfigError, r"c1\.safetensors: configuration: is no valid YAML"),
        ({"config": f"seed: {'9' * 5000}"}, ConfigError, r"c1\.safetensors: configuration: is no valid YAML"),
        (
            {"config": "n_components: 60000"},
            DataError,
            r"c1\.safetensors: says that its run has 60000 components; 1024",
        ),
        ({"config": "n_components: 1000000000"}, ConfigError, r"n_components: expected a whole number <= 65536"),
        (
            {"config": "n_components: 60\ngraph: kgraph\nmodel: {student: [1, 1, 1, 1, 1, 1, 1, 1]}"},
            DataError,
            r"does not fit .* with \d+ calls of torch it is not built",
        ),
        *(
            ({"config": f"n_components: 3\nmodel: {{{key}: {value}}}"}, DataError, said)
            for key, value, said in (
                ("joiner", [1] * 999, r"does not fit .* with \d+ calls of torch it is not built"),
                ("student", [1] * 999, r"does not fit .* with \d+ calls of torch it is not built"),
                ("embedding", 10**6, r"does not fit the network .* size mismatch"),
                ("joiner", [10**6, 10**6], r"does not fit the network"),
            )
        ),
        (
            {"config": "model: {embedding: 10000000}"},
            ConfigError,
            r"model\.embedding: expected a whole number <= 1048576",
        ),
        ({"config": "n_components: 1"}, DataError, r"c1, in a run of 1 components"),
        ({"config": "wing: 1"}, ConfigError, r"c1\.safetensors: configuration: unknown key 'wing'; did you mean"),
        ({"config": "{"}, ConfigError, r"c1\.safetensors: configuration, line 1.* no valid YAML"),
        ({"config": "model: {family: 'os:abort'}"}, ConfigError, r"is of 'os:abort', whose module .* if you trust it"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_one_sentence(
    run: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    weights = own(run, tmp_path)
    told(weights / "c1.safetensors", **changes)
    with pytest.raises(error, match=sentence) as raised:
        export.load(weights, 1)
    assert "\n" not in str(raised.value)


def test_a_picture_of_any_size_that_a_file_speaks_of_costs_nothing(tmp_path: Path) -> None:
    """No weight of a convolution knows how large the picture is."""
    config, like = (
        load_config("digits", ("model.family=conv", "n_components=1"), RECIPES),
        export.Samples((8, 8), 10, 0),
    )
    file, huge = tmp_path / "c0.safetensors", msgspec.json.encode(export.Samples((10**6, 10**6), 10, 0)).decode()
    component = component_of(config, 0, (), like.dataset())
    save_weights(component, file, export.about("c0", 1, config, like.dataset()))
    told(file, samples=huge)
    same = export.load(tmp_path).get_submodule("component").state_dict()
    assert all(torch.equal(same[name], weight) for name, weight in component.state_dict().items())


def test_weights_of_another_precision_are_read_as_what_networks_are_of(run: Path, tmp_path: Path) -> None:
    weights = own(run, tmp_path)
    for file in weights.iterdir():
        save_file({name: each.half() for name, each in load_file(file).items()}, file, metadata=load_about(file))
    assert {each.dtype for each in export.load(weights, 1).parameters()} == {torch.float32}


def test_a_family_of_ones_own_is_imported_when_its_reader_names_it_and_it_alone(run: Path, tmp_path: Path) -> None:
    weights = own(run, tmp_path)
    (config, _), family = export.described(run, 0), "mach.networks.mlp:mlp"
    named = dump(msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, family=family)))
    for file in weights.iterdir():
        told(file, config=named)
    x = load_data(config.data).test_inputs[:3]
    assert torch.equal(export.load(weights, 1, family=family)(x), export.load(run, 1)(x))
    for other in ("", "mach.networks.mlp:other"):
        with pytest.raises(ConfigError, match="if you trust it"):
            export.load(weights, 1, family=other)


def test_weights_that_are_not_there_are_one_sentence(run: Path, tmp_path: Path) -> None:
    for k in (3, -1):
        with pytest.raises(DataError, match=rf"weights: holds no weights of c{k}; there are: c0, c1, c2; of a run"):
            export.load(run, k)
    with pytest.raises(DataError, match=rf"run: holds no weights; give {run}$"):
        export.load(run.parent)
    with pytest.raises(DataError, match=r"holds no weights; they are there when a run has ended"):
        export.load(tmp_path)
    (tmp_path / "c0.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(DataError, match=r"c0\.safetensors: holds no weights \("):
        export.load(tmp_path)


def test_weights_of_another_network_are_one_sentence(run: Path, tmp_path: Path) -> None:
    weights = own(run, tmp_path)
    c2 = weights / "c2.safetensors"
    save_file({"head.weight": torch.zeros(2)}, c2, metadata=load_about(c2))
    with pytest.raises(DataError, match=r"c2\.safetensors: does not fit the network .*family of your own") as raised:
        export.load(weights, 2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("setting", ["seed=4", "recipe=ampnet"])
def test_sections_of_two_runs_make_no_network(tmp_path: Path, setting: str) -> None:
    trained(tmp_path / "one", "recipe=dgl", "train.steps=2")
    trained(tmp_path / "other", "recipe=dgl", "train.steps=2", setting)
    weights = own(tmp_path / "one" / "weights", tmp_path)
    (weights / "c0.safetensors").write_bytes((tmp_path / "other" / "weights" / "c0.safetensors").read_bytes())
    with pytest.raises(DataError, match=rf"c0\.safetensors: is of another run, with another {setting.split('=')[0]};"):
        export.load(weights, 2)


def test_end_to_end_only_the_last_has_a_head(tmp_path: Path) -> None:
    config, outcome = trained(tmp_path / "run", "recipe=backprop")
    with pytest.raises(ConfigError, match=r"component c0: in a run of backprop only the last .* component 2$"):
        export.load(tmp_path / "run" / "weights")
    found = reading(export.load(tmp_path / "run" / "weights", 2), load_data(config.data), config.train.batch_size)
    accuracy = outcome.status.components[0].accuracy
    assert accuracy is not None
    assert found.accuracy == accuracy.full


def test_below_a_stub_there_is_no_network(tmp_path: Path) -> None:
    trained(tmp_path / "run", "recipe=dgl", "components={1: {stub: {}}}")
    weights = tmp_path / "run" / "weights"
    with pytest.raises(DataError, match=r"no weights of c1; there are: c0, c2"):
        export.load(weights, 1)
    with pytest.raises(ConfigError, match=r"component c2: takes the activation of c1, which was a stub"):
        export.load(weights, 2)
    assert isinstance(export.load(weights, 0), nn.Module)


def test_what_a_file_says_of_itself_comes_back(tmp_path: Path) -> None:
    config = load_config("digits", SMALL, RECIPES)
    none = torch.zeros(0, dtype=torch.int64)
    dataset = Dataset(torch.zeros(0, 2, 5), none, torch.zeros(0, 2, 5), none, classes=7, symbols=4)
    component = whole_of(config, load_data(config.data)).part(0)
    save_weights(component, tmp_path / "c0.safetensors", export.about("c0", 12, config, dataset))
    assert load_about(tmp_path / "c0.safetensors")["version"] == "12"
    same, like = export.described(tmp_path, 0)
    assert same == config
    assert (like.sample_shape, like.classes, like.symbols) == ((2, 5), 7, 4)
