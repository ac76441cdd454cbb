"""The benchmarks run, and print what they promise. No figure is asserted."""

import json
import subprocess
import sys

import pytest


def last_line(*words: str) -> dict:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document: dict = json.loads(done.stdout.splitlines()[-1])
    return document


@pytest.mark.slow
def test_the_bus_benchmark_compares_every_contender() -> None:
    found = last_line("benchmarks.bus", "--quick", "--rounds", "1", "--sizes", "1KB,256KB", "--json")
    sizes = {"1KB", "256KB"}
    assert set(found["throughput_vs_raw"]) == {"inline", "shared"}
    for ratios in (
        *found["throughput_vs_raw"].values(),
        found["roundtrip_vs_raw"],
        found["throughput_vs_mpqueue"],
        found["throughput_vs_gloo"],
    ):
        assert set(ratios) == sizes
        assert all(ratio > 0 for ratio in ratios.values())
    assert {"mach tcp inline", "pyzmq tcp", "memcpy", "unix socket"} < set(found["figures"]["1KB"])


def test_the_stages_of_a_message_are_parts_of_its_way() -> None:
    found = last_line("benchmarks.stages", "--messages", "20", "--json")
    assert len(found) == 2 * 2 * 3  # lanes, states, sizes
    for stages in found.values():
        assert stages["check"] > 0
        assert 0 < stages["hand over"] < stages["send"]
        assert 0 < stages["fetch"] < stages["receive"]


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", [(), ("--stubs",)])
def test_the_overhead_benchmark_prints_its_ratio_last(neighbours: tuple[str, ...]) -> None:
    found = last_line("benchmarks.overhead", "--rounds", "1", "--steps", "5", "--json", *neighbours)
    assert found["ratio"] > 0
    assert found["received_per_step"]["target"] > 0


@pytest.mark.slow
def test_the_trouble_benchmark_measures_every_kind() -> None:
    found = last_line("benchmarks.trouble", "--rounds", "1", "--seconds", "0.5", "--json")
    assert set(found) == {"hostile", "delay", "cut"}
    assert all(row["ratio"] > 0 for kind in found.values() for row in kind["rates"].values())
    assert found["hostile"]["sent"]["stranger"] <= found["hostile"]["dropped"]["bad-sender"]
    assert found["cut"]["shown_as"] == ["silent"]


@pytest.mark.slow
def test_the_checkpoint_benchmark_writes_some_and_prints_its_ratio_last() -> None:
    found = last_line("benchmarks.checkpoint", "--rounds", "1", "--seconds", "0.3", "--every-s", "0.1", "--json")
    assert found["ratio"] > 0
    assert found["checkpoints"] > 0
    assert found["bytes"] > 100_000


@pytest.mark.slow
def test_the_recovery_benchmark_kills_and_sees_everybody_back() -> None:
    found = last_line("benchmarks.recovery", "--rounds", "1", "--seconds", "3", "--kill", "1/s", "--json")
    assert found["kills"] == found["restarts"] == 3
    assert found["lost"] == []
    assert 0 < found["restart_s"]["p50"] <= found["restart_s"]["max"]
    assert found["peers_rate_ratio"] > 0


@pytest.mark.slow
def test_the_depth_benchmark_has_every_recipe_at_every_depth_and_lag() -> None:
    found = last_line("benchmarks.depth", "--quick", "--config", "digits", "--set", "train.steps=6", "--json")
    assert found["unit"] == "accuracy"
    assert set(found["depth"]) == {"mach-stream", "dgl", "backprop", "independent"}
    assert all(set(row) == {"1", "2", "4"} for row in found["depth"].values())
    assert set(found["lag"]["mach-stream"]) == set(found["lag"]["dgl"]) == {"0", "8"}
    assert all(
        0 < each["mean"] <= 1 for axis in ("depth", "lag") for row in found[axis].values() for each in row.values()
    )
