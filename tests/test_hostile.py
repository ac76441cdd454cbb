"""A live run that strangers feed: it goes on, it learns what it would have learnt, and every bad message is counted."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from bus import address
from conftest import Launched
from workers.hostile import Hostile

FEED_S = 4.0
COUNTED = ("noise", "cut", "foreign", "misfit", "stranger", "nan", "old", "flood")
"""Kinds that reach the mailbox. Of the others ZeroMQ closes the connection."""


def test_a_run_survives_strangers_and_counts_them(launch: Callable[..., Launched]) -> None:
    run = launch("--components", "2", "--steps", "1200", "--set", "bus.transport=tcp", "--set", "report.every_ms=100")
    run.until(lambda status: all(row["step"] > 0 for row in status["components"]))
    plan = json.loads((run.directory / "plan.json").read_text())
    endpoint = address.endpoint_of(Path(plan["sockets"]), "c1")
    assert endpoint is not None
    with Hostile(endpoint, plan["run_id"], seed=1) as hostile:
        until = time.monotonic() + FEED_S
        run.until(lambda status: time.monotonic() > until or not status["components"][1]["step"] < 1200)
    sent = hostile.sent
    assert min(sent[kind] for kind in COUNTED) > 10
    assert min(sent[kind] for kind in ("bare", "oversized")) > 0
    assert run.end() == 0, run.output
    rows = {row["component"]: row for row in run.status()["components"]}
    dropped = rows["c1"]["messages"]["dropped"]
    for reason, kinds in {
        "other-run": ("foreign",),
        "bad-sender": ("stranger", "nan"),
        "stale-incarnation": ("old",),
        "bad-size": ("misfit",),
        "bad-frames": ("flood",),
    }.items():
        assert dropped[reason] >= 0.9 * sum(sent[kind] for kind in kinds), (reason, dropped, sent)
    assert sum(dropped.values()) >= 0.9 * sum(sent[kind] for kind in COUNTED)
    assert rows["c0"]["messages"]["dropped"] == {}
    for row in rows.values():
        assert row["step"] == 1200
        assert row["accuracy"]["student"] > 0.97
        assert row["accuracy"]["child"] > 0.97
    assert not os.path.exists(plan["sockets"])
