"""scikit-learn's handwritten digits: 1,797 scans of 8×8 pixels, shipped inside that package, no download.

Read straight from the package's file: importing scikit-learn takes six times as long and gives the same arrays.
Source of the data: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from configs.errors import DataError
from configs.tree import Data
from mach.data.dataset import Dataset

MIDDLE = 8.0
"""Half of the largest pixel value, 16: inputs lie in −1 … 1."""


def digits(data: Data) -> Dataset:
    """Inputs [N, 64] in −1 … 1, ten classes; `test_share` of the samples held out by `split_seed`.

    Raises:
        DataError: scikit-learn, or its file, is not there.
    """
    table = read_table(digits_file())
    order = np.random.default_rng(data.split_seed).permutation(len(table))
    inputs = torch.from_numpy(table[order, :-1].astype(np.float32) / MIDDLE - 1.0)
    labels = torch.from_numpy(table[order, -1].astype(np.int64))
    held_out = round(len(table) * data.test_share)
    return Dataset(inputs[held_out:], labels[held_out:], inputs[:held_out], labels[:held_out], classes=10)


def digits_file() -> Path:
    """Where scikit-learn keeps the scans."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("data.source digits: scikit-learn is not installed; pip install scikit-learn")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def read_table(path: Path) -> np.ndarray:
    """[N, 65]: 64 pixel values and the digit."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"data.source digits: {path} cannot be read ({error}); reinstall scikit-learn") from error
    return table
