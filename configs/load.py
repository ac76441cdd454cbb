"""YAML and `--set key=value` into a validated `Config`. Imports nothing of ours but the tree.

Later layers win: the tree's defaults, the file, then `--set` in the order given. The recipe that the file names lies
under the file; one that `--set` names, the last of several, over the file and under every `--set`, whatever their
order. Every error names the key, where it stands (file or `--set`) and, for an unknown key, the nearest valid one.
"""

import difflib
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import yaml

from configs.errors import ConfigError, DataError
from configs.tree import ComponentOverride, Config, Node

HERE = Path(__file__).parent
KINDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "keys with values",
    "str": "text",
}
"""What msgspec's names of types are called here."""
ADDRESS = re.compile(r"::|\[[0-9a-fA-F:.]*::[0-9a-fA-F:.]*\]")
"""What YAML does not take for the text that it is: `bus.host` refuses it in better words."""
TOO_DEEP = "is no valid YAML: nested deeper than any configuration; look for brackets that nothing closes"
Layer = dict[str, Any]
Recipes = Mapping[str, Mapping[str, Any]]


class Twice(yaml.MarkedYAMLError):
    """A key that stands in one mapping twice."""


class Loader(yaml.SafeLoader):
    """Plain YAML, no objects; but 1e-3 is a number, which YAML 1.1 reads as a string, and no key is said twice."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """As it is written: what is merged into it later (<<) may be said again."""
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (first := seen.get((key.tag, key.value))) is not None:
                raise Twice(
                    None, None, f"the key {key.value!r} is there twice, first in line {first + 1}", key.start_mark
                )
            seen[key.tag, key.value] = key.start_mark.line
        return node


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class Plain(Loader):
    """The same without aliases, of which a few lines make a tree that is too large for any machine."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node of the text."""
        if self.check_event(yaml.AliasEvent):
            raise Aliased
        return super().compose_node(parent, index)


class Aliased(Exception):
    """A text in which an alias stands."""


LONGEST = 1 << 18
"""Characters of a configuration that is read out of a file of weights, or of a pipe, at most."""
_drained: dict[tuple[int, int], str] = {}
"""By device and inode, what came out of pipes."""


def shipped() -> list[str]:
    """Names of the configurations that come with MACH."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load(config: str = "digits", settings: Iterable[str] = (), recipes: Recipes | None = None) -> Config:
    """Read, overlay and validate.

    Args:
        config: a file, or the name of a shipped configuration (`digits`).
        settings: `key.sub=value` strings; the value is read as YAML.
        recipes: name → defaults of that recipe; None skips the layer and the check of the name.

    Raises:
        ConfigError: a file that is missing or no YAML, an unknown key, a value of the wrong type or range.
    """
    path = find(config)
    layers: list[tuple[str, Layer]] = [(str(path), read(path))]
    layers += [("--set " + text, parse_setting(text)) for text in settings]
    for where, layer in layers:
        check_keys(layer, where)
    layers[0] = (str(path), fitting(layers[0][1], reduce(merge, (layer for _, layer in layers[1:]), {})))
    if recipes is not None:
        at, named = recipe_layer([layer for _, layer in layers], recipes)
        layers.insert(at, named)
    merged: Layer = {}
    for where, layer in layers:
        merged = merge(merged, layer)
        convert(merged, where)
    return convert(merged, str(path))


def find(config: str) -> Path:
    """The file of a configuration, given by path or by shipped name; `-` is standard input.

    Raises:
        ConfigError: there is none; says what there is in its place.
    """
    path = Path("/dev/stdin" if config == "-" else config)
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        kind = 0
    except OSError as error:
        raise ConfigError(f"{path}: cannot be found ({error.strerror}); check the path, and who may read it") from error
    named = HERE / f"{config}.yaml"
    if named.is_file() and not stat.S_ISREG(kind):
        return named
    if stat.S_ISDIR(kind):
        raise ConfigError(f"{path}: is a directory; give a configuration in it, or one of {', '.join(shipped())}")
    if kind:
        return path  # or a pipe
    near = difflib.get_close_matches(config, shipped(), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"no configuration {config!r}: neither a file nor one of {', '.join(shipped())}{hint}")


def find_again(config: str) -> str:
    """A path at which another process finds what this one does.

    Raises:
        ConfigError: there is none; or it is a pipe, which one reads, once.
    """
    path = find(config)
    if not path.is_file():
        raise ConfigError(f"{path}: a run in the background would read it a second time; write it into a file")
    return str(path.resolve())  # of standard input, too


def read(path: Path) -> Layer:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else drain(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check the file and its permissions") from error
    return parse(text, str(path))


def drain(path: Path) -> str:
    """What comes out of a pipe: once, so it is kept for who asks again, as a comparison does."""
    found = path.stat()
    key = found.st_dev, found.st_ino
    if key not in _drained:
        with path.open(encoding="utf-8") as pipe:
            text = pipe.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise ConfigError(f"{path}: is no configuration: more than {LONGEST} characters come out of it")
        _drained[key] = text
    return _drained[key]


def parse(text: str, where: str, loader: type[Loader] = Loader) -> Layer:
    """The mapping that a YAML text is; an empty one is an empty mapping."""
    try:
        content = yaml.load(text, loader)
    except (yaml.YAMLError, ValueError) as error:  # no such date, too many digits
        raise ConfigError(f"{where}{_trouble(error, text)}") from error
    except RecursionError:
        raise ConfigError(f"{where}: {TOO_DEEP}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: holds a {type(content).__name__} where a mapping of keys is needed")
    return content


def parse_setting(text: str) -> Layer:
    """`a.b=value` as a nested mapping; digits in a key are numbers, as in `components.1.stub`."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: is not of the form key=value, for example --set optimiser.lr=0.001")
    try:
        leaf: Any = value if ADDRESS.fullmatch(value) else yaml.load(value, Loader)
    except Twice as error:
        raise ConfigError(f"--set {text}: {error.problem}; say it once") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {text}: {value!r} is no valid YAML value; quote it") from error
    except RecursionError:
        raise ConfigError(f"--set {key}: {TOO_DEEP}") from None
    if isinstance(leaf, dict) and value.rstrip().endswith(":"):
        raise ConfigError(f"--set {text}: nothing follows the colon; write package.module:factory, or KEY: VALUE")
    for part in reversed(parts):
        leaf = {int(part) if part.isdecimal() else part: leaf}
    layer: Layer = leaf
    return layer


def fitting(file: Layer, said: Layer) -> Layer:
    """A file's keys; where `said`, all of `--set`, names another source, without the noise of its own samples."""
    own, other = file.get("data"), said.get("data")
    if not isinstance(own, dict) or not isinstance(other, dict):
        return file
    source = own.get("source", Config().data.source)
    if other.get("source", source) == source:
        return file
    return file | {"data": {key: value for key, value in own.items() if key != "noise"}}


def recipe_layer(layers: list[Layer], recipes: Recipes) -> tuple[int, tuple[str, Layer]]:
    """The settings of the recipe that the layers name, the file and then `--set`, and the place where they belong."""
    naming = [place for place, layer in enumerate(layers) if "recipe" in layer]
    name = str(layers[naming[-1]]["recipe"]) if naming else Config().recipe
    return int(any(naming)), (f"recipe {name}", recipe(name, recipes))


def recipe(name: str, recipes: Recipes) -> Layer:
    """The settings of a recipe; a ConfigError with the nearest name where there is none."""
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"recipe: {name!r} is none of {', '.join(recipes)}{hint}")
    return dict(recipes[name])


def merge(below: Layer, above: Layer) -> Layer:
    """`above` over `below`; mappings are merged key by key, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        merged[key] = merge(lower, value) if isinstance(lower, dict) and isinstance(value, dict) else value
    return merged


def check_keys(layer: Layer, where: str) -> None:
    """Raise a ConfigError for the first key of `layer` that the tree does not have."""
    for path, node, key in _walk(layer, Config, ()):
        known = node.__struct_fields__
        if key not in known:
            dotted = ".".join((*path, str(key)))
            near = _nearest(str(key), known, path)
            raise ConfigError(f"{where}: unknown key {dotted!r}{near}")


def convert(merged: Layer, where: str) -> Config:
    """The typed tree; a value of the wrong type or range is a ConfigError that names its key."""
    for key, value in _leaves(merged):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {key}: expected a finite number, got {value}")
    try:
        return msgspec.convert(merged, Config)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at ")
        if at.startswith("`key`"):
            name = next(name for name in merged["components"] if not isinstance(name, int) or isinstance(name, bool))
            raise ConfigError(
                f"{where}: components.{name}: expected the number of a component, got {name!r}"
            ) from error
        key = at.strip("`").removeprefix("key` in `").removeprefix("$").removeprefix(".") or "the file"
        key = _numbered(key, merged)
        value = dict(_leaves(merged)).get(key)
        if text.startswith("Expected `float") and str(value).lower().lstrip("+-") in ("nan", "inf", "infinity"):
            raise ConfigError(f"{where}: {key}: expected a finite number, got {value}") from error
        choices = _choices(key) if text.startswith(("Invalid enum value", "Expected `str")) else ()
        known = f"; valid: {', '.join(choices)}" if choices else ""
        if text.endswith("got `object`"):
            known = "; text with a colon in it stands in quotes"
        elif text.startswith("Expected `array`,") and value is not None:
            known = f"; write [{value}]"
        raise ConfigError(f"{where}: {key}: {_plainly(text, value)}{known}") from error


def dump(config: Config) -> str:
    """The resolved tree as YAML, every key written out."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)


def undump(text: str, where: str) -> Config:
    """The tree that `dump` wrote down; or a stranger, so that what it costs to read is bounded.

    Raises:
        ConfigError: as `load`; names `where` it stands.
        DataError: `dump` writes nothing like it: it is far too long, or has aliases.
    """
    odd = f"{where}: is none that mach wrote down, with {{}}; use a file as a run of mach left it"
    if len(text) > LONGEST:
        raise DataError(odd.format(f"{len(text)} characters, where {LONGEST} are the most"))
    try:
        layer = parse(text, where, Plain)
    except Aliased:
        raise DataError(odd.format("aliases in it")) from None
    check_keys(layer, where)
    return convert(layer, where)


def _walk(layer: Layer, node: type[Node], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], type[Node], Any]]:
    """Every (path, node of the tree, key) that a layer names."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(node)}
    for key, value in layer.items():
        yield path, node, key
        if key not in kinds or not isinstance(value, dict):
            continue
        if get_origin(kinds[key]) is dict:  # components: number → node
            inner = get_args(kinds[key])[1]
            for name, entry in value.items():
                if isinstance(entry, dict):
                    yield from _walk(entry, inner, (*path, str(key), str(name)))
        elif (struct := _node_in(kinds[key])) is not None:
            yield from _walk(value, struct, (*path, str(key)))


def _leaves(layer: Layer, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key."""
    for key, value in layer.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _numbered(key: str, merged: Layer) -> str:
    """`components[...].stub.drop` with the number of the first component that is wrong."""
    if not key.startswith("components[...]"):
        return key
    for number, override in merged["components"].items():
        try:
            msgspec.convert(override, ComponentOverride)
        except msgspec.ValidationError:
            return key.replace("[...]", f".{number}", 1)
    return key


def _plainly(text: str, value: Any) -> str:
    """Msgspec's words in ours, with the `value` that it got, where there is one alone."""
    if value is not None:
        text = re.sub(r"got `.*`$", lambda _: f"got {value!r}", text)
    text = re.sub(r"`(.*?)`", lambda kinds: " or ".join(KINDS.get(kind, kind) for kind in kinds[1].split(" | ")), text)
    return text[0].lower() + text[1:]


def _choices(key: str) -> tuple[str, ...]:
    """The words that a key takes, `a.b`, or the list that it is; () where it takes others than words."""
    kind: Any = Config
    for name in re.sub(r"\[\d+\]$", "", key).split("."):
        node = _node_in(kind)
        kind = {field.name: field.type for field in msgspec.structs.fields(node)}.get(name) if node else None
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    words = [word for option in get_args(kind) if get_origin(option) is Literal for word in get_args(option)]
    return (*map(str, words), "or a list") if words else ()


def _node_in(kind: Any) -> type[Node] | None:
    """The tree node that a type annotation allows, if any: `Loss`, `Stub | None`."""
    options = get_args(kind) if get_origin(kind) in (Union, type(int | None)) else (kind,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, Node)), None)


def _trouble(error: Exception, text: str) -> str:
    """Where a YAML text goes wrong, and what stands there."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        hint = "save it as plain text" if isinstance(error, yaml.YAMLError) else "correct that value"
        return f": is no valid YAML: {getattr(error, 'reason', None) or error}; {hint}"
    at, began = error.problem_mark, error.context_mark
    since = f" {error.context} that begins in line {began.line + 1}," if began and began.line < at.line else ""
    line = text.splitlines()[min(at.line, text.rstrip().count("\n"))].rstrip()
    where = f", line {at.line + 1}, column {at.column + 1}"
    return f"{where}: is no valid YAML:{since} {error.problem}; found {line!r}"


def _nearest(name: str, known: Iterable[str], path: tuple[str, ...] = ()) -> str:
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.4)
    if near:
        return f"; did you mean {'.'.join((*path, near[0]))!r}?"
    return f"; valid here: {', '.join(known)}"
