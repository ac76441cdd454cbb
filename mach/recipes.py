"""Methods as named settings: a recipe is a set of defaults over the same parts (method.md's table).

A recipe's settings lie under those of the file that names it, key by key; named by `--set recipe=…`, over the file's,
and under every other `--set`.
"""

from collections.abc import Mapping
from typing import Any

STREAM: Mapping[str, Any] = {"wiring": "stream", "graph": "chain"}
WIDE = 32
"""Window where batches need not come back: as many may be under way, so that a slow link starves nobody below."""
SLOW_MS = 30_000
"""Time-out of such an edge: the last of as many batches waits for all before it."""
END_TO_END: Mapping[str, Any] = {"targets": "none", "heads": "last", "gradient_reach": "full"}
PATIENT_MS = 600_000
"""Time-out of an edge where a batch that is given up would be missing."""

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # the 2019 method, its defects mended: students answer, one-hop gradients of targets
    "mach": {"wiring": "skip", "loss": {"child": 1.0, "student": 1.0, "distill": 1.0, "late": 1.0}},
    # sections of one deep network that see x again; every loss looks down the chain, through copies that travel up in
    # place of gradients; students learn beside, from labels and those copies' logits, those that do not ship and
    # joiners, from a target, now and then
    "mach-stream": {
        **STREAM,
        "bus": {"window": WIDE, "timeout_ms": SLOW_MS},
        "method": {
            "targets": "embedding",
            "targets_every": 8,
            "student_every": 4,
            "gradient_reach": "none",
            "context": True,
            "momentum_head": "chain",
            "momentum_decay": 0.9,
            "momentum_every": 4,
        },
        "loss": {"student": 0.3, "distill": 0.0, "logits": 1.0, "temperature": 1.0, "late": 0.0},
    },
    # targets and one-hop gradients of both tensors, on such sections
    "mach-hop": {**STREAM, "method": {"targets": "embedding", "gradient_reach": "hop", "context": True}},
    # decoupled greedy learning: local heads, nothing comes back (arXiv 1901.08164)
    "dgl": {
        **STREAM,
        "method": {"targets": "none", "gradient_reach": "none"},
        "bus": {"window": WIDE, "timeout_ms": SLOW_MS},
    },
    # end to end, late, at the weights of then; only the last has a head (arXiv 1804.10574)
    "ddg": {**STREAM, "method": END_TO_END, "staleness": {"late": "stash"}, "bus": {"window": 4}},
    # the gradient is guessed at once, and the true one teaches the guess (arXiv 1608.05343)
    "dni": {**STREAM, "method": {"targets": "none", "heads": "last", "gradient_reach": "hop", "guess": True}},
    # end to end, late, through today's weights; a step after k gradients (arXiv 1705.09786: W = max_active_keys,
    # k = min_update_frequency)
    "ampnet": {**STREAM, "method": {**END_TO_END, "update_every": 4}, "bus": {"window": 4}},
    # a ladder of teacher's assistants: every component learns from its child's logits (arXiv 1902.03393)
    "takd": {"wiring": "skip", "graph": "chain", "method": {"targets": "logits"}, "loss": {"logits": 1.0, "late": 0.0}},
    # the control: one batch at a time, forward through everybody and back
    "backprop": {**STREAM, "method": END_TO_END, "bus": {"window": 1, "timeout_ms": PATIENT_MS}},
}
