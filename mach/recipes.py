"""Methods as named settings: a recipe is a set of defaults over the same parts (method.md's table).

A recipe's settings lie between the tree's defaults and the user's file: a key that the file or `--set` names wins.
"""

from collections.abc import Mapping
from typing import Any

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # the 2019 method, its defects mended: students answer, one-hop gradients of targets
    "mach": {"wiring": "skip", "loss": {"child": 1.0, "student": 1.0, "distill": 1.0, "late": 1.0}},
}
