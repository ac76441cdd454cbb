"""A data set that Hugging Face's `datasets` can read: a parquet, CSV or JSON file, a local folder, a name on their hub.

An optional extra: pip install 'mach-train[hf]'. Columns are `data.input_column` and `data.label_column`; numbers, lists
of numbers of one length and pictures of one size make samples (see `arrays.py`). The part to test on is the data set's
`test`, else its `validation`, else `data.test_share` of `train`, drawn by `data.split_seed`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from configs.tree import Data
from mach.data.arrays import Array, Part, dataset_of
from mach.data.dataset import Dataset

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
"""How `datasets` calls the reader of a file, by the file's ending."""


def hf(data: Data) -> Dataset:
    """The samples of `data.path`; with `data.symbols`, symbols.

    Raises:
        DataError: the extra is not installed; nothing there can be read, or holds what cannot be trained on.
    """
    if data.path is None:
        raise DataError("data.source hf: name a file, a folder or a data set with --set data.path=PATH")
    parts = loaded(data.path)
    if "train" not in parts:
        raise DataError(f"data.source hf: {data.path} has the parts {', '.join(parts)}; one must be called train")
    tested = next((name for name in ("test", "validation") if name in parts), None)
    if tested is None:
        parts = parts["train"].train_test_split(data.test_share, seed=data.split_seed)
    return dataset_of(part_of(data, parts, "train"), part_of(data, parts, tested or "test"), data.symbols)


def loaded(path: str) -> Any:
    """All parts, by name."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("data.source hf: `datasets` is not installed; pip install 'mach-train[hf]'") from error
    file = Path(path).expanduser()
    try:
        if file.suffix in READERS and file.is_file():
            return datasets.load_dataset(READERS[file.suffix], data_files=str(file))
        return datasets.load_dataset(str(file) if file.exists() else path)
    except Exception as error:  # its errors are of many libraries, and all mean this
        told = " ".join(str(error).split())
        raise DataError(f"data.source hf: {path} cannot be read ({told}); check the path and what is in it") from error


def part_of(data: Data, parts: Any, name: str) -> Part:
    """Two columns of one part."""
    columns = parts[name].column_names
    for key, column in (("input_column", data.input_column), ("label_column", data.label_column)):
        if column not in columns:
            raise DataError(
                f"data.source hf: {data.path} has no column {column!r} in {name}; it has {', '.join(columns)}: choose "
                f"one with --set data.{key}=NAME"
            )
    numbers = parts[name].with_format("numpy")
    inputs, labels = (
        stacked(numbers[column][:], f"{data.path}, {column} of {name}")
        for column in (data.input_column, data.label_column)
    )
    return Part(
        f"{data.path}, {data.input_column} of {name}",
        inputs[:, None] if inputs.ndim == 1 else inputs,
        f"{data.path}, {data.label_column} of {name}",
        labels,
    )


def stacked(column: Any, name: str) -> Array:
    """A column as one array of numbers."""
    array = np.asarray(column)
    if array.dtype == np.object_ or not np.issubdtype(array.dtype, np.number):
        raise DataError(f"data.source hf: {name} holds no numbers, or lists of different lengths; prepare them first")
    return array.copy() if not array.flags.writeable else array
