"""Text as a language model over its bytes: what is the next byte? 256 symbols, no vocabulary, no download.

`data.path` names a text file, or a directory whose files, all below it, are read in the order of their names. Without
it the text is the source code of Python's own library, which every machine that runs this has: CORPUS bytes of it. Its
files come in the order of a hash of their names, so that the end is of the same kind as the beginning. Another version
of Python has another text: compare figures of one machine.

The text is cut into windows of `data.length` bytes, one behind the other; the last `data.test_share` of it tests.
Shapes: N windows, T bytes of one.
"""

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from configs.errors import DataError
from configs.tree import Data
from mach.data.dataset import Dataset

SYMBOLS = 256
CORPUS = 4 << 20
"""Bytes taken of Python's library."""
FOREIGN = re.compile(r"site-packages|dist-packages|__pycache__|config-.*|.*test.*|idlelib|tkinter|turtledemo|ensurepip")
"""Directories of the library that are not on every machine, or are no program text like the rest."""


def text(data: Data) -> Dataset:
    """Inputs [N, T] uint8; labels [N, T] int64, the byte that follows each.

    Raises:
        DataError: files that cannot be read, or a text too short for a window to train and one to test on.
    """
    where, content = corpus(data.path)
    test = round(len(content) * data.test_share)
    parts = [windows(part, data.length) for part in (content[: len(content) - test], content[len(content) - test :])]
    (train_x, train_y), (test_x, test_y) = parts
    if not len(train_x) or not len(test_x):
        raise DataError(
            f"data.source bytes: {where} holds {len(content)} bytes, too few for windows of {data.length} to train and "
            f"to test on; give a longer text, or a smaller data.length"
        )
    train, tested = spread(len(train_x), data.train_samples), spread(len(test_x), data.test_samples)
    return Dataset(train_x[train], train_y[train], test_x[tested], test_y[tested], classes=SYMBOLS, symbols=SYMBOLS)


def corpus(path: str | None) -> tuple[str, bytes]:
    """What the text is called, and the text."""
    if path is None:
        library = Path(sysconfig.get_path("stdlib"))
        return str(library), read(shuffled(library), CORPUS)
    place = Path(path).expanduser()
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    return str(place), read(files)


def shuffled(library: Path) -> list[Path]:
    """The library's own source files, in an order that mixes its packages and is the same everywhere."""
    files: list[Path] = []
    for folder, below, names in os.walk(library):
        below[:] = [name for name in below if not FOREIGN.fullmatch(name)]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda file: hashlib.sha256(file.relative_to(library).as_posix().encode()).digest())


def read(files: Iterable[Path], most: int | None = None) -> bytes:
    """The files one behind the other, and no more than `most` bytes."""
    content = bytearray()
    for file in files:
        try:
            content += file.read_bytes()
        except OSError as error:
            raise DataError(
                f"data.source bytes: {file} cannot be read ({error.strerror or error}); "
                "name a text file or a directory of such with --set data.path=PATH"
            ) from error
        if most is not None and len(content) >= most:
            break
    return bytes(content[:most])


def windows(content: bytes, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, T] bytes, and [N, T] the byte behind each."""
    symbols = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    count = max(0, (len(symbols) - 1) // length)
    x = symbols[: count * length].view(count, length)
    y = symbols[1 : count * length + 1].view(count, length)
    return x, y.to(torch.int64)


def spread(there: int, wanted: int | None) -> torch.Tensor:
    """Which windows are taken: all, or as many as wanted, from all over the text."""
    return torch.arange(there) if wanted is None or wanted >= there else torch.arange(wanted) * there // wanted
