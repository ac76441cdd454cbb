"""One way to name a part in a configuration: a built-in name, or `package.module:factory` of the user's own."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from configs.errors import ConfigError


def find(key: str, name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The factory called `name`, which the configuration gives under `key`.

    Raises:
        ConfigError: a name that is not known, or a module or factory that cannot be imported.
    """
    if ":" not in name:
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key}: {name!r} is none of {', '.join(known)} or package.module:factory{hint}")
    module_name, _, factory_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: {name!r} cannot be imported ({error}); is the module on PYTHONPATH?") from error
    if not callable(factory):
        raise ConfigError(f"{key}: {name!r} is a {type(factory).__name__}, not a function that makes the part")
    made: Callable[..., Any] = factory
    return made
