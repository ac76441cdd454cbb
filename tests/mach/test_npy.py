"""A folder of arrays: mapped where they lie, converted where they must be, and every wrong array named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import DataError
from configs.tree import Data
from mach.data import load

RANDOM = np.random.default_rng(0)
GOOD: dict[str, Any] = {
    "train_inputs": RANDOM.standard_normal((6, 4), np.float32),
    "train_labels": np.array([0, 1, 2, 0, 1, 2]),
    "test_inputs": RANDOM.standard_normal((3, 4), np.float32),
    "test_labels": np.array([2, 1, 0]),
}


def write(folder: Path, **other: Any) -> Path:
    for name, array in {**GOOD, **other}.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return folder


def data(folder: Path, symbols: int = 0) -> Data:
    return Data(source="npy", path=str(folder), symbols=symbols)


def test_floats_and_labels_are_used_where_they_lie(tmp_path: Path) -> None:
    dataset = load(data(write(tmp_path)))
    assert torch.equal(dataset.train_inputs, torch.from_numpy(GOOD["train_inputs"]))
    assert dataset.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (dataset.classes, dataset.symbols, dataset.sample_shape) == (3, 0, (4,))
    maps = Path("/proc/self/maps").read_text()
    assert all(f"{tmp_path}/{name}.npy" in maps for name in GOOD)


def test_pixels_are_scaled_by_the_training_parts_moments(tmp_path: Path) -> None:
    train, test = (RANDOM.integers(0, 256, (count, 2, 2), np.uint8) for count in (6, 3))
    dataset = load(data(write(tmp_path, train_inputs=train, test_inputs=test)))
    np.testing.assert_allclose(dataset.test_inputs, (test - train.mean()) / train.std(), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "kept"), [(np.uint8, torch.uint8), (np.int64, torch.int64), (np.int16, torch.int64)])
def test_symbols_stay_whole_and_may_have_a_label_each(tmp_path: Path, dtype: Any, kept: torch.dtype) -> None:
    train, test = (RANDOM.integers(0, 9, (count, 4)).astype(dtype) for count in (6, 3))
    labels = {"train_labels": train.astype(np.int64), "test_labels": test.astype(np.int32)}
    dataset = load(data(write(tmp_path, train_inputs=train, test_inputs=test, **labels), symbols=9))
    assert (dataset.symbols, dataset.train_inputs.dtype) == (9, kept)
    assert torch.equal(dataset.train_inputs.long(), dataset.train_labels)
    assert dataset.test_labels.dtype == torch.int64


def test_other_numbers_become_float32(tmp_path: Path) -> None:
    dataset = load(data(write(tmp_path, train_inputs=np.ones((6, 4)), test_inputs=np.ones((3, 4)))))
    assert dataset.train_inputs.dtype == dataset.test_inputs.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("train_labels", np.array([0.5] * 6), r"holds float64 \[6\]; labels are whole numbers from 0"),
        ("train_labels", np.array([0, 1, -1, 0, 0, 0]), "labels are whole numbers from 0"),
        ("train_labels", np.arange(5), r"holds int64 \[5\] for float32 \[6, 4\]"),
        ("test_labels", np.zeros((3, 5), int), r"holds int64 \[3, 5\] for float32 \[3, 4\]"),
        ("test_labels", np.zeros((0,), int), "at least one of them"),
        ("train_inputs", np.zeros(6, np.float32), r"samples are numbers \[N, …\]"),
        ("train_inputs", np.array([["a"] * 4] * 6), r"samples are numbers \[N, …\]"),
        ("test_inputs", np.full((3, 4), np.nan, np.float32), "not finite"),
        ("test_inputs", np.zeros((3, 5), np.float32), r"holds float32 \[3, 5\].*float32 \[6, 4\].*alike"),
        (
            "test_inputs",
            np.zeros((3, 4)),
            r"float32 \[6, 4\].*float64 \[3, 4\].*alike; .* cast .*\(np\.float32\)",
        ),
        ("test_inputs", np.zeros((3, 4), int), r"int64 \[3, 4\].*alike; .* cast what is not float32"),
        ("test_inputs", np.zeros((3, 4), np.uint8), r"uint8 \[3, 4\].*alike; make both anew"),
        ("test_inputs", np.array([object()]), "cannot be read"),
    ],
)
def test_an_array_that_cannot_be_trained_on_is_one_sentence(tmp_path: Path, name: str, array: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        load(data(write(tmp_path, **{name: array})))
    assert f"{name}.npy" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("array", [np.full((6, 4), 9), np.full((6, 4), -1), np.zeros((6, 4), np.float32)])
def test_what_is_no_symbol_is_refused(tmp_path: Path, array: Any) -> None:
    with pytest.raises(DataError, match=r"with data\.symbols=9 they must be whole numbers from 0 to 8"):
        load(data(write(tmp_path, train_inputs=array), symbols=9))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "test_labels.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"test_labels\.npy cannot be read"):
        load(data(tmp_path))
    (tmp_path / "train_labels.npy").unlink()
    with pytest.raises(DataError, match=r"train_labels\.npy cannot be read .*the folder needs train_inputs\.npy"):
        load(data(tmp_path))
    with pytest.raises(DataError, match=r"data\.path=DIR"):
        load(Data(source="npy"))
