"""A folder of numpy's own files, mapped into memory: the components of one machine share one copy of what they read.

    train_inputs.npy  train_labels.npy  test_inputs.npy  test_labels.npy

What may be in them, and what is used without a copy: see `arrays.py`. Nothing is unpickled.
"""

from pathlib import Path

import numpy as np

from configs.errors import DataError
from configs.tree import Data
from mach.data.arrays import Array, Part, dataset_of
from mach.data.dataset import Dataset

NAMES = "train_inputs.npy, train_labels.npy, test_inputs.npy and test_labels.npy"


def npy(data: Data) -> Dataset:
    """The samples in the folder `data.path`; with `data.symbols`, symbols.

    Raises:
        DataError: a file that is missing, damaged, or holds what cannot be trained on.
    """
    if data.path is None:
        raise DataError(f"data.source npy: name the folder of {NAMES} with --set data.path=DIR")
    folder = Path(data.path).expanduser()
    train, test = (part_of(folder, name) for name in ("train", "test"))
    return dataset_of(train, test, data.symbols)


def part_of(folder: Path, name: str) -> Part:
    """The two files of one part."""
    inputs, labels = folder / f"{name}_inputs.npy", folder / f"{name}_labels.npy"
    return Part(str(inputs), mapped(inputs), str(labels), mapped(labels))


def mapped(file: Path) -> Array:
    """The array in a file, read when it is looked at; what is written to it stays in this process."""
    try:
        array: Array = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"data.source npy: {file} cannot be read ({error}); the folder needs {NAMES}") from error
    return array
