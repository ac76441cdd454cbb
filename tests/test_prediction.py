"""The simulator foretells a run in real processes from how long its steps took and how long a message takes."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import timed
from configs.load import load
from conftest import Launched
from mach.recipes import RECIPES
from workers.simulate import simulate
from workers.timing import Timing

HERE = Path(__file__).parent
PAUSES_MS = (15, 45, 30)
"""Long beside what a busy machine adds in places that no step shows, such as waking the threads of sockets."""
NAMES = [f"c{i}" for i in range(len(PAUSES_MS))]
LATENCY_S = 0.0001
"""Of a message over ipc, as `mach doctor` measures it."""


def measured(directory: Path) -> Timing:
    """Every step of every component, and when it took its first."""
    ends = [timed.read(directory, name) for name in NAMES]
    first = min(times[0] for times in ends)
    steps = tuple(tuple(later - earlier for earlier, later in itertools.pairwise(times)) for times in ends)
    return Timing(LATENCY_S, 0.0, steps, tuple(times[0] - first for times in ends))


@pytest.mark.nightly  # other programs on the machine disturb a run in ways that no step shows
@pytest.mark.parametrize("window", [2, 8])
def test_measured_steps_and_latency_foretell_staleness_and_steps(
    launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("MACH_TEST_STEPS", str(tmp_path))
    monkeypatch.setenv("MACH_TEST_PAUSES", " ".join(map(str, PAUSES_MS)))
    settings = [f"bus.window={window}", "train.minutes=0.08", "train.batch_size=64", "evaluate.every_steps=100000"]
    words = [word for setting in (*settings, "model.family=timed:mlp") for word in ("--set", setting)]
    run = launch("--components", str(len(NAMES)), "--gpus", "cpu", *words)
    assert run.end() == 0, run.output
    real = {row["component"]: row for row in run.status()["components"]}

    config = load("digits", (*settings, f"n_components={len(NAMES)}"), RECIPES)
    foretold = simulate(config, measured(tmp_path), tmp_path / "simulated")
    for row in foretold.status.components:
        there = real[row.component]
        assert row.step == pytest.approx(there["step"], rel=0.05, abs=3)
        assert row.child_steps > 0.5 * row.step
        for kind in ("target", "gradient"):
            ours, theirs = getattr(row.staleness, kind).p50, there["staleness"][kind]["p50"]
            assert abs(ours - theirs) <= 1, f"{row.component}: {kind} {ours} versions foretold, {theirs} measured"
