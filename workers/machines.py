"""What makes a run over several machines one: an identity that its launches come to by themselves.

Knows no plan and no process.
"""

import time
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bus import hosts, keys
from configs.tree import Bus, Config

FIXED = (
    *("recipe", "wiring", "graph", "n_components", "seed", "model"),
    *("data.source", "data.split_seed", "data.test_share", "data.train_samples", "data.test_samples", "data.symbols"),
    *("data.length", "method.targets", "method.guess", "method.context", "method.momentum_head", "method.reach"),
)
"""Keys whose change would make another run: other networks, or other samples to learn from and be examined on."""
AGREED = (
    *(*FIXED, "bus.hosts", "bus.port", "components"),
    *("train.batch_size", "method.gradient_reach", "method.heads", "method.depth"),
)
"""What launches on several machines have to have in common, for otherwise some component is there twice, or nobody's,
or is not understood.
"""


class Site(NamedTuple):
    """One launch, of several that make a run."""

    here: str
    """The machine, of those in `bus.hosts`."""
    known_as: str
    """The run's name on all of them, when it was launched: its directory may have been renamed."""
    epoch: int
    """Seconds since 1970 at its start. Lives of components on the wire count from there, so that one that is launched
    anew, of which nothing is left here, is a later one to its neighbours.
    """


def site_of(bus: Bus, known_as: str) -> Site | None:
    """Of a launch that begins now; None where the run is all on this machine.

    Raises:
        ConfigError: nobody can tell which of the machines this one is.
    """
    return Site(hosts.here(bus), known_as, int(time.time())) if bus.hosts else None


def run_id(config: Config, name: str) -> str:
    """Sixteen hex digits of a run's name, its keys and what launches have to have in common, so that no component meets
    one of another run. The secret key does not go into it.
    """
    assert config.bus.keys is not None  # machines reach each other with keys alone
    tree = msgspec.to_builtins(config)
    agreed = [_in_order(_at(tree, key)) for key in AGREED]
    said = msgspec.json.encode([name, keys.load(Path(config.bus.keys)).public.decode(), agreed])
    return blake2b(said, digest_size=8).hexdigest()


def _in_order(tree: Any) -> Any:
    """Whatever order a file has its keys in."""
    return [(key, _in_order(tree[key])) for key in sorted(tree)] if isinstance(tree, dict) else tree


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree
