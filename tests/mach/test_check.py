"""What a source of one's own made, looked at once: every wrong tensor is named, counted, and told what to do about."""

import math
import random
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, DataError
from configs.tree import Data
from mach.data import Batches, Dataset, load
from mach.draws import held, sow

N, K, S = 500, 5, 9
FEW = torch.arange(20)


@pytest.fixture
def own() -> Iterator[types.ModuleType]:
    module = types.ModuleType("own_data")
    sys.modules["own_data"] = module
    yield module
    del sys.modules["own_data"]


def test_what_a_source_draws_is_the_same_whoever_loads_it_and_goes_by_the_seed_of_the_split(
    own: types.ModuleType,
) -> None:
    def drawn(data: Data) -> Dataset:
        rows = torch.tensor([[torch.randn(()), np.random.randn(), random.random()] for _ in range(N)])
        return Dataset(rows, torch.arange(N) % K, torch.randn(20, 3), FEW % K, classes=K)

    own.make = drawn  # type: ignore[attr-defined]
    sow(1)
    first, before = load(Data(source="own_data:make")).train_inputs, held()
    sow(2)
    again = load(Data(source="own_data:make")).train_inputs
    other = load(Data(source="own_data:make", split_seed=-1)).train_inputs
    assert torch.equal(first, again)
    assert all(not torch.equal(one, another) for one, another in zip(first.T, other.T, strict=True))
    sow(1)
    assert str(before) == str(held()), "what others draw is left as it was"


def loaded(own: types.ModuleType, **other: Any) -> Dataset:
    """What `data.source=own_data:make` loads: a sound data set but for `other`."""
    good = {
        "train_inputs": torch.randn(N, 4),
        "train_labels": torch.arange(N) % K,
        "test_inputs": torch.randn(20, 4),
        "test_labels": FEW % K,
    }
    own.make = lambda data: Dataset(**{**good, "classes": K, **other})  # type: ignore[attr-defined]
    return load(Data(source="own_data:make"))


def spoilt(tensor: torch.Tensor, number: float, rows: int) -> torch.Tensor:
    """With that number twice in each of so many samples."""
    tensor[:rows, :2] = number
    return tensor


def labels(wrong: int) -> torch.Tensor:
    """Of which the last three are that."""
    found = torch.arange(N) % K
    found[-3:] = wrong
    return found


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "train_labels",
            torch.arange(100) % K,
            r"64 \[100\] for float32 \[500, 4\] in train_inputs: 100 labels for 500",
        ),
        ("test_labels", torch.arange(21) % K, r"int64 \[21\] for float32 \[20, 4\]"),
        ("train_labels", labels(K), r"labels from 0 to 5, and 3 of 500 samples have one that is not from 0 to 4"),
        ("train_labels", labels(-1), r"labels from -1 to 4, and 3 of 500 samples"),
        ("train_labels", torch.zeros(N), r"float32 \[500\]; labels are whole numbers"),
        ("train_labels", (torch.arange(N) % K).int(), r"int32 \[500\]; labels are whole numbers from 0, int64"),
        ("train_labels", [0] * N, "is a list, and no tensor"),
        ("train_labels", torch.zeros(N, 2, 2, dtype=torch.int64), r"\[N\] or \[N, T\]"),
        ("train_inputs", spoilt(torch.randn(N, 4), math.nan, 7), "not finite, in 7 of 500 samples; leave those out"),
        ("test_inputs", spoilt(torch.randn(20, 4), math.inf, 1), "not finite, in 1 of 20 samples"),
        ("train_inputs", torch.ones(N, 4, dtype=torch.int64), r"int64 \[500, 4\]; quantities are float32"),
        ("train_inputs", torch.randn(N), r"for float32 \[500\]"),
        ("train_inputs", torch.tensor(1.0), r"for float32 \[\] in train_inputs: 500 labels for 0 samples"),
        ("test_inputs", torch.randn(20, 5), r"float32 \[20, 5\], and float32 \[500, 4\] is trained on"),
        ("test_inputs", torch.randn(0, 4), r"20 labels for 0 samples; give at least one"),
        ("train_inputs", torch.randn(N, 4).double(), r"float64 \[500, 4\]; quantities are float32, as \.float\(\)"),
        ("train_inputs", torch.randn(N, 4, requires_grad=True), r"wants gradients, .* \.detach\(\) it"),
        ("train_inputs", spoilt(torch.randn(3, 4, N).permute(2, 1, 0), math.nan, 7), "not finite, in 7 of 500 samples"),
        ("train_inputs", torch.zeros(N, 4).to_sparse(), r"one by one \(torch\.sparse_coo, cpu\); make it dense"),
        ("train_inputs", torch.zeros(N, 4, device="meta"), r"one by one \(torch\.strided, meta\)"),
        ("train_labels", torch.eye(K).long()[torch.arange(N) % K], r"one-hot labels, int64 .*; .* \.argmax\(dim=1\)"),
        ("train_labels", torch.eye(K)[torch.arange(N) % K], r"one-hot labels, float32 \[500, 5\]; .* \.argmax"),
        (
            "train_labels",
            torch.zeros(N, K, dtype=torch.int64),
            r"a sample, \[500\], or, .* every place, \[500, 4\]$",
        ),
        ("train_labels", torch.zeros(N, 7, dtype=torch.int64), r"int64 \[500, 7\] for float32 \[500, 4\]"),
        ("train_labels", torch.zeros(N, 1, dtype=torch.int64), r"one a sample, \[500\]; \.reshape\(-1\) makes them so"),
        ("test_labels", torch.zeros(20, 4, dtype=torch.int64), r"int64 \[20, 4\], and int64 \[500\] is trained on"),
    ],
)
def test_what_cannot_be_trained_on_is_one_sentence(own: types.ModuleType, key: str, value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        loaded(own, **{key: value})
    assert str(error.value).startswith("data.source own_data:make: ")
    assert key in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_labels_of_no_sample_are_not_said_to_be_one_hot(own: types.ModuleType) -> None:
    with pytest.raises(DataError, match=r"float32 \[0, 5\]; labels are whole numbers from 0"):
        loaded(own, train_inputs=torch.zeros(0, 4), train_labels=torch.zeros(0, K))


@pytest.mark.parametrize(("key", "number", "least"), [("classes", 5.0, 1), ("classes", 0, 1), ("symbols", -1, 0)])
def test_how_many_is_a_whole_number(own: types.ModuleType, key: str, number: float, least: int) -> None:
    said = f"data.source own_data:make: {key}={number} is no whole number from {least} on; say how many"
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        loaded(own, **{key: number})


def test_sound_data_pass_as_they_are(own: types.ModuleType) -> None:
    x = torch.randn(N, 4)
    assert loaded(own, train_inputs=x).train_inputs is x


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_symbols_and_sequences_are_looked_at_as_such(own: types.ModuleType, dtype: torch.dtype) -> None:
    def symbols(rows: int) -> torch.Tensor:
        return torch.randint(0, S, (rows, 4)).to(dtype)

    train, test = symbols(N), symbols(20)
    parts = {"train_inputs": train, "train_labels": train.long(), "test_inputs": test, "test_labels": test.long()}
    assert loaded(own, **parts, classes=S, symbols=S).sample_shape == (4,)
    with pytest.raises(DataError, match=r"test_labels holds labels from 0 to 9, and 2 of 20 samples have one"):
        loaded(own, **parts | {"test_labels": spoilt(test.long(), S, 2)}, classes=S, symbols=S)
    with pytest.raises(
        DataError, match=r"train_inputs holds .* from 0 to 9, and 4 of 500 .* not fit; with symbols=9 they"
    ):
        loaded(own, **parts | {"train_inputs": spoilt(train.clone(), S, 4)}, classes=S, symbols=S)
    with pytest.raises(DataError, match=r"train_inputs holds float32 \[500, 4\]; symbols are whole numbers"):
        loaded(own, **parts | {"train_inputs": train.float()}, classes=S, symbols=S)


def test_a_batch_larger_than_the_data_is_not_cut_in_silence(own: types.ModuleType) -> None:
    assert len(next(Batches(loaded(own), N, seed=0)).labels) == N
    with pytest.raises(ConfigError, match=r"^train\.batch_size: 501 is more than the 500 samples to train on; set it"):
        Batches(loaded(own), N + 1, seed=0)
