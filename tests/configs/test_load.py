"""YAML and --set into a typed tree; every mistake is one sentence with key, place and nearest valid key."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import dump, find, find_again, load, merge, parse, parse_setting, shipped
from configs.tree import LARGEST, Config
from mach.recipes import RECIPES


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_shipped_configuration_is_valid_and_found_by_name() -> None:
    assert {"digits", "fashion-mnist"} <= set(shipped())
    for name in shipped():
        assert load(name, recipes=RECIPES).recipe in RECIPES
        assert find(name).stem == name


@contextmanager
def piped(text: str) -> Iterator[str]:
    """As the shell's <(…)."""
    out, into = os.pipe()
    os.write(into, text.encode())
    os.close(into)
    yield f"/dev/fd/{out}"
    os.close(out)


def test_what_comes_out_of_a_pipe_is_read_and_kept_for_who_asks_again() -> None:
    with piped("train: {steps: 7}") as pipe:
        assert [load(pipe).train.steps for _ in range(2)] == [7, 7]
        with pytest.raises(ConfigError, match=r"would read it a second time; write it into a file"):
            find_again(pipe)
    with piped("train: {steps: 8}") as pipe:
        assert load(pipe).train.steps == 8
    with pytest.raises(ConfigError, match=r"/dev/zero: is no configuration: more than \d+ characters"):
        load("/dev/zero")


def test_a_dash_is_standard_input_a_pipe_or_a_file(tmp_path: Path) -> None:
    code = "import sys; from configs.load import load; print(load('-', recipes=None).train.steps)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input="train: {steps: 7}", capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"
    with open(write(tmp_path, "train: {steps: 8}"), encoding="utf-8") as file:
        assert subprocess.run(command, stdin=file, capture_output=True, text=True, check=True).stdout == "8\n"


def test_another_process_is_given_the_path_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    assert find_again(file) == file
    assert find_again("digits") == str(find("digits"))
    with open(file, encoding="utf-8") as opened:
        assert find_again(f"/dev/fd/{opened.fileno()}") == file


def test_what_is_no_configuration_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert find("digits").is_file()
    with pytest.raises(ConfigError, match=f"^{tmp_path}: is a directory; give a configuration in it, or one of bytes"):
        load(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^no configuration 'nothere.yaml': neither a file nor one of "):
        load("nothere.yaml")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=r"^loop: cannot be found \(Too many levels"):
        load("loop")
    file = write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"mine.yaml/x: cannot be found \(Not a directory\); check the path"):
        load(f"{file}/x")


def test_an_empty_file_is_the_trees_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Config()


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {steps: 7, batch_size: 9}\nloss: {late: 0.25}")
    recipes = {"mach": {"loss": {"late": 4.0, "distill": 5.0}, "train": {"steps": 1}}}
    config = load(file, ("train.steps=8", "train.steps=11"), recipes)
    assert (config.train.steps, config.train.batch_size) == (11, 9)
    assert (config.loss.late, config.loss.distill, config.loss.child) == (0.25, 5.0, Config().loss.child)


@pytest.mark.parametrize("setting", ["bus.window=4", "graph=kgraph", "wiring=skip"])
def test_a_recipe_that_a_setting_names_lies_under_every_setting_wherever_it_stands(setting: str) -> None:
    before = load("digits", (setting, "recipe=dgl", "recipe=mach-stream"), RECIPES)
    assert before == load("digits", ("recipe=dgl", "recipe=mach-stream", setting), RECIPES)
    assert before == load("digits", ("recipe=mach-stream", setting), RECIPES), "of several recipes the last"
    assert before != load("digits", ("recipe=mach-stream",), RECIPES)


def test_noise_is_of_the_files_own_source(tmp_path: Path) -> None:
    file = write(tmp_path, "data: {noise: 0.5, length: 7}")
    for settings, noise in (
        ((), 0.5),
        (("data.source=digits",), 0.5),
        (("data.source=mine:blobs",), 0.0),
        (("data={source: mine:blobs}",), 0.0),
        (("data.noise=0.1", "data.source=mine:blobs"), 0.1),
    ):
        data = load(file, settings).data
        assert (data.noise, data.length) == (noise, 7), settings


def test_a_dumped_tree_is_a_configuration_again(tmp_path: Path) -> None:
    config = load("digits", ("components.1.stub.latency_ms=5", "graph=[[1],[]]", "n_components=2"), RECIPES)
    assert load(write(tmp_path, dump(config)), recipes=RECIPES) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.steps=5", {"train": {"steps": 5}}),
        ("optimiser.lr=1e-3", {"optimiser": {"lr": 0.001}}),
        ("components.1.stub={drop: 0.5}", {"components": {1: {"stub": {"drop": 0.5}}}}),
        ("data.path=/a=b", {"data": {"path": "/a=b"}}),
        ("train.minutes=null", {"train": {"minutes": None}}),
        ("graph=[[1], []]", {"graph": [[1], []]}),
        ("bus.host=::", {"bus": {"host": "::"}}),  # what is no IPv4 address is told by `bus/keys.py`
        ("bus.host=[fe80::1]", {"bus": {"host": "[fe80::1]"}}),
    ],
)
def test_settings_are_nested_yaml(text: str, expected: object) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.source=mydata:", "nothing follows the colon; write package.module:factory, or KEY: VALUE"),
        (
            "data.source=mydata: misfit",
            "data.source: expected text, got keys with values; text with a colon in it stands in quotes",
        ),
    ],
)
def test_a_colon_that_makes_a_mapping_of_a_name_is_told(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("digits", (setting,))
    assert str(error.value) == f"--set {setting}: {said}"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("method.gradient_reach=2", "expected text, got 2; valid: none, hop, full"),
        ("wiring=no", "expected text, got False; valid: skip, stream"),
        ("graph=5", "expected text or a list, got 5; valid: chain, ring, kgraph, or a list"),
        (
            "staleness.policies=[3, clip]",
            "expected text, got a whole number; valid: bound, accumulate, discount",
        ),
        ("data.source=3", "expected text, got 3"),
    ],
)
def test_what_is_no_text_is_told_the_words_that_its_key_takes(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("digits", (setting,))
    _, _, told = str(error.value).partition(": expected")
    assert f"expected{told}".startswith(said)
    assert "valid" in said or "valid" not in told


@pytest.mark.parametrize("text", ["train.steps", "=3", "train..steps=3", "a=[1", "train.=3"])
def test_a_malformed_setting_is_quoted(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_setting(text)
    assert f"--set {text}: " in str(error.value)


def test_a_decimal_number_written_with_an_exponent_is_a_number() -> None:
    assert load("digits", ("optimiser.lr=3e-4",)).optimiser.lr == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer.lr=1", "unknown key 'optimizer'; did you mean 'optimiser'?"),
        ("bus.windw=3", "unknown key 'bus.windw'; did you mean 'bus.window'?"),
        ("components.1.stub.latency=5", "did you mean 'components.1.stub.latency_ms'?"),
        (
            "loss.zzz=1",
            "unknown key 'loss.zzz'; valid here: child, student, distill, late, activation, logits, temperature",
        ),
    ],
)
def test_an_unknown_key_names_itself_its_place_and_the_nearest(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("digits", (setting,), RECIPES)
    assert f"--set {setting}: " in str(error.value)
    assert said in str(error.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "train:\n  stepz: 3\n")
    with pytest.raises(ConfigError, match=r"unknown key 'train\.stepz'; did you mean 'train\.steps'") as error:
        load(file)
    assert str(error.value).startswith(file)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("train.steps=many", "train.steps"),
        ("train.steps=0", "train.steps"),
        ("optimiser.lr=-1", "optimiser.lr"),
        ("optimiser.name=adam", "optimiser.name"),
        ("model.joiner=[64, 0]", "model.joiner"),
        ("components.2.stub.drop=1.5", "components"),
        ("data.noise=-0.5", "data.noise"),
        ("train=3", "train"),
    ],
)
def test_a_wrong_value_names_its_key_and_place(setting: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("digits", (setting,), RECIPES)
    assert str(error.value).startswith(f"--set {setting}: {key}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "choices"),
    [
        ("method.momentum_head=bogus", "none, layer, chain"),
        ("optimiser.name=adam", "adamw, sgd, nadam, muon"),
        ("staleness.policies=[clip, recompute]", "bound, accumulate, discount, shrink, predict, compensate, clip"),
    ],
)
def test_a_word_that_is_none_of_those_that_a_key_takes_names_them_all(setting: str, choices: str) -> None:
    with pytest.raises(ConfigError, match=f"invalid enum value .*; valid: {choices}$"):
        load("digits", (setting,), RECIPES)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("staleness.policies=clip", "staleness.policies: expected a list, got 'clip'; write [clip]"),
        ("model.joiner=64", "model.joiner: expected a list, got 64; write [64]"),
        ("train.steps=1e3", "train.steps: expected a whole number, got 1000.0"),
        ("train=abc", "train: expected keys with values, got 'abc'"),
        ("train.minutes=long", "train.minutes: expected a number or null, got 'long'"),
        ("graph=[[0.5]]", "graph[0][0]: expected a whole number, got a number"),
    ],
)
def test_what_is_expected_is_told_in_plain_words(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("digits", (setting,), RECIPES)
    assert str(error.value) == f"--set {setting}: {said}"


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("bus.window", 1, 4096),
        ("bus.max_message_mb", 1, 1 << 20),
        ("threads", 1, 1024),
        ("n_components", 1, 1 << 16),
        ("model.embedding", 1, 1 << 20),
        ("model.blocks", 1, 1024),
        ("data.train_samples", 1, 1 << 40),
        ("data.split_seed", 0, LARGEST),
        ("seed", 0, LARGEST),
        ("train.steps", 1, LARGEST),
    ],
)
def test_a_whole_number_that_nothing_could_be_done_with_is_refused_by_its_key(key: str, least: int, most: int) -> None:
    for value in (least, most):
        load("digits", (f"{key}={value}",), RECIPES)
    for value, bound in ((least - 1, f">= {least}"), (most + 1, f"<= {most}"), (10**40, f"<= {most}")):
        with pytest.raises(ConfigError) as error:
            load("digits", (f"{key}={value}",), RECIPES)
        assert str(error.value) == f"--set {key}={value}: {key}: expected a whole number {bound}"


def test_an_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"recipe: 'mahc' is none of mach, .*; did you mean 'mach'\?$") as error:
        load("digits", ("recipe=mahc",), RECIPES)
    assert str(error.value).count("mach-stream") == 1
    with pytest.raises(ConfigError, match=r"is none of mach, .*backprop$") as error:
        load("digits", ("recipe=zzz",), RECIPES)
    assert str(error.value).count("backprop") == 1


def test_without_recipes_the_layer_is_left_out() -> None:
    assert load("digits", ("recipe=anything",)).recipe == "anything"


def test_an_unknown_configuration_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no configuration 'digit'.*did you mean 'digits'"):
        load("digit")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "is no valid YAML"), ("- 1\n- 2", "holds a list"), ("just words", "holds a str")],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as error:
        load(file)
    assert str(error.value).startswith(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n b: 2\n", ", line 2, column 3: is no valid YAML: mapping values are not allowed here; found ' b: 2'"),
        ("a:\n  b: 1\n\tc: 3\n", ", line 3, column 1: is no valid YAML: found character '\\t' that cannot start"),
        ("a: [1,\n", ", line 2, column 1: is no valid YAML: expected the node content, but found"),
        ("a: 'b\nc: d\n", "while scanning a quoted scalar that begins in line 1, found unexpected end"),
        ("c: *d", "found undefined alias 'd'; found 'c: *d'"),
        (
            "train: {steps: 3}\n\ntrain: {steps: 4}",
            ", line 3, column 1: is no valid YAML: the key 'train' is there twice",
        ),
        (
            "bus:\n  lane: auto\n  lane: inline",
            "the key 'lane' is there twice, first in line 2; found '  lane: inline'",
        ),
        ("a: \x01", ": is no valid YAML: special characters are not allowed"),
    ],
)
def test_what_is_no_yaml_is_shown_where_it_stands(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value).startswith(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_merged_may_be_said_again(tmp_path: Path) -> None:
    text = "train: &mine {steps: 3, batch_size: 9}\ntrain2: &more {<<: *mine, steps: 4}\ntrain3: {<<: *more, steps: 5}"
    assert parse(text, "")["train3"] == {"steps": 5, "batch_size": 9}


def test_a_key_that_a_setting_says_twice_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--set train=.*: the key 'steps' is there twice, .*; say it once$"):
        parse_setting("train={steps: 3, steps: 4}")


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 3000])
def test_what_is_nested_without_end_is_named(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(
        ConfigError, match=r": is no valid YAML: nested deeper than any configuration; look for"
    ) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: ")
    with pytest.raises(ConfigError, match=r"^--set data: is no valid YAML: nested deeper"):
        parse_setting(f"data={text}")


@pytest.mark.parametrize(("name", "shown"), [("a", "'a'"), ("1.5", "1.5"), ("true", "True"), ("c1", "'c1'")])
def test_what_is_no_number_of_a_component_is_named(tmp_path: Path, name: str, shown: str) -> None:
    file = write(tmp_path, f"components: {{0: {{}}, {name}: {{stub: {{}}}}}}")
    with pytest.raises(ConfigError) as error:
        load(file)
    key = f"components.{shown.strip(chr(39))}"
    assert str(error.value) == f"{file}: {key}: expected the number of a component, got {shown}"


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(path))


def test_merging_replaces_everything_but_mappings() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert merge({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_a_file_of_ones_own_may_use_anchors_and_what_is_no_value_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("model:\n  joiner: &widths [8, 8]\n  student: *widths\n")
    assert load(str(file)).model.student == (8, 8)
    for text in ("seed: 2024-99-99", f"seed: {'9' * 5000}"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"own\.yaml: is no valid YAML: .*; correct that value$") as raised:
            load(str(file))
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="--set seed=2024-99-99: '2024-99-99' is no valid YAML value"):
        load("digits", ["seed=2024-99-99"])
