"""Bytes of a text: windows and the bytes behind them, the text every machine has, and what is no text."""

import math
from pathlib import Path

import pytest
import torch

from configs.errors import ConfigError, DataError
from configs.tree import Data
from mach.data import Batches, load
from mach.data.text import CORPUS, corpus, spread

TEXT = bytes(range(100))


def data(path: Path, **other: object) -> Data:
    return Data(source="bytes", path=str(path), **{"length": 8, "test_share": 0.3, **other})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "text").write_bytes(TEXT)
    return tmp_path / "text"


def test_every_label_is_the_byte_behind_its_place(file: Path) -> None:
    dataset = load(data(file))
    assert dataset.train_inputs.dtype == torch.uint8
    assert (dataset.classes, dataset.symbols, dataset.sample_shape) == (256, 256, (8,))
    assert dataset.train_inputs[1].tolist() == list(range(8, 16))
    assert dataset.train_labels[1].tolist() == list(range(9, 17))
    for x, y in ((dataset.train_inputs, dataset.train_labels), (dataset.test_inputs, dataset.test_labels)):
        assert torch.equal(x.to(torch.int64) + 1, y)


def test_training_and_test_text_do_not_overlap(file: Path) -> None:
    dataset = load(data(file))
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (69 // 8, 29 // 8)
    assert dataset.train_labels.max() < 70 <= dataset.test_inputs.min()


def test_as_many_windows_as_wanted_come_from_all_over(file: Path) -> None:
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(4, None).tolist() == spread(4, 9).tolist() == [0, 1, 2, 3]
    dataset = load(data(file, train_samples=2, test_samples=1))
    assert dataset.train_inputs[:, 0].tolist() == [0, 32]
    assert len(dataset.test_labels) == 1


def test_a_directory_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, content in (("c", b"3"), ("b/a", b"2"), ("a", b"1")):
        (tmp_path / name).write_bytes(content)
    assert corpus(str(tmp_path)) == (str(tmp_path), b"123")


def test_every_machine_has_a_text_of_a_few_megabytes() -> None:
    _, content = corpus(None)
    assert len(content) == CORPUS
    assert content == corpus(None)[1]
    for part in (content[: CORPUS // 2], content[CORPUS // 2 :]):
        share = sum(part.count(word) for word in (b"def ", b"self", b"import ")) / len(part)
        assert share > 0.002, "both halves are program text"


def test_batches_carry_windows_and_their_indices_and_no_noise(file: Path) -> None:
    dataset = load(data(file))
    batch = next(Batches(dataset, 3, seed=0))
    assert (batch.inputs.dtype, batch.labels.shape) == (torch.uint8, (3, 8))
    assert batch.indices is not None
    assert torch.equal(dataset.samples[batch.indices], batch.inputs)
    with pytest.raises(ConfigError, match=r"data\.noise: is added to quantities"):
        Batches(dataset, 3, seed=0, noise=0.1)


@pytest.mark.parametrize("length", [70, math.ceil(len(TEXT) * 0.3)])
def test_a_text_too_short_for_its_windows_is_one_sentence(file: Path, length: int) -> None:
    with pytest.raises(DataError, match=rf"holds 100 bytes, too few for windows of {length}"):
        load(data(file, length=length))


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no/text cannot be read \(No such file.*data\.path=PATH"):
        load(data(Path("no/text")))
    with pytest.raises(DataError, match="holds 0 bytes"):
        load(data(tmp_path))
