"""Hugging Face's `datasets`, on local files alone; skips without the extra, but for the sentence that says so."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import DataError
from configs.tree import Data
from mach.data import load

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="needs the extra: pip install 'mach-train[hf]'"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # of its many libraries
ROWS = [{"pixels": [i, i + 1, i + 2], "digit": i % 3, "name": "x"} for i in range(10)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the cache of `datasets` in it, and the hub out of reach."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return tmp_path


def parquet(file: Path, rows: list[dict[str, Any]]) -> str:
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(file)
    return str(file)


def data(path: str, **other: Any) -> Data:
    return Data(source="hf", path=path, **{"input_column": "pixels", "label_column": "digit", **other})


@needs_extra
def test_a_parquet_file_is_split_by_its_seed(folder: Path) -> None:
    path = parquet(folder / "all.parquet", ROWS)
    dataset = load(data(path, test_share=0.3))
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (7, 3)
    assert (dataset.sample_shape, dataset.classes, dataset.train_inputs.dtype) == ((3,), 3, torch.float32)
    assert sorted(dataset.samples[:, 0].tolist()) == list(range(10))
    labels = torch.cat((dataset.train_labels, dataset.test_labels))
    assert torch.equal(labels, dataset.samples[:, 0].long() % 3), "every sample kept its label"
    assert torch.equal(load(data(path, test_share=0.3)).samples, dataset.samples)
    assert not torch.equal(load(data(path, test_share=0.3, split_seed=1)).samples, dataset.samples)


@needs_extra
def test_a_folder_brings_its_own_split_and_symbols_stay_whole(folder: Path) -> None:
    own = folder / "own"
    own.mkdir()
    parquet(own / "train.parquet", ROWS)
    parquet(own / "test.parquet", ROWS[:4])
    dataset = load(data(str(own), symbols=12))
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (10, 4)
    assert (dataset.symbols, dataset.train_inputs.dtype) == (12, torch.int64)
    assert dataset.test_inputs[3].tolist() == [3, 4, 5]


@needs_extra
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"input_column": "image"}, r"no column 'image' in train; it has pixels, digit, name.*data\.input_column=NAME"),
        ({"label_column": "class"}, r"no column 'class'.*data\.label_column=NAME"),
        ({"input_column": "name"}, "name of train holds no numbers"),
        ({"symbols": 3}, r"with data\.symbols=3 they must be whole numbers from 0 to 2"),
    ],
)
def test_columns_that_cannot_be_trained_on_are_named(folder: Path, other: dict[str, Any], said: str) -> None:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    with pytest.raises(DataError, match=said):
        load(data(str(path), **{"test_share": 0.1, **other}))


@needs_extra
def test_what_cannot_be_read_is_one_sentence(folder: Path) -> None:
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read") as error:
        load(data(str(folder / "broken.parquet")))
    assert "\n" not in str(error.value)


def test_without_the_extra_or_a_path_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"`datasets` is not installed; pip install 'mach-train\[hf\]'"):
        load(data("rows.parquet"))
    with pytest.raises(DataError, match=r"data\.path=PATH"):
        load(Data(source="hf"))
