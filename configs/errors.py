"""Errors a user can meet, as one tree. Every text says: what happened · where · what to do next.

    MachError
    ├── ConfigError   a key, value, device or command line that cannot be run      exit 2
    ├── DataError     a data file that is missing or not what it should be         exit 2
    │   └── Diverged  a state whose numbers are ruined: not finite, or far too large  exit 2
    ├── RunError      a run that is missing (exit 3), busy (exit 2) or broken
    └── Unsaved       a component has done its steps, and the disk takes the outcome not      exit 4 of its process

They live on the ground floor so that every floor can raise them and only the top one (`cli`) prints them.
"""


class MachError(Exception):
    """Base of everything MACH raises for a user to read; `exit_code` is what the command ends with."""

    exit_code = 2


class ConfigError(MachError):
    """A configuration that cannot be run."""


class DataError(MachError):
    """Training data that is missing or malformed."""


class Diverged(DataError):
    """Weights, or what belongs to them, that are not finite or far too large."""


class RunError(MachError):
    """A run directory that is busy or cannot be used."""


class NoSuchRun(RunError):
    """No run of that name, or no run at all."""

    exit_code = 3


class Unsaved(MachError):
    """A component that has ended and could not write down what it has learnt; another life of it could not either."""

    exit_code = 4
