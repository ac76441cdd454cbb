"""Kill -9 of either end of a lane at any point: never a torn message, no memory behind, and it is used again.

The ends live in `tests/killing.py`, a program of its own, which checks every content that arrives.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "killing.py"
DEADLINE_S = 300.0


def killing(*words: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, int] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["sender", "receiver"])
def test_an_end_killed_at_every_line_that_it_runs_tears_nothing_and_leaves_nothing(part: str, step: int) -> None:
    seen = killing("lines", part, str(step))
    assert seen["died"] > 300 // step
    assert seen["next lives"] == seen["died"]
    assert seen["whole"] >= 6 * seen["died"]  # those of the next lives, and what came before the deaths


def survived(seen: dict[str, int], lives: int) -> None:
    assert seen["letters"] >= lives
    assert seen["reset"] + seen.get("timeout", 0) > 0  # deaths with something in flight
    assert 2 <= seen["most mapped"] <= 4  # in use, both ways; of an earlier life at most until the next is there
    assert seen["mapped"] == 0
    assert seen["doors"] >= lives  # of the dead: the run's directory goes with the run


def test_lives_killed_at_random_points_of_live_traffic_tear_nothing_and_leave_nothing() -> None:
    survived(killing("lives", "8", "1"), 8)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_lives_killed_all_night(seed: int) -> None:
    survived(killing("lives", "100", str(seed)), 100)
