"""The rows of a comparison, from the words of the command line: by row and seed a configuration, and what those have in
common that no recipe says. Knows no run.

A row is a recipe, over the command's --config, or a file of its own, by whose name it goes. Laws: a row differs from
the others in its method alone, else they could not be compared; what is set for all rows is told.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from configs.errors import ConfigError
from configs.load import find, parse_setting, read
from configs.tree import Config
from mach.recipes import RECIPES
from workers.resume import flat
from workers.tally import Found
from workers.words import configured

CONTROL_RECIPES = {"skip": "mach", "stream": "backprop"}
"""Whose settings the controls of a wiring have; x comes along in them if it does in any row beside them."""
ALIKE = ("data", "model", "train", "optimiser", "evaluate", "seed", "n_components")
"""What rows have to agree in."""
METHODS = ("method", "staleness", "loss")
"""What tells methods apart: set for all rows, it makes other methods of them."""
CHAINS = ("chain", "ring")
"""Graphs in whose place a file's own row has a chain, as recipes have: what configurations usually say."""
Configured = Callable[[str, int], Config]
"""The configuration of a recipe, and the number of a seed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is to be compared."""

    title: str
    """The configuration that they have in common, as it was named."""
    configs: Mapping[str, Sequence[Config]]
    """By row, one a seed."""
    base: Mapping[str, Sequence[Config]]
    """By wiring, one a seed: of its controls."""
    shared: Mapping[str, str]
    """Keys that tell methods apart and hold for all rows, and who sets them: a file, or `--set`."""

    @property
    def first(self) -> Config:
        """Of the first row."""
        return next(iter(self.configs.values()))[0]

    def every(self) -> list[Config]:
        """All there are."""
        return [config for each in (*self.configs.values(), *self.base.values()) for config in each]


def is_file(row: str) -> bool:
    """Whether a row names a file, not a recipe."""
    return row.endswith((".yaml", ".yml")) or os.sep in row


def rows_of(names: Sequence[str], words: Mapping[str, Any], seeds: int) -> Rows:
    """Recipes and files, with as many seeds each; `words` are the arguments of `configured`.

    Raises:
        ConfigError: two rows of one name, a row that could not be compared with the others, and as `configured`.
    """
    settings: tuple[str, ...] = words["settings"]
    for text in settings:
        if text.partition("=")[0].strip() == "recipe":
            raise ConfigError(f"--set {text}: recipes that are compared stand before the options; leave it out")
    start = configured(**words).seed

    def common(recipe: str, seed: int) -> Config:
        over = {"settings": (f"recipe={recipe}", "graph=chain", *settings), "seed": start + seed}
        return configured(**{**words, **over})

    configs: dict[str, list[Config]] = {}
    for name in names:
        row = named(name)
        if row in configs:
            raise ConfigError(
                f"{name}: another row is called {row!r}; give every row once, each file a name of its own"
            )
        of = partial(own, name, words, common("backprop", 0)) if is_file(name) else partial(common, name)
        configs[row] = [of(seed) for seed in range(seeds)]
    wirings: dict[str, None] = dict.fromkeys(each[0].wiring for each in configs.values())
    base = {wiring: [control_of(common, wiring, configs, seed) for seed in range(seeds)] for wiring in wirings}
    recipes = {name for name in names if not is_file(name)} | {CONTROL_RECIPES[wiring] for wiring in wirings}
    return Rows(words["config_name"], configs, base, shared(words["config_name"], settings, recipes))


def named(name: str) -> str:
    """What a row is called."""
    if not is_file(name):
        return name
    row = Path(name).stem
    if row in Found.__struct_fields__ or not row.isprintable() or row.startswith((".", "-")):
        raise ConfigError(f"{name}: a row is called as its file, and none can be called {row!r}; rename the file")
    return row


def own(file: str, words: Mapping[str, Any], other: Config, seed: int) -> Config:
    """A row of its own: its file, with the settings of all over it.

    Raises:
        ConfigError: it could not be compared with the `other` ones.
    """
    graph = read(find(file)).get("graph", "chain")
    settings = ("graph=chain", *words["settings"])
    if graph not in CHAINS and not any(text.partition("=")[0].strip() == "graph" for text in settings[1:]):
        raise ConfigError(f"{file}: graph is {graph}, and all rows are compared on one, a chain; --set graph=… for all")
    config = configured(**{**words, "config_name": file, "settings": settings})
    theirs = dict(alike(other))
    for key, ours in alike(config):
        if ours != theirs[key]:
            raise ConfigError(
                f"{file}: {key} is {plain(ours)}, but {plain(theirs[key])} in the other rows ({words['config_name']}): "
                "rows differ in their method alone; write the same in both files, or --set it for all"
            )
    return structs.replace(config, seed=config.seed + seed)


def alike(config: Config) -> Iterator[tuple[str, Any]]:
    """Whatever rows have to agree in, by its dotted key."""
    tree = msgspec.to_builtins(config)
    return flat({root: tree[root] for root in ALIKE})


def plain(value: Any) -> str:
    """A value as YAML has it."""
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)


def shared(config_name: str, settings: Iterable[str], recipes: Collection[str]) -> dict[str, str]:
    """What rows have that no recipe of theirs says: keys that tell methods apart, and who sets them. Of a file those
    that change anything, in a row whose recipe does not set them itself.
    """
    usual = dict(flat(msgspec.to_builtins(Config())))
    theirs = [dict(methods(RECIPES[name])) for name in recipes]
    found = {
        key: config_name
        for key, value in methods(read(find(config_name)))
        if plain(value) != plain(usual.get(key)) and any(key not in each for each in theirs)
    }
    return found | {key: "--set" for text in settings for key, _ in methods(parse_setting(text))}


def methods(layer: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a layer says of that which tells methods apart."""
    return list(flat({key: value for key, value in layer.items() if key in METHODS}))


def control_of(common: Configured, wiring: str, rows: Mapping[str, Sequence[Config]], seed: int) -> Config:
    """What the controls of a wiring are made of: a row that gets x again has an opponent that gets it, too."""
    config = common(CONTROL_RECIPES[wiring], seed)
    beside = [each for configs in rows.values() for each in configs if each.wiring == wiring]
    context = config.method.context or any(each.method.context for each in beside)
    return structs.replace(config, method=structs.replace(config.method, context=context))
