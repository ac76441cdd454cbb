"""One run over two machines, which are two launches here that share nothing but the run's keys."""

import json
import os
import shutil
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

    def part(machine: int, *words: str, steps: int | None = 300, resume: bool = False) -> Launched:
        runs = tmp_path / f"machine{machine}"
        if resume:
            return launch(runs=runs, resume=True)
        here = [*settings, f"bus.here={(one, two)[machine - 1]}"]
        more = [word for each in here for word in ("--set", each)]
        more += [] if steps is None else ["--steps", str(steps)]
        return launch("--components", "4", "--gpus", "cpu", *more, *words, runs=runs)

    return part


def rows(status: dict) -> dict[str, dict]:
    return {row["component"]: row for row in status["components"]}


def trained_on(status: dict, name: str) -> bool:
    """Whether the component here has trained on answers of its child."""
    return rows(status)[name]["child_steps"] > 10


def goes_on(run: Launched, name: str, more: int = 20) -> None:
    """Until the component has trained on so many more answers of its child."""
    before = run.component(name)["child_steps"]
    run.until(
        lambda status: any(r["component"] == name and r["child_steps"] > before + more for r in status["components"])
    )


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
    goes_on(first, "c1")
    for name, parent in (("c1", "c0"), ("c3", "c2")):  # whose parent is on the same machine
        run = first if name == "c1" else second
        assert mach("restart", "test", name, "--runs", str(run.runs)).returncode == 0
        run.until(lambda status: any(row["incarnation"] == 2 for row in status["components"]))
        goes_on(run, parent)

    os.kill(second.process.pid, signal.SIGKILL)  # the whole machine, and all that it had
    second.end()
    shutil.rmtree(second.directory)
    steps = [row["step"] for row in first.status()["components"]]
    first.until(lambda now: all(row["step"] > was + 50 for row, was in zip(now["components"], steps, strict=True)))
    anew = on(2, steps=100_000)
    goes_on(first, "c1")
    for run in (anew, first):
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.output
    assert "on 127." in first.output


def test_both_end_well_and_each_has_saved_its_own(on: Callable[..., Launched]) -> None:
    parts = [on(machine, "--minutes", "0.2", steps=None) for machine in (1, 2)]  # the slower to start is heard of
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


def test_a_section_waits_for_a_machine_that_was_stopped_and_goes_on_with_it(on: Callable[..., Launched]) -> None:
    """What is fed ends with what feeds it when that has done its steps, not when it is to go on later."""
    stream = ("--set", "recipe=dgl", "--set", "graph=chain")
    upper, deeper = on(1, *stream, steps=100_000), on(2, *stream, steps=100_000)
    deeper.until(lambda status: all(row["step"] > 10 for row in status["components"]))
    upper.process.send_signal(signal.SIGINT)
    assert upper.end() == 130, upper.output
    steps = [row["step"] for row in deeper.status()["components"]]
    resumed = on(1, resume=True)
    deeper.until(lambda now: all(row["step"] > was + 50 for row, was in zip(now["components"], steps, strict=True)))
    for run in (resumed, deeper):
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.output


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
