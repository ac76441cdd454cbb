"""Weights on disk: the same back, whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from built import build
from configs.errors import DataError, Diverged
from configs.tree import Model
from mach.checkpoint import load_weights, save_weights


def test_weights_come_back_bit_for_bit_with_what_was_said_about_them(tmp_path: Path) -> None:
    component = build(Model(embedding=4), (5,), 3, ("c1",))
    path = tmp_path / "c0.safetensors"
    save_weights(component, path, {"component": "c0", "version": "12"})
    twin = build(Model(embedding=4), (5,), 3, ("c1",))
    twin.load_state_dict(load_weights(path))
    assert all(torch.equal(a, b) for a, b in zip(component.parameters(), twin.parameters(), strict=True))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"component": "c0", "version": "12"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["c0.safetensors"]


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
    with pytest.raises(Diverged, match=r"c0\.safetensors: .* not finite"):
        save_weights(component, path, {"version": "2"})
    assert path.read_bytes() == good
    assert [entry.name for entry in tmp_path.iterdir()] == ["c0.safetensors"]


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
