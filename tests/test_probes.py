"""Every probe at once, on real processes: in the status, the metrics and TensorBoard, with values that can be."""

import json
import math
from collections.abc import Callable

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import Launched, mach

Launch = Callable[..., Launched]
SWITCHES = ("weight_gap", "fresh", "agreement", "cka", "r2", "reliance", "salience")
RANGES = {
    "weight_gap/rms": (1e-9, 1.0),
    "weight_gap/versions": (1.0, 65.0),
    "fresh/cosine": (-1.0, 1.0),
    "fresh/norm_ratio": (1e-6, 1e6),
    "agreement/child": (-1.0, 1.0),
    "agreement/parent": (-1.0, 1.0),
    "cka": (0.0, 1.0),
    "r2": (-10.0, 1.0),
    "reliance/zeroed": (-1.0, 10.0),
    "reliance/shuffled": (-1.0, 10.0),
    "salience/pruning": (1e-9, 10.0),
    "salience/gradient": (1e-9, 10.0),
    "salience/weight": (1e-6, 1.0),
    "salience/integrated": (-10.0, 10.0),
    "bytes": (1.0, 5000.0),  # few to a parent that asks seldom
    "idle": (0.0, 1.0),
}
"""What a value can be, and on digits may be: by probe, or probe and part."""
ROUNDED = 1e-5
OF_GRADIENTS = {"weight_gap/rms", "weight_gap/versions", "fresh/cosine", "fresh/norm_ratio"}
"""Of a component that gets any."""


def of_child(child: str) -> set[str]:
    parts = ("cka", "r2", "reliance/zeroed", "reliance/shuffled", "bytes")
    measures = (f"salience/{measure}" for measure in ("pruning", "gradient", "weight", "integrated"))
    return {f"{part}/{child}" for part in (*parts, *measures)} | {"salience/integrated/own"}


EXPECTED = {
    # c0 has a parent, c2; everybody's child is the next, and late gradients come from parents
    "mach": {
        f"c{i}": of_child(f"c{(i + 1) % 3}") | {f"bytes/c{(i - 1) % 3}", "agreement/parent", "idle"} | OF_GRADIENTS
        for i in range(3)
    },
    # down the chain: c0 has the gradients of its child alone, c2 those of its parent
    "mach-hop": {
        "c0": of_child("c1") | {"agreement/child", "idle"} | OF_GRADIENTS,
        "c1": of_child("c2") | {"bytes/c0", "agreement/child", "agreement/parent", "idle"} | OF_GRADIENTS,
        "c2": {"bytes/c1", "agreement/parent", "idle"} | OF_GRADIENTS,
    },
}


def range_of(name: str) -> tuple[float, float]:
    return RANGES[name] if name in RANGES else RANGES[name.rpartition("/")[0]]


@pytest.mark.parametrize("recipe", ["mach", pytest.param("mach-hop", marks=pytest.mark.slow)])
def test_every_probe_of_a_launch_is_in_its_records_and_on_the_edges(launch: Launch, recipe: str) -> None:
    words = [f"recipe={recipe}", "report.every_ms=100", "probes.every_steps=20", "evaluate.every_steps=200"]
    words += [f"probes.{name}=true" for name in SWITCHES]
    run = launch(
        "--components", "3", "--gpus", "cpu", "--steps", "200", *[w for each in words for w in ("--set", each)]
    )
    assert run.end() == 0, run.output
    shown = mach("status", run.name, "--runs", str(run.runs)).stdout
    for row in run.status()["components"]:
        name, probes = row["component"], row["probes"]
        assert set(probes) == EXPECTED[recipe][name]
        for probe, value in probes.items():
            low, high = range_of(probe)
            assert low - ROUNDED <= value <= high + ROUNDED, f"{name}: {probe} is {value}"
        metrics = [json.loads(line) for line in (run.directory / "metrics" / f"{name}.jsonl").read_text().splitlines()]
        assert metrics[-1]["probes"] == probes
        events = EventAccumulator(str(run.directory / "tensorboard" / name))
        events.Reload()
        for probe, value in probes.items():
            assert events.Scalars(f"probes/{probe}")[-1].value == pytest.approx(value, rel=1e-5)
        parts = {probe: value for probe, value in probes.items() if probe.startswith("salience/integrated/")}
        for child in (part.rpartition("/")[2] for part in parts if not part.endswith("/own")):
            gained = math.fsum(parts.values())  # nats by which inputs make the labels likelier than nothing does
            assert 0.2 < gained < 10.0
            (line,) = (line for line in shown.splitlines() if line.startswith(f"{name} ") and f"→ {child} " in line)
            assert f"{abs(probes[f'salience/integrated/{child}']) / math.fsum(map(abs, parts.values())):.0%}" in line
    edges = sum("→ c" in line for line in shown.splitlines())
    assert edges == sum("/cka/" in f"/{probe}" for row in EXPECTED[recipe].values() for probe in row)


def test_without_salience_no_edge_is_drawn(launch: Launch) -> None:
    run = launch("--components", "2", "--gpus", "cpu", "--steps", "50", "--set", "probes.cka=true")
    assert run.end() == 0, run.output
    assert "worth" not in mach("status", run.name, "--runs", str(run.runs)).stdout
