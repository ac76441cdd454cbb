"""Weights on disk: the same back, whole or not at all."""

import errno
import math
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from built import build
from configs.errors import DataError, Diverged
from configs.tree import Loss, Model
from mach.checkpoint import load_about, load_state, load_weights, save_state, save_weights
from mach.component import Component
from mach.learner import Learner
from mach.messages import Batch
from mach.networks.place import Place
from mach.shelf import Shelf
from mach.sound import LARGEST
from mach.state import Copies, State, check_module, of_module, unbounded_of
from normed import normed


def test_weights_come_back_bit_for_bit_with_what_was_said_about_them(tmp_path: Path) -> None:
    component = build(Model(embedding=4), (5,), 3, ("c1",))
    path = tmp_path / "c0.safetensors"
    save_weights(component, path, {"component": "c0", "version": "12"})
    twin = build(Model(embedding=4), (5,), 3, ("c1",))
    twin.load_state_dict(load_weights(path))
    assert all(torch.equal(a, b) for a, b in zip(component.parameters(), twin.parameters(), strict=True))
    assert load_about(path) == {"component": "c0", "version": "12"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["c0.safetensors"]


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    component, path = build(Model(embedding=4), (5,), 3, ("c1",)), tmp_path / "c0.safetensors"
    about, found = dict.fromkeys("abcdef", "said"), set()
    for each in (about, about, about, dict(reversed(about.items()))):
        save_weights(component, path, each)
        found.add(path.read_bytes())
    assert len(found) == 1
    states = [Shelf(tmp_path / name) for name in "xy"]
    for shelf in states:
        save_state(shelf, whole(component), component="c0", version=1, incarnation=1, config="", keep=1)
    first, second = ({file.name: file.read_bytes() for file in shelf.path(1).iterdir()} for shelf in states)
    assert first == second


@pytest.mark.parametrize("about", [{"component": "c0", "config": "{}"}, {}])
def test_what_a_file_of_before_says_of_itself_is_read(tmp_path: Path, about: dict[str, str]) -> None:
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "c0.safetensors", metadata=about)
    assert load_about(tmp_path / "c0.safetensors") == about


@pytest.mark.parametrize("about", ["{", "[]", '{"version": 12}'])
def test_what_a_file_cannot_say_of_itself_is_one_sentence(tmp_path: Path, about: str) -> None:
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "c0.safetensors", metadata={"about": about})
    with pytest.raises(DataError, match=r"c0\.safetensors: holds no weights \("):
        load_about(tmp_path / "c0.safetensors")


def test_nothing_partial_is_left_where_nothing_can_be_written(tmp_path: Path) -> None:
    component = build(Model(embedding=4), (5,), 3, ())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"c0|directory"):
        save_weights(component, tmp_path / "file" / "c0.safetensors", {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written_and_good_ones_stay(tmp_path: Path, number: float) -> None:
    component, path = build(Model(embedding=4), (5,), 3, ()), tmp_path / "c0.safetensors"
    save_weights(component, path, {"version": "1"})
    good = path.read_bytes()
    next(component.parameters()).data[0] = number
    with pytest.raises(Diverged, match=r"^\S+ holds .* not finite"):
        save_weights(component, path, {"version": "2"})
    assert path.read_bytes() == good
    assert [entry.name for entry in tmp_path.iterdir()] == ["c0.safetensors"]


def masked(number: float) -> Component:
    component = build(Model(embedding=4), (5,), 3, ())
    component.joiner.register_buffer("mask", torch.full((3, 3), number).triu(1))
    return component


@pytest.mark.parametrize("number", [-math.inf, math.inf, torch.finfo(torch.float32).min])
def test_an_infinity_in_a_buffer_is_meant_and_comes_back(tmp_path: Path, number: float) -> None:
    component, shelf = masked(number), Shelf(tmp_path / "checkpoints")
    save_weights(component, tmp_path / "c0.safetensors", {}, unbounded_of(component))
    assert torch.equal(load_weights(tmp_path / "c0.safetensors")["joiner.mask"], component.joiner.mask)
    state = whole(component)
    save_state(shelf, Copies().take(state), component="c0", version=1, incarnation=1, config="", keep=1)
    found = load_state(shelf, 1, "c0")[1]
    assert torch.equal(found.tensors["learner/component/joiner.mask"], component.joiner.mask)
    check_module(component, found.under("learner").under("component"))


@pytest.mark.parametrize(("where", "number"), [("buffer", math.nan), ("parameter", -math.inf)])
def test_of_a_network_with_a_mask_ruined_numbers_are_still_not_written(
    tmp_path: Path, where: str, number: float
) -> None:
    component, shelf = masked(number if where == "buffer" else -math.inf), Shelf(tmp_path / "checkpoints")
    if where == "parameter":
        next(component.parameters()).data[0] = number
    with pytest.raises(Diverged, match=r"^joiner.* holds numbers that are"):
        save_weights(component, tmp_path / "c0.safetensors", {}, unbounded_of(component))
    with pytest.raises(Diverged, match=r"^learner/component/joiner.* holds numbers that are"):
        save_state(shelf, whole(component), component="c0", version=1, incarnation=1, config="", keep=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_statistic_that_overflows_is_not_written_though_masks_have_infinities(tmp_path: Path, average: float) -> None:
    component, shelf = normed(Place(Model(embedding=4), (5,), 3)), Shelf(tmp_path / "checkpoints")
    component.head.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    sgd, cpu = torch.optim.SGD(component.parameters(), lr=0.1), torch.device("cpu")
    learner = Learner(component, sgd, Loss(), window=2, device=cpu, sample_shape=(5,), average=average)
    said = {"component": "c0", "incarnation": 1, "config": "", "keep": 2}
    for version, factor in ((1, 1e8), (2, 3e19)):  # quantities may be in any unit
        with nullcontext() if factor == 1e8 else pytest.raises(Diverged, match="running_var holds numbers"):
            learner.step(Batch(version, factor * torch.randn(4, 5), torch.arange(4) % 3), 0.0)
            save_weights(learner.examined, tmp_path / "c0.safetensors", {}, learner.descent.unbounded)
        with nullcontext() if factor == 1e8 else pytest.raises(Diverged, match="running_var holds numbers"):
            save_state(shelf, learner.state(0.0), version=version, **said)  # type: ignore[arg-type]
    assert all(bool(each.isfinite().all()) for each in component.parameters())
    statistics = load_state(shelf, 1, "c0")[1].under("component").tensors
    assert any(float(each.max()) > LARGEST**2 for name, each in statistics.items() if "running_var" in name)


def whole(component: Component) -> State:
    """As a trainer's state is made: a part within a part."""
    learner, state = State(), State()
    learner.add("component", of_module(component, unbounded_of(component)))
    state.add("learner", learner)
    return state


def test_a_full_disk_is_an_error_of_the_system_that_names_the_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("mach.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space") as error:
        save_weights(build(Model(embedding=4), (5,), 3, ()), tmp_path / "c0.safetensors", {})
    found = error.value
    assert (found.errno, found.strerror) == (28, "No space left on device")
    assert found.filename == str(tmp_path / "c0.safetensors")


def test_missing_or_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"\xff" * 40)
    for name in ("missing", "damaged"):
        with pytest.raises(DataError, match=f"{name}: holds no weights"):
            load_weights(tmp_path / name)


@pytest.mark.parametrize("works", [1, 2])
def test_a_checkpoint_that_cannot_be_replaced_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: int
) -> None:
    """Of the renames, the first puts the old one aside and the second the new one in its place."""
    shelf, rename, renamed = Shelf(tmp_path), os.rename, []

    def broken(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == works:
            raise OSError(errno.EIO, "Input/output error", str(target))
        rename(source, target)

    said = {"component": "c0", "version": 1, "incarnation": 1, "config": "", "keep": 2}
    save_state(shelf, State({"weight": torch.zeros(2)}), **said)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("mach.checkpoint.os.rename", broken)
        with pytest.raises(OSError, match="Input/output error"):
            save_state(shelf, State({"weight": torch.ones(2)}), **said)  # type: ignore[arg-type]
    assert len(renamed) >= works, "it was tried"
    assert torch.equal(load_state(shelf, 1, "c0")[1].tensors["weight"], torch.zeros(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
    save_state(shelf, State({"weight": torch.ones(2)}), **said)  # type: ignore[arg-type]
    assert torch.equal(load_state(shelf, 1, "c0")[1].tensors["weight"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
