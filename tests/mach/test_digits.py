"""The embedded default: read from scikit-learn's file, split the same way every time."""

import gzip
import sys
from pathlib import Path

import pytest
import torch

from configs.errors import DataError
from configs.tree import Data
from mach.data import load
from mach.data.digits import read_table


def test_eighty_twenty_in_a_sensible_range() -> None:
    dataset = load(Data())
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (1438, 359)
    assert dataset.sample_shape == (64,)
    assert dataset.classes == 10
    assert dataset.train_inputs.min() == -1.0
    assert dataset.train_inputs.max() == 1.0
    assert set(dataset.test_labels.tolist()) == set(range(10))


def test_the_split_depends_on_its_own_seed_alone_and_loses_nothing() -> None:
    first, again, other = load(Data()), load(Data()), load(Data(split_seed=1))
    assert torch.equal(first.test_inputs, again.test_inputs)
    assert not torch.equal(first.test_inputs, other.test_inputs)
    for dataset in (first, other):
        everything = torch.cat([dataset.train_inputs, dataset.test_inputs])
        assert len(everything) == 1797
        assert everything.sum(dtype=torch.float64).item() == pytest.approx(561718 / 8 - 1797 * 64)


def test_the_share_held_out_is_the_configured_one() -> None:
    assert len(load(Data(test_share=0.5)).test_labels) == round(1797 * 0.5)


def test_scikit_learn_is_found_and_not_imported() -> None:
    before = "sklearn" in sys.modules
    load(Data())
    assert ("sklearn" in sys.modules) == before


def test_a_missing_package_or_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"digits\.csv\.gz cannot be read .*; reinstall scikit-learn"):
        read_table(tmp_path / "digits.csv.gz")
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(b"1,2\n3,x\n"))
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "damaged.gz")
    monkeypatch.setattr("mach.data.digits.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load(Data())
