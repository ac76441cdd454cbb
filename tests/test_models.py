"""What the networks, data and optimisers offer, reached as a user does: by configuration, in real processes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Launched

Launch = Callable[..., Launched]
QUICK = ("--components", "2", "--gpus", "cpu", "--set", "report.every_ms=100", "--set", "train.batch_size=8")
SMALL = ("--set", "model.embedding=16", "--set", "model.channels=8", "--set", "data.train_samples=64")
MINE = """
from torch import nn

from mach.component import Component


def crooked(place):
    e = place.model.embedding
    students = {child: nn.Linear(place.features, e) for child in place.children}
    return Component(nn.Flatten(), nn.Linear(place.features, e), nn.Linear(e, place.classes), students)
"""


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("mnist1d", ("optimiser.name=nadam", "data.test_samples=64", "optimiser.schedule=linear")),
        ("bytes-lm", ("optimiser.name=muon", "data.test_samples=8", "bus.activation=indices")),
    ],
)
def test_every_shipped_model_trains_on_its_data(launch: Launch, config: str, settings: tuple[str, ...]) -> None:
    chosen = [word for setting in settings for word in ("--set", setting)]
    run = launch("--config", config, "--steps", "12", *QUICK, *SMALL, *chosen)
    assert run.end() == 0, run.output
    for row in run.status()["components"]:
        assert row["state"] == "finished"
        assert row["step"] == 12
        assert row["messages"]["dropped"].get("unfit", 0) == 0
        assert row["accuracy"]["student_bits"] > 0
        assert row["accuracy"]["child_bits"] > 0


@pytest.mark.slow
def test_a_stub_speaks_of_sequences_where_the_data_are_such(launch: Launch) -> None:
    run = launch("--config", "bytes-lm", "--steps", "60", *QUICK, *SMALL, "--set", "components.1.stub.latency_ms=1")
    assert run.end() == 0, run.output
    row = run.component("c0")
    assert row["child_steps"] > 0
    assert row["staleness"]["gradient"]["count"] > 0
    assert row["messages"]["dropped"].get("unfit", 0) == 0


def test_a_family_of_ones_own_that_does_not_fit_is_one_sentence_with_its_shapes(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = launch(*QUICK, "--set", "model.family=mine:crooked")
    assert run.end() == 2, run.output
    said = "".join(run.output.split())
    assert "'mine:crooked'makesnocomponentc" in said
    assert "thejoinerdoesnottake[2,64],[2,64]:mat1andmat2shapescannotbemultiplied(2x128and64x64)" in said
