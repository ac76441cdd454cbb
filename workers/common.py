"""What data each component of a run has loaded, and whether they are the same for all. Knows no source.

Each says in its log what it has. The first one of a launch to begin writes down the digest of its own, beside the
sockets, and the others compare. What is written down on one machine another one cannot read: so between machines every
message tells by its run id.
"""

import contextlib
import os
from hashlib import blake2b
from pathlib import Path

from configs.errors import DataError
from mach.data import Dataset, account
from workers.keeper import say
from workers.plan import Plan

FILE = "data.digest"


def wire_id(plan: Plan, dataset: Dataset) -> str:
    """The run id that messages carry: over several machines with the data in it, so that components which have loaded
    other data are of other runs to each other.
    """
    if plan.site is None:
        return plan.run_id
    return blake2b(f"{plan.run_id} {dataset.digest()}".encode(), digest_size=8).hexdigest()


def check_common(directory: Path, name: str, dataset: Dataset) -> None:
    """Say in the log of component `name` what data it has, and compare them with those of the component that was first
    in this directory.

    Raises:
        DataError: they are others.
    """
    for each in account(dataset):
        say(name, 0, each)
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
