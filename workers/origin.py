"""Where a run comes from: the folder that its command was given in, and the versions of what trains it.

Written into `plan.json` by every launch and resume. Knows no process; imports nothing of what it names.
"""

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

import msgspec

from configs.errors import ConfigError
from configs.tree import Data
from workers.plan import Plan

PACKAGES = {"mach": "mach-train", "torch": "torch", "numpy": "numpy", "pyzmq": "pyzmq"}
"""By the name under which its version is written down: what it is called where it is installed."""
FILES = ("idx", "npy", "bytes")
"""Sources whose `data.path` can only be a file or a folder: others may have names there."""


def marked(plan: Plan) -> Plan:
    """The plan with both."""
    return msgspec.structs.replace(plan, folder=here(), versions=versions())


def here() -> str:
    """The folder that relative paths start from; empty where it was removed."""
    with suppress(OSError):
        return os.getcwd()
    return ""


def versions() -> dict[str, str]:
    """Of all that matters for what a run comes to, as they are installed here."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def check_path(data: Data, folder: str) -> None:
    """Refuse, for a run whose command was last given in `folder`, a relative `data.path` that is not here.

    Raises:
        ConfigError: so it is; with the place where it lies, if that is known.
    """
    path = None if data.path is None else Path(data.path).expanduser()
    if path is None or path.is_absolute() or path.exists():
        return
    there = bool(folder) and (Path(folder) / path).exists()
    if data.source not in FILES and not there:
        return  # the name of a data set, or what a source of the user's own makes of it
    place = f"{folder}, where it lies" if there else "the folder that it lies in"
    raise ConfigError(
        f"data.path: {data.path!r} is relative to the folder that commands are given in, and there is none in "
        f"{here()}; go to {place}, or say --set data.path={Path(folder) / path if there else 'PATH'}"
    )
