"""One run over two machines, which are two launches here that share nothing but the run's keys."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Launched, mach

Launch = Callable[..., Launched]
pytestmark = pytest.mark.slow


@pytest.fixture
def on(launch: Launch, tmp_path: Path) -> Callable[..., Launched]:
    """Launch a run of four, of which the first two are on machine 1, the others on machine 2; its part on one of them.

    Machines are addresses that no other process of this suite has.
    """
    assert mach("keys", "new", str(tmp_path / "keys")).returncode == 0
    pid = os.getpid()
    one, two = (f"127.{pid >> 8 & 255}.{pid & 255}.{last}" for last in (1, 2))
    settings = ["bus.transport=tcp", f"bus.keys={tmp_path / 'keys'}", f"bus.hosts=[{one},{one},{two},{two}]"]
    settings += ["report.every_ms=100", "evaluate.every_steps=100", "checkpoint.every_s=1"]

    def part(machine: int, *words: str, steps: int | None = 300) -> Launched:
        here = [*settings, f"bus.here={(one, two)[machine - 1]}"]
        more = [word for each in here for word in ("--set", each)]
        runs = tmp_path / f"machine{machine}"
        more += [] if steps is None else ["--steps", str(steps)]
        return launch("--components", "4", "--gpus", "cpu", *more, *words, runs=runs)

    return part


def trained_on(status: dict, name: str) -> bool:
    """Whether the component here has trained on answers of its child."""
    return any(row["component"] == name and row["child_steps"] > 10 for row in status["components"])


def test_a_run_over_two_machines_trains_across_and_outlives_one_of_them(on: Callable[..., Launched]) -> None:
    first, second = on(1, steps=100_000), on(2, steps=100_000)
    first.until(lambda status: trained_on(status, "c1"))  # on answers of c2, which is on the other machine
    status = second.until(lambda status: trained_on(status, "c3"))
    assert [row["component"] for row in status["components"]] == ["c2", "c3"]
    assert sorted(status["elsewhere"]) == ["c0", "c1"]
    plans = [json.loads((run.directory / "plan.json").read_text()) for run in (first, second)]
    assert plans[0]["run_id"] == plans[1]["run_id"]

    os.kill(second.component("c2")["pid"], signal.SIGKILL)  # its next life listens where it did
    second.until(lambda status: status["components"][0]["incarnation"] == 2)
    before = first.component("c1")["child_steps"]
    first.until(lambda status: status["components"][1]["child_steps"] > before + 20)

    os.kill(second.process.pid, signal.SIGKILL)  # the whole machine
    steps = [row["step"] for row in first.status()["components"]]
    first.until(
        lambda status: all(row["step"] > was + 50 for row, was in zip(status["components"], steps, strict=True))
    )
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 130, first.output
    assert "on 127." in first.output


def test_both_end_well_and_each_has_saved_its_own(on: Callable[..., Launched]) -> None:
    parts = [on(1), on(2)]
    assert [part.end() for part in parts] == [0, 0], [part.output for part in parts]
    saved = [sorted(path.name for path in (part.directory / "weights").iterdir()) for part in parts]
    assert saved == [["c0.safetensors", "c1.safetensors"], ["c2.safetensors", "c3.safetensors"]]


def test_in_stream_wiring_the_deeper_machine_ends_with_what_came(on: Callable[..., Launched]) -> None:
    stream = ("--set", "recipe=mach-stream", "--set", "graph=chain")
    deeper = on(2, *stream, steps=60)
    deeper.until(lambda status: all(row["state"] == "waiting" for row in status["components"]))
    upper = on(1, *stream, steps=60)
    assert [upper.end(), deeper.end()] == [0, 0], (upper.output, deeper.output)
    assert all(row["step"] > 30 for row in deeper.status()["components"])
    assert upper.component("c0")["accuracy"]["full"] is not None, "an examination goes down over both"


def test_a_machine_whose_others_were_never_launched_trains_to_its_end_and_says_so(on: Callable[..., Launched]) -> None:
    alone = on(1, "--minutes", "0.25", steps=None)
    assert alone.end() == 3, alone.output
    assert "c1 → c2: never heard" in alone.output
    assert "not launched on its machine" in alone.output


def test_a_run_over_machines_that_has_no_name_is_refused() -> None:
    """Each would make up its own, and they would never meet."""
    settings = ("--set", "bus.hosts=[127.0.0.1]", "--components", "1", "--set", "bus.transport=tcp")
    done = mach("launch", *settings)
    assert done.returncode == 2
    assert done.stderr.startswith("mach: bus.hosts: the machines of a run know it by its name; give all")
    assert done.stderr.count("\n") == 1
