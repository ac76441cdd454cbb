"""Arrays that somebody else made → a data set, or one sentence about what is wrong with them. Knows no file format.

    inputs [N, …]   floats, taken as they are; unsigned bytes, scaled like pictures; or, with `symbols`, whole numbers
    labels [N]      whole numbers from 0; or [N, T], one for every place of a sequence

Arrays of float32, int64, and of uint8 symbols are used where they lie, without a copy. What the numbers are, and
whether they can be trained on, is `check.py`'s to see.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from configs.errors import DataError
from mach.data.dataset import Dataset
from mach.data.idx import moments, scaled

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Training or test samples, and what to call them in an error."""

    inputs_name: str
    inputs: Array
    labels_name: str
    labels: Array


def dataset_of(train: Part, test: Part, symbols: int) -> Dataset:
    """Both parts, scaled alike, and named for those who find fault with their numbers.

    Raises:
        DataError: what no network could be trained on; names the array.
    """
    for part in (train, test):
        check_labels(part)
        check_inputs(part, symbols)
    dtypes = [train.inputs.dtype, test.inputs.dtype]
    if dtypes[0] != dtypes[1]:  # bytes are scaled like pictures, floats are not: then both are floats
        to = "float32" if any(np.issubdtype(each, np.floating) for each in dtypes) else "int64"
        pictures = not symbols and np.uint8 in dtypes
        way = "make both anew" if pictures else f"it is enough to cast what is not {to}, .astype(np.{to})"
        raise DataError(
            f"{train.inputs_name} holds {kind(train.inputs)}, {test.inputs_name} {kind(test.inputs)}: samples to "
            f"train and to test on must be alike; {way}"
        )
    pixels = moments(train.inputs) if not symbols and train.inputs.dtype == np.uint8 else None
    return Dataset(
        inputs_of(train.inputs, symbols, pixels),
        torch.from_numpy(train.labels.astype(np.int64, copy=False)),
        inputs_of(test.inputs, symbols, pixels),
        torch.from_numpy(test.labels.astype(np.int64, copy=False)),
        classes=1 + int(max(train.labels.max(), test.labels.max(), 0)),
        symbols=symbols,
        names={
            "train_inputs": train.inputs_name,
            "train_labels": train.labels_name,
            "test_inputs": test.inputs_name,
            "test_labels": test.labels_name,
        },
    )


def check_labels(part: Part) -> None:
    """Raise a DataError unless labels are whole numbers, which they may have to be made."""
    name, labels = part.labels_name, part.labels
    if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
        raise DataError(f"{name}: holds {kind(labels)}; labels are whole numbers from 0, at least one of them")


def check_inputs(part: Part, symbols: int) -> None:
    """Raise a DataError unless these are samples of numbers, or with `symbols` of whole ones."""
    name, inputs = part.inputs_name, part.inputs
    whole = np.issubdtype(inputs.dtype, np.integer)
    if inputs.ndim < 2 or inputs.size == 0 or not (whole or np.issubdtype(inputs.dtype, np.floating)):
        raise DataError(f"{name}: holds {kind(inputs)}; samples are numbers [N, …], at least two dimensions")
    if symbols and not whole:
        raise DataError(
            f"{name}: holds {kind(inputs)}; with data.symbols={symbols} they must be whole numbers from 0 to "
            f"{symbols - 1}"
        )


def inputs_of(inputs: Array, symbols: int, pixels: tuple[float, float] | None) -> Tensor:
    """[N, …] as they are trained on; `pixels` are mean and deviation of unsigned bytes."""
    if pixels is not None:
        return scaled(inputs, *pixels)
    if symbols:
        return torch.from_numpy(inputs.astype(np.uint8 if inputs.dtype == np.uint8 else np.int64, copy=False))
    return torch.from_numpy(inputs.astype(np.float32, copy=False))


def kind(array: Array) -> str:
    """Dtype and shape, as people write them."""
    return f"{array.dtype} {list(array.shape)}"
