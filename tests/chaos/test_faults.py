"""Stops and slowness from outside, as `mach chaos` makes them: who is hit, who is named, who is left alone."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from conftest import Launched

Launch = Callable[..., Launched]
Row = dict[str, Any]
ENDLESS = ("--minutes", "5", "--set", "report.every_ms=100")


def well_under_way(status: Row) -> bool:
    return all(row["child_steps"] > 10 for row in status["components"])


def steps(status: Row) -> list[int]:
    return [row["step"] for row in status["components"]]


def pids(status: Row) -> list[int]:
    return [row["pid"] for row in status["components"]]


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


@contextlib.contextmanager
def chaos(run: Launched, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """`mach chaos`, interrupted at the end if it still runs."""
    command = [sys.executable, "-m", "mach", "chaos", run.name, "--runs", str(run.runs), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.send_signal(signal.SIGINT)


def ended(run: Launched) -> None:
    """Stop it; nothing went wrong until then."""
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output


@pytest.mark.slow
@pytest.mark.chaos
def test_one_that_is_stopped_is_found_named_and_begins_anew(launch: Launch) -> None:
    run = launch("--components", "3", *ENDLESS, "--set", "supervise.stalled_ms=3000")
    before = run.until(well_under_way)
    with chaos(
        run, "--stop", "1/min", "--stop-seconds", "3600", "--seconds", "60", "--seed", "315", "--json"
    ) as process:
        after = run.until(lambda status: any(row["restarts"] and row["step"] for row in status["components"]))
        process.send_signal(signal.SIGINT)
        account = json.loads(process.communicate()[0])
    assert process.returncode == 130
    [fired] = account["faults"]
    hit = next(row for row in after["components"] if row["component"] == fired["component"])
    assert (fired["kind"], fired["pid"]) == ("stop", hit_before(before, fired)["pid"])
    assert hit["failure"]["reason"].startswith("made no progress for")
    assert hit["failure"]["reason"].endswith("stopped by a signal (SIGSTOP)")
    assert (hit["restarts"], hit["incarnation"]) == (1, 2)
    others = [row for row in after["components"] if row is not hit]
    assert {row["pid"] for row in others} < set(pids(before))
    assert all(row["restarts"] == 0 for row in others)
    ended(run)


def hit_before(status: Row, fired: Row) -> Row:
    """The row of the component that was hit, as it was before."""
    found: Row = next(row for row in status["components"] if row["component"] == fired["component"])
    return found


@pytest.mark.slow
@pytest.mark.chaos
def test_slow_and_stopped_for_a_while_is_no_failure_and_an_interrupt_continues_everybody(launch: Launch) -> None:
    run = launch("--components", "3", *ENDLESS, "--set", "supervise.stalled_ms=60000")
    before = run.until(well_under_way)
    words = ("--stop", "1/s", "--stop-seconds", "3600", "--slow", "c1=5x", "--seconds", "3600")
    with chaos(run, *words) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(3)]
        assert all(stopped(int(line[-1])) for line in lines), "they stay stopped"
        assert {int(line[-1]) for line in lines} <= set(pids(before))
        process.send_signal(signal.SIGTERM)
        story = process.communicate()[0]
    assert process.returncode == 130
    assert "short pauses" in story
    assert not any(stopped(pid) for pid in pids(before))
    then = steps(run.status())
    after = run.until(lambda status: all(now > was for now, was in zip(steps(status), then, strict=True)))
    assert pids(after) == pids(before)
    ended(run)


@pytest.mark.slow
@pytest.mark.chaos
def test_more_kills_than_lives_hit_every_life_once(launch: Launch) -> None:
    run = launch("--components", "2", *ENDLESS)
    run.until(well_under_way)
    with chaos(run, "--kill", "6/s", "--seconds", "1", "--seed", "7", "--json") as process:
        account = json.loads(process.communicate()[0])
    assert process.returncode == 0
    assert (account["lost"], account["interrupted"]) == ({}, False)
    hit = [(fired["component"], fired["incarnation"]) for fired in account["faults"]]
    assert len(set(hit)) == len(hit) >= 2
    assert len(hit) + account["missed"] == 6, "three of each, so that nobody is given up"
    assert sum(account["restarts"].values()) == len(hit)
    ended(run)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_without_components_to_hit_is_refused(launch: Launch) -> None:
    run = launch("--components", "2", "--steps", "20")
    assert run.end() == 0, run.output
    with chaos(run, "--kill", "1/s") as process:
        assert process.wait() == 2
