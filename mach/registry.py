"""One way to name a part in a configuration: a built-in name, or `package.module:factory` of the user's own."""

import difflib
import importlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from configs.errors import ConfigError, MachError


def find(key: str, name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The factory called `name`, which the configuration gives under `key`.

    Raises:
        ConfigError: a name that is not known, or a module or factory that cannot be imported.
    """
    if ":" not in name:
        if name in known:
            return known[name]
        names = ", ".join(known)
        raise ConfigError(f"{key}: {name!r} is none of {names} or package.module:factory{nearest(name, known)}")
    module_name, _, factory_name = name.partition(":")
    if not (module_name and factory_name):
        missing = "function behind" if module_name else "module before"
        raise ConfigError(f"{key}: {name!r} names no {missing} the colon; give package.module:factory")
    try:
        module = importlib.import_module(module_name)
        if not hasattr(module, factory_name):
            place, near = getattr(module, "__file__", None) or "no file", nearest(factory_name, vars(module))
            raise ConfigError(f"{key}: {name!r}: module {module_name} ({place}) has no {factory_name!r}{near}")
        factory = getattr(module, factory_name)
    except MachError:
        raise
    except (Exception, SystemExit) as error:  # it may be a script that reads a command line
        if isinstance(error, ImportError | ValueError) and not frames_of(error):
            raise ConfigError(f"{key}: {name!r} cannot be imported ({error}); is the module on PYTHONPATH?") from error
        raise ConfigError(f"{key}: {name!r} cannot be imported: {told(error)}") from error
    if not callable(factory):
        raise ConfigError(f"{key}: {name!r} is a {type(factory).__name__}, not a function that makes the part")
    made: Callable[..., Any] = factory
    return made


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of the known names may be meant, for the end of a sentence; nothing if none is like it."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def made_by(key: str, name: str, known: Mapping[str, Callable[..., Any]], given: object) -> Any:
    """What the factory called `name` makes of what it is given.

    Raises:
        ConfigError: as `find`; or what a factory of the user's own raised, and where.
    """
    factory = find(key, name, known)
    try:
        return factory(given)
    except MachError:
        raise
    except (Exception, SystemExit) as error:
        if ":" not in name:
            raise  # a mistake of ours
        raise ConfigError(f"{key}: {name!r} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """What was raised, and where in the file of the user's that we called, however deep below it."""
    what, frames = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":"), frames_of(error)
    if not frames:
        return what  # a file that is no Python says itself where
    where = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    return f"{what} ({where.filename}, line {where.lineno}, in {where.name})"


def frames_of(error: BaseException) -> list[traceback.FrameSummary]:
    """Where it was raised, below us and Python's own way of importing."""
    return [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in frame.filename]
