"""What was loaded is told, with what is odd about it; nothing of that is refused."""

import re
from typing import Any

import pytest
import torch

from mach.data import Dataset, account

N = 600


def dataset(**other: Any) -> Dataset:
    """A sound one but for `other`."""
    good = {
        "train_inputs": torch.randn(N, 3, 20),
        "train_labels": torch.arange(N) % 8,
        "test_inputs": torch.randn(40, 3, 20),
        "test_labels": torch.arange(40) % 8,
        "classes": 8,
    }
    return Dataset(**{**good, **other})


def test_a_sound_one_is_a_line() -> None:
    assert account(dataset()) == ["600 samples to train on, 40 to test on, each float32 [3, 20], 8 classes"]


def test_symbols_with_a_label_each() -> None:
    parts = (("train", N), ("test", 40))
    symbols = {f"{part}_inputs": torch.full((count, 5), 200) for part, count in parts}
    labels = {f"{part}_labels": torch.arange(count * 5).view(count, 5) % 8 for part, count in parts}
    line = "600 samples to train on, 40 to test on, each [5] of 256 symbols, with a label for every place, 8 classes"
    assert account(dataset(**symbols, **labels, symbols=256)) == [line]


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (1 + torch.arange(N) % 7, 8, "8 classes, of which 0 never occurs in those to train on"),
        (2 + torch.arange(N) % 6, 8, "8 classes, of which 0, 1 never occur in those to train on"),
        (torch.arange(N) % 8, 256, "256 classes, of which 248 never occur in those to train on"),
        (torch.zeros(N, dtype=torch.int64), 1, "1 class"),
    ],
)
def test_classes_that_never_occur_are_told(labels: torch.Tensor, classes: int, said: str) -> None:
    assert account(dataset(train_labels=labels, test_labels=labels[:40], classes=classes))[0].endswith(f", {said}")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"train_labels": torch.full((N,), 3)}, "all samples to train on are of class 3, so that nothing is to be"),
        ({"train_labels": torch.arange(N) % 7}, "class 7 occurs in the samples to test on alone"),
        ({"train_labels": torch.arange(N) % 6}, "classes 6, 7 occur in the samples to test on alone"),
        (
            {"train_inputs": torch.randint(0, 9, (N, 3, 20)).float(), "test_inputs": torch.zeros(40, 3, 20)},
            "inputs are whole numbers from 0 to 8; .* expect about unit range, .* \\(data.symbols\\)",
        ),
        ({"train_inputs": 1e5 * torch.randn(N, 3, 20)}, r"inputs are numbers from -\S+e\+05 to \S+e\+05; scale them"),
        ({"test_inputs": 1e5 * torch.randn(40, 3, 20)}, r"inputs are numbers from -\S+e\+05 to \S+e\+05; scale them"),
    ],
)
def test_what_may_be_a_mistake_is_a_warning(other: dict[str, Any], said: str) -> None:
    _, *warnings = account(dataset(**other))
    assert any(re.match(f"warning: {said}", each) for each in warnings), warnings


def test_zeros_and_ones_are_of_unit_range() -> None:
    ones = torch.randint(0, 2, (N, 3, 20)).float()
    assert len(account(dataset(train_inputs=ones, test_inputs=ones[:40]))) == 1


def test_whole_numbers_with_one_that_is_not_are_none() -> None:
    inputs = torch.randint(0, 9, (5000, 4)).float()
    inputs[-1, -1] = 0.5
    labels = torch.arange(5000) % 8
    assert len(account(dataset(train_inputs=inputs, train_labels=labels, test_inputs=torch.zeros(40, 4)))) == 1
