"""The main job on real processes, real sockets and real data."""

import contextlib
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import zmq
from safetensors.torch import load_file

from bus import address, curve, keys
from configs.load import load
from conftest import Launched, mach, wait_gone
from mach.recipes import RECIPES
from reference import train
from workers.testing import Proxy

Launch = Callable[..., Launched]
QUICK = ("--set", "report.every_ms=100", "--set", "evaluate.every_steps=100")


def all_training(status: dict) -> bool:
    return all(row["step"] > 0 for row in status["components"])


def well_under_way(status: dict) -> bool:
    return all(row["child_steps"] > 10 for row in status["components"])


def processes_of(run: Launched) -> list[int]:
    """The launcher and everything below it: forkserver, components."""
    launcher = psutil.Process(run.process.pid)
    return [launcher.pid, *(child.pid for child in launcher.children(recursive=True))]


def test_a_chain_trains_ends_by_itself_and_leaves_everything_it_promised(launch: Launch) -> None:
    run = launch("--components", "3", "--steps", "300", *QUICK)
    assert run.end() == 0, run.output
    status = run.status()
    assert status["state"] == "finished"
    for row in status["components"]:
        assert row["state"] == "finished"
        assert row["step"] == 300
        assert row["child_steps"] > 0
        assert row["staleness"]["target"]["max_ms"] > 0
        assert row["staleness"]["gradient"]["count"] > 0
        assert row["accuracy"]["student"] > 0.8
        assert row["accuracy"]["child"] > 0.8
        assert (run.directory / "weights" / f"{row['component']}.safetensors").stat().st_size > 0
        assert list((run.directory / "tensorboard" / row["component"]).glob("events.*"))
        assert (run.directory / "metrics" / f"{row['component']}.jsonl").read_text().count("\n") >= 2
    assert mach("status", "--runs", str(run.runs)).returncode == 0


@pytest.mark.parametrize("sig", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_the_others_go_on_without_a_component_that_is_given_up(launch: Launch, sig: signal.Signals) -> None:
    words = ("bus.timeout_ms=300", "supervise.stalled_ms=1000", "supervise.max_restarts=0")
    run = launch("--components", "3", "--steps", "600", *QUICK, *[word for each in words for word in ("--set", each)])
    victim = next(row for row in run.until(well_under_way)["components"] if row["component"] == "c1")
    os.kill(victim["pid"], sig)
    assert run.end() == 3, run.output
    rows = {row["component"]: row for row in run.status()["components"]}
    assert rows["c1"]["state"] == "failed"
    assert ("ended by SIGKILL" if sig == signal.SIGKILL else "SIGSTOP") in rows["c1"]["reason"]
    dropped = rows["c0"]["messages"]["dropped"]
    assert dropped.get("timeout", 0) + dropped.get("unreachable", 0) >= 1, "it asked, and its places came back"
    assert rows["c0"]["step"] == rows["c2"]["step"] == 600
    assert rows["c0"]["state"] == rows["c2"]["state"] == "finished"
    assert run.output.count("c1 failed: ") == 1
    assert run.output.splitlines()[-1].startswith("c1 failed: ")
    assert str(run.directory / "logs" / "c1.1.log") in run.output.splitlines()[-1]


@pytest.mark.slow
def test_a_stream_with_a_stub_in_its_middle_trains_below_it_too_and_ends_by_itself(launch: Launch) -> None:
    stream = ("--set", "recipe=mach-stream", "--set", "components.1.stub.rate=200")
    run = launch("--components", "3", "--steps", "100", *QUICK, *stream)
    assert run.end() == 0, run.output
    first, stub, last = run.status()["components"]
    assert (first["step"], last["step"]) == (100, 100)
    assert first["child_steps"] > 0
    for row in (first, stub, last):
        assert row["state"] == "finished"
        assert not {"unfit", "forgotten"} & set(row["messages"]["dropped"])


@pytest.mark.slow
def test_a_stub_that_crashes_in_each_of_its_lives_is_given_up_and_the_others_finish(launch: Launch) -> None:
    run = launch("--components", "4", "--steps", "600", *QUICK, "--set", "components.1.stub.crash_at=20")
    assert run.end() == 3, run.output
    rows = {row["component"]: row for row in run.status()["components"]}
    assert (rows["c1"]["state"], rows["c1"]["restarts"]) == ("failed", 3)
    assert "ended by SIGKILL (its script says so: components.1.stub.crash_at)" in run.output
    assert "out of memory" not in run.output
    assert all(rows[name]["step"] == 600 and rows[name]["state"] == "finished" for name in ("c0", "c2", "c3"))


@pytest.mark.slow
def test_a_neighbourhood_of_stubs_that_misbehave_never_stops_a_component(launch: Launch) -> None:
    faults = "{latency_ms: 2, jitter_ms: 3, drop: 0.1, duplicate: 0.1, reorder: 0.1, corrupt: 0.1}"
    run = launch(
        *("--components", "3", "--steps", "1000000", "--set", "bus.timeout_ms=200", *QUICK),
        *("--set", f"components.0.stub={faults}", "--set", f"components.2.stub={faults}"),
    )

    def troubled(status: dict) -> bool:
        stub, component, other = status["components"]
        fired = [set(row["messages"]["faults"]) for row in (stub, other)]
        came = {"lost", "duplicate", "bad-checksum"} & set(component["messages"]["dropped"])
        return fired == [{"drop", "duplicate", "reorder", "corrupt"}] * 2 and bool(came)

    before = run.until(troubled)["components"][1]
    after = run.until(lambda status: status["components"][1]["child_steps"] > before["child_steps"])["components"][1]
    assert after["step"] > before["step"]
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output
    steps = run.component("c1")["step"] + 100
    again = launch("--steps", str(steps), resume=True)
    assert again.end() == 0, again.output
    rows = again.status()["components"]
    assert [(row["state"], row["restarts"]) for row in rows] == [("finished", 0)] * 3
    assert rows[1]["step"] == steps, "it ends by itself among them, too"


@pytest.mark.parametrize("graph", [pytest.param("ring", marks=pytest.mark.slow), "chain"])
def test_lockstep_equals_the_plain_reference_loop_bit_for_bit(launch: Launch, graph: str) -> None:
    settings = ("--set", f"graph={graph}")
    run = launch("--components", "4", "--steps", "200", "--seed", "3", "--lockstep", *QUICK, *settings)
    config = load("digits", (f"graph={graph}", "n_components=4", "train.steps=200", "seed=3"), RECIPES)
    plain = train(config, 200)  # meanwhile
    assert run.end() == 0, run.output
    for i, expected in enumerate(plain):
        found = load_file(run.directory / "weights" / f"c{i}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_indices_and_shared_memory_change_no_bit(launch: Launch) -> None:
    """128 KiB of targets and gradients go through the lane, activations are 4 KiB of indices."""
    settings = ("bus.activation=indices", "bus.lane=shared", "data.noise=0", "train.batch_size=512", "train.steps=40")
    words = [word for setting in settings for word in ("--set", setting)]
    run = launch("--components", "4", "--seed", "3", "--lockstep", *words)
    expected = train(load("digits", (*settings, "seed=3"), RECIPES), 40)  # meanwhile
    assert run.end() == 0, run.output
    for i, weights in enumerate(expected):
        found = load_file(run.directory / "weights" / f"c{i}.safetensors")
        assert all(torch.equal(found[name], weight) for name, weight in weights.items()), f"c{i}"


@pytest.mark.slow
def test_a_killed_end_of_a_lane_leaves_no_memory_behind(launch: Launch) -> None:
    run = launch(
        *("--components", "3", "--steps", "300", "--set", "train.batch_size=512", "--set", "bus.lane=shared"),
        *("--max-restarts", "0", *QUICK),
    )
    pid = next(row["pid"] for row in run.until(well_under_way)["components"] if row["component"] == "c1")
    mapped = {pid: lanes(pid) for pid in processes_of(run) if lanes(pid)}
    assert len(mapped) == 3  # the lane is in use, by all components and nobody else
    ours = set().union(*mapped.values())
    os.kill(pid, signal.SIGKILL)
    assert run.end() == 3
    assert all(wait_gone(pid) for pid in mapped)
    assert {row["state"] for row in run.status()["components"]} == {"finished", "failed"}
    assert not any(row["messages"]["dropped"].get("stale-slot") for row in run.status()["components"])
    assert not any(ours & lanes(int(path.name)) for path in Path("/proc").glob("[0-9]*"))


def lanes(pid: int) -> set[str]:
    """Inodes of the shared memory of lanes that a process has mapped; other runs have theirs."""
    try:
        rows = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()  # of somebody else, or gone
    return {row.split()[4] for row in rows if "mach-lane" in row}


def test_ctrl_c_stops_cleanly_and_marks_the_run(launch: Launch) -> None:
    run = launch("--components", "2", "--minutes", "5", *QUICK)
    run.until(all_training)
    pids = processes_of(run)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() == 130, run.output
    assert all(wait_gone(pid, 3.0) for pid in pids)
    assert run.status()["state"] == "stopped"
    assert "Traceback" not in run.output


@pytest.mark.parametrize("lockstep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_to_the_whole_group_as_by_timeout_has_everybody_save_and_leave(launch: Launch, lockstep: bool) -> None:
    """It reaches the forkserver and the components as well, and the launcher twice."""
    words = ("--steps", "100000", "--lockstep") if lockstep else ("--minutes", "5")
    run = launch("--components", "3", *words, *QUICK)
    run.until(all_training)
    below = processes_of(run)
    run.process.send_signal(signal.SIGTERM)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.end() == 130, run.output
    assert all(wait_gone(pid) for pid in below)
    status = run.status()
    assert (status["state"], status["reason"]) == ("stopped", "by SIGTERM")
    for row in status["components"]:
        assert (row["state"], row["exit_code"], row["restarts"]) == ("stopped", 0, 0)
        assert row["checkpoint"]["step"] == row["step"] > 0
        assert (run.directory / "weights" / f"{row['component']}.safetensors").is_file()
    assert not lockstep or len({row["step"] for row in status["components"]}) == 1


def test_killing_the_launcher_leaves_no_process_even_a_stopped_one(launch: Launch) -> None:
    run = launch("--components", "2", "--minutes", "5", *QUICK)
    pids = processes_of(run) if run.until(all_training) else []
    os.kill(run.component("c1")["pid"], signal.SIGSTOP)
    os.kill(run.process.pid, signal.SIGKILL)
    assert all(wait_gone(pid, 1.0) for pid in pids)
    done = mach("status", run.name, "--runs", str(run.runs))
    assert done.returncode == 2
    assert "launcher" in done.stdout + done.stderr
    assert mach("stop", run.name, "--runs", str(run.runs)).returncode == 0, "what has ended can be stopped"


def test_detach_status_logs_and_stop(launch: Launch) -> None:
    run = launch("--components", "2", "--minutes", "5", "--detach", *QUICK)
    assert run.end() == 0, run.output
    words = (run.name, "--runs", str(run.runs))
    launcher = run.status()["launcher_pid"]
    assert mach("status", *words).returncode == 0
    assert mach("stop", *words).returncode == 0
    assert wait_gone(launcher, 10.0)
    assert run.status()["state"] == "stopped"
    assert mach("stop", *words).returncode == 0, "stopping is idempotent"
    logs = mach("logs", *words)
    assert logs.returncode == 0
    assert all(line.startswith(("c0", "c1", "launcher")) for line in logs.stdout.splitlines())


@pytest.mark.slow
def test_two_runs_of_one_name_are_refused_with_one_sentence(launch: Launch, tmp_path: Path) -> None:
    first = launch("--components", "2", "--minutes", "5", *QUICK)
    first.until(all_training)
    second = launch("--components", "2", "--steps", "10")
    assert second.end() == 2
    assert len(second.output.strip().splitlines()) == 1
    assert "test" in second.output
    assert first.process.poll() is None


def test_a_reader_that_leaves_stops_the_run_and_all_is_saved(launch: Launch, tmp_path: Path) -> None:
    with (tmp_path / "errors").open("w+") as errors:
        run = launch("--components", "2", "--steps", "100000", "--set", "report.every_ms=100", errors=errors)
        run.until(all_training)
        below = processes_of(run)
        assert run.process.stdout is not None
        run.process.stdout.close()
        run.process.stdout = None
        assert run.process.wait(30) == 130
        assert all(wait_gone(pid) for pid in below)
        status = run.status()
        assert (status["state"], status["exit_code"]) == ("stopped", 130)
        for row in status["components"]:
            assert (row["state"], row["exit_code"], row["reason"]) == ("stopped", 0, "asked to stop")
            assert row["checkpoint"]["step"] == row["step"] > 0
            assert (run.directory / "weights" / f"{row['component']}.safetensors").is_file()
        errors.seek(0)
        told = [line for line in errors.read().splitlines() if "CUDA" not in line]
    assert len(told) == 1
    assert told[0].startswith("mach: nobody reads what is printed any more, so run test was stopped; mach resume test")


def test_a_delay_on_one_edge_shows_and_stops_nobody(launch: Launch) -> None:
    """100 ms each way between c0 and its child: its targets are that old, and everybody goes on."""
    words = ("bus.transport=tcp", "graph=chain", *QUICK[1::2])
    run = launch("--components", "3", "--steps", "1000000", *[word for each in words for word in ("--set", each)])
    run.until(all_training)
    sockets = Path(json.loads((run.directory / "plan.json").read_text())["sockets"])
    found = address.endpoint_of(sockets, "c1")
    assert found is not None
    with Proxy(found, delay_s=0.1) as proxy:
        address.publish(sockets, "c1", proxy.endpoint)
        late = run.until(lambda status: (status["components"][0]["staleness"]["target"]["max_ms"] or 0) >= 200)
        assert proxy.fired["delayed"] > 0
        before = [row["step"] for row in late["components"]]
        run.until(lambda status: all(row["step"] > was for row, was in zip(status["components"], before, strict=True)))
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.output


@pytest.mark.slow
def test_a_run_over_tcp_with_keys_trains(launch: Launch, tmp_path: Path) -> None:
    assert mach("keys", "new", str(tmp_path / "keys")).returncode == 0
    words = ("bus.transport=tcp", "bus.host=0.0.0.0", f"bus.keys={tmp_path / 'keys'}")
    run = launch("--components", "2", "--minutes", "5", *QUICK, *[word for each in words for word in ("--set", each)])
    run.until(lambda status: all(row["child_steps"] > 0 for row in status["components"]))
    endpoint = address.endpoint_of(Path(json.loads((run.directory / "plan.json").read_text())["sockets"]), "c1")
    assert endpoint is not None
    mine, other = keys.load(tmp_path / "keys"), curve.new_keys()
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        # no key; the pair of another run; a wrong key for the server; this run's public key, with another pair
        for pair, server in ((None, b""), (other, other.public), (mine, other.public), (other, mine.public)):
            stranger = stack.enter_context(context.socket(zmq.DEALER))
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.setsockopt(zmq.RECONNECT_IVL, -1)  # each tries once
            if pair is not None:
                stranger.curve_publickey, stranger.curve_secretkey, stranger.curve_serverkey = *pair, server
            stranger.connect(endpoint)
            stranger.send(b"let me in")
        run.until(lambda status: status["components"][1]["messages"]["dropped"].get("bad-key", 0) >= 4)
    assert "bad-key 4" in mach("status", run.name, "--runs", str(run.runs)).stdout
    assert run.component("c1")["messages"]["dropped"]["bad-key"] == 4
    assert "bad-key" not in run.component("c0")["messages"]["dropped"]
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() == 130, run.output


def test_an_open_address_without_keys_is_refused_with_one_sentence(tmp_path: Path) -> None:
    words = ("--set", "bus.transport=tcp", "--set", "bus.host=0.0.0.0", "--runs", str(tmp_path), "--gpus", "cpu")
    for more in ((), ("--detach",), ("--dry-run",)):
        done = mach("launch", *words, *more)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "mach keys new DIR" in done.stderr
    assert list(tmp_path.iterdir()) == []


FOREIGN = ("other-run", "bad-sender", "hung-up", "stale-incarnation", "unannounced", "bad-ticket")
"""Reasons of what only somebody else can have sent."""


@pytest.mark.slow
def test_two_runs_of_one_user_at_once_never_touch(launch: Launch) -> None:
    runs = [launch("--components", "2", "--steps", "600", *QUICK, name=name) for name in ("one", "other")]
    assert [run.end() for run in runs] == [0, 0], [run.output for run in runs]
    places = [Path(json.loads((run.directory / "plan.json").read_text())["sockets"]) for run in runs]
    assert places[0] != places[1]
    assert not any(place.exists() for place in places)
    statuses = [run.status() for run in runs]
    begins = [status["started_at"] for status in statuses]
    ends = [status["started_at"] + status["elapsed_s"] for status in statuses]
    assert max(begins) < min(ends), "they were not there at once"
    for status in statuses:
        for row in status["components"]:
            assert (row["state"], row["step"]) == ("finished", 600)
            assert row["child_steps"] > 0
            assert not set(row["messages"]["dropped"]) & set(FOREIGN), row


def test_no_message_of_a_finished_run_is_lost(launch: Launch) -> None:
    """In a chain each kind of message goes one way over one edge: what one end sent, the other took or counts."""
    run = launch("--components", "3", "--steps", "300", *QUICK, "--set", "graph=chain")
    run.until(lambda status: all(row["step"] == 300 for row in status["components"]))
    last_step_s = time.monotonic()
    assert run.end() == 0, run.output
    print(f"the launcher ended {time.monotonic() - last_step_s:.2f} s after it heard of the last step of all")
    rows = run.status()["components"]
    for parent, child in itertools.pairwise(rows):
        above, below = (Counter(row["messages"]["dropped"]) for row in (parent, child))
        sent, came = parent["messages"]["sent"], child["messages"]["received"]
        answers, taken = child["messages"]["sent"]["target"], parent["messages"]["received"]["target"]
        assert sent["activation"] == came["activation"] > 0
        assert sent["gradient"] == came["gradient"] + below["unasked"] > 0
        assert sent["activation"] == taken + above["timeout"] + above["reset"] + above["bye"]
        # answers to what was still asked at the end may be on their way when the parent says its last word
        assert 0 <= answers - taken - above["late"] - above["closed"] <= above["bye"] <= 8
        assert not (set(above) | set(below)) & {"lost", "duplicate", "reordered", "reset", "unannounced", *FOREIGN}
