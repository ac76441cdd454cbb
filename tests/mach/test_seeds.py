"""Streams that are independent, and the same on every machine."""

from mach.seeds import seed_of

SEED_0 = 1_742_245_414_122_377_847
"""Written down: a change of it would silently change every run."""


def test_every_argument_matters() -> None:
    seeds = {seed_of(seed, i, purpose) for seed in range(8) for i in range(8) for purpose in ("weights", "data")}
    assert len(seeds) == 128
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_never_changes() -> None:
    assert seed_of(0, 0, "weights") == SEED_0
