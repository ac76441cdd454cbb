"""Whether all components of a launch have the same data, each having loaded them itself. Knows no source.

The first one to begin writes down the digest of its own, beside the sockets, and the others compare.
"""

import contextlib
import os
from pathlib import Path

from configs.errors import DataError
from mach.data import Dataset

FILE = "data.digest"


def check_common(directory: Path, name: str, dataset: Dataset) -> None:
    """Compare the data of component `name` with those of the component that was first in this directory.

    Raises:
        DataError: they are others.
    """
    ours = dataset.digest()
    draft = directory / f"{FILE}.{name}"
    draft.write_text(f"{name} {ours}", encoding="ascii")
    with contextlib.suppress(FileExistsError):
        os.link(draft, directory / FILE)  # whole, and by one alone
    draft.unlink()
    first, theirs = (directory / FILE).read_text(encoding="ascii").split()
    if theirs != ours:
        raise DataError(
            f"data.source: {name} has loaded other data than {first}, so that one would be tested on what another is "
            "trained on: let the source draw from torch's, numpy's or Python's own generators, which data.split_seed "
            "seeds, or seed the one that it makes; and sort what it lists"
        )
