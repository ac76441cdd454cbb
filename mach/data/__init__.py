"""Sources of samples: one a file. A factory makes a `Dataset`; users' own join by `package.module:factory`.

factory(data: configs.tree.Data) -> Dataset
"""

from collections.abc import Callable, Mapping

from configs.errors import ConfigError
from configs.tree import Data
from mach.data import digits, hf, idx, mnist1d, npy, text
from mach.data.account import account
from mach.data.batches import Batches
from mach.data.check import check
from mach.data.dataset import Dataset
from mach.draws import aside
from mach.registry import made_by

SOURCES: Mapping[str, Callable[[Data], Dataset]] = {
    "digits": digits.digits,
    "mnist1d": mnist1d.mnist1d,
    "bytes": text.text,
    "idx": idx.idx,
    "npy": npy.npy,
    "hf": hf.hf,
}
"""`data.source`."""

__all__ = ["SOURCES", "Batches", "Dataset", "account", "load"]


def load(data: Data) -> Dataset:
    """The data set that `data` describes. What a source draws of torch's, numpy's or Python's generator goes by
    `data.split_seed`, and so is the same in all processes and lives of a run.

    Raises:
        ConfigError: an unknown source, or one of the user's own that raised.
        DataError: files that are missing or malformed, or samples that nothing can be trained on.
    """
    with aside(data.split_seed):
        dataset = made_by("data.source", data.source, SOURCES, data)
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"data.source: {data.source!r} made a {type(dataset).__name__}, not a mach Dataset")
    check(dataset, data.source)
    return dataset
