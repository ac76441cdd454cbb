"""What makes a run over several machines one: an identity that its launches come to by themselves.

Knows no plan and no process.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from bus import keys
from configs.tree import Config

FIXED = (
    *("recipe", "wiring", "graph", "n_components", "seed", "model"),
    *("data.source", "data.split_seed", "data.test_share", "data.train_samples", "data.test_samples", "data.symbols"),
    *("data.length", "method.targets", "method.guess", "method.context", "method.momentum_head", "method.reach"),
)
"""Keys whose change would make another run: other networks, or other samples to learn from and be examined on."""


def run_id(config: Config, name: str) -> str:
    """Sixteen hex digits of a run's name, its keys and what makes it the run it is, so that no component meets one of
    another run. The secret key does not go into it: every message carries it in the open.
    """
    assert config.bus.keys is not None  # machines reach each other with keys alone
    tree = msgspec.to_builtins(config)
    agreed = [(key, _at(tree, key)) for key in FIXED]
    said = msgspec.json.encode([name, keys.load(Path(config.bus.keys)).public.decode(), agreed], order="sorted")
    return blake2b(said, digest_size=8).hexdigest()


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree
