"""A live run that strangers feed: it goes on, it learns what it would have learnt, and every bad message is counted."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from bus import address
from conftest import DEADLINE_S, Launched

FEED_S = 20
STEPS = 2000
"""Up to which the run is compared with one that nobody feeds."""
EXAMINED = range(500, STEPS + 1, 250)
"""After which steps: one examination is worth little, for of 359 pictures four more or less are known by chance."""
ALIKE = ("optimiser.schedule=constant", f"evaluate.every_steps={EXAMINED.step}", "report.every_ms=100")
REASONS = {
    "other-run": ("foreign",),
    "bad-sender": ("stranger", "nan", "inf", "heir", "alias"),
    "stale-incarnation": ("old",),
    "hung-up": ("oversized", "connections"),
}
"""Where one kind has one reason."""
FRAMES = {"bad-frames", "bad-header-size", "bad-checksum", "bad-header", "bad-size", "bad-dtype", "bad-ndim"}
"""Reasons of the others: it depends on the bytes."""
SPOILT = ("noise", "cut", "misfit", "flood", "bare")


def alike(launch: Callable[..., Launched], name: str, *words: str) -> Launched:
    """A chain over tcp: c1 has a child, c2, whose answers are NaN or infinite in a third of all cases."""
    more = (*ALIKE, "bus.transport=tcp", "graph=chain", "components.2.stub.nonfinite=0.3")
    return launch("--components", "3", *words, *[word for each in more for word in ("--set", each)], name=name)


def accuracy(run: Launched, component: str) -> float:
    """With the student, the mean of those after the steps `EXAMINED`."""
    lines = (run.directory / "metrics" / f"{component}.jsonl").read_text().splitlines()
    rows = [json.loads(line)["accuracy"] for line in lines]
    found = {row["step"]: float(row["student"]) for row in rows if row["student"] is not None}
    assert found.keys() >= set(EXAMINED), f"{component} has not come so far"
    return fmean(found[step] for step in EXAMINED)


def examined(row: dict[str, Any]) -> int:
    """The step after which a component was examined last."""
    return int((row["accuracy"] or {}).get("step") or 0)


def test_a_run_survives_strangers_for_20_s_and_counts_them(launch: Callable[..., Launched]) -> None:
    """It learns what it would have learnt, and c1, at whose door they are, counts every one of them.

    The run that it is compared with goes on beside it, so that both have finished soon after the feed.
    """
    run = alike(launch, "fed", "--minutes", "5")
    unfed = alike(launch, "unfed", "--steps", str(STEPS))
    run.until(lambda status: all(row["step"] > 0 for row in status["components"][:2]))
    plan = json.loads((run.directory / "plan.json").read_text())
    endpoint = address.endpoint_of(Path(plan["sockets"]), "c1")
    assert endpoint is not None
    command = [sys.executable, "-m", "workers.hostile", endpoint, plan["run_id"], "--seconds", str(FEED_S)]
    fed = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    sent = json.loads(fed.stdout)
    sent["connections"] = 3  # of its own, that spoke for nobody: at the end they cannot be told from those hung up on
    during = run.status()
    assert during["state"] == "training", "the feed ended before the run"
    run.until(lambda status: all(examined(row) >= STEPS for row in status["components"][:2]))
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output
    assert min(count for kind, count in sent.items() if kind != "connections") > 10, sent
    assert set(sent) == {kind for kinds in REASONS.values() for kind in kinds} | {*SPOILT}
    rows = {row["component"]: row for row in run.status()["components"]}
    dropped = rows["c1"]["messages"]["dropped"]
    for reason, kinds in REASONS.items():
        assert dropped[reason] == sum(sent[kind] for kind in kinds), (reason, dropped, sent)
    assert sum(dropped.get(reason, 0) for reason in FRAMES) == sum(sent[kind] for kind in SPOILT), (dropped, sent)
    assert dropped["unfit"] > 10
    assert rows["c2"]["messages"]["faults"]["nonfinite"] >= dropped["unfit"]
    assert not set(rows["c0"]["messages"]["dropped"]) & {*REASONS, *FRAMES, "unfit", "lost", "reset"}
    for row in (rows["c0"], rows["c1"]):
        assert row["accuracy"]["student"] > 0.97
        assert row["state"] == "stopped"
    assert not os.path.exists(plan["sockets"])
    assert unfed.end() == 0, unfed.output
    for name in ("c0", "c1"):
        assert abs(accuracy(run, name) - accuracy(unfed, name)) <= 0.01
