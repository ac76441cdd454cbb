"""A launcher's beginning and end in this process."""

import multiprocessing
import signal
from pathlib import Path

import pytest

from bus import address
from configs.load import load
from mach.recipes import RECIPES
from workers.attempt import Attempt
from workers.plan import ProcessPlan, make_plan
from workers.supervisor import Supervisor


def test_a_launch_that_fails_halfway_leaves_no_process_and_no_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("digits", ("n_components=2",), RECIPES)
    sockets = address.make_directory()
    plan = make_plan(config, run="r", directory=tmp_path / "r", sockets=sockets)
    start, begun = Supervisor._start, list[str]()

    def start_one(self: Supervisor, process: ProcessPlan, incarnation: int, now: float) -> Attempt:
        if begun:
            raise BlockingIOError("no more processes")
        begun.append(process.name)
        return start(self, process, incarnation, now)

    monkeypatch.setattr(Supervisor, "_start", start_one)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BlockingIOError, match="no more processes"), Supervisor(plan):
        pytest.fail("it has begun")
    assert begun == ["c0"]
    assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGTERM) == before
    assert not sockets.exists()
    assert (tmp_path / "r" / "status.json").exists(), "what became of it can be read"
