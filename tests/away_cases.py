"""What `tests/mach/test_away.py` runs in a process of its own: everything, on a device that is not the CPU."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import away  # before anything computes
import workers.stage
from away import AWAY
from configs.errors import ConfigError, DataError
from mach import export
from mach import state as pack
from mach.component import Component
from mach.draws import CPU, aside
from mach.networks.place import Place
from mach.recipes import RECIPES
from mach.state import Copies, State
from placed import alone, config, gone_on, saved, simulated, small, weights

PROBES = ("weight_gap", "fresh", "agreement", "cka", "r2", "reliance", "salience")
PROBED = ("probes.every_steps=1", *(f"probes.{name}=true" for name in PROBES))
CONV, HOP, TWO = "model.family=conv", "recipe=mach-hop", "n_components=2"
CODECS = ("bus.codec.target=int8", "bus.codec.gradient=fp16", "bus.codec.activation=bf16")
RUNS: dict[str, tuple[str, ...]] = {
    **{recipe: ("digits", f"recipe={recipe}") for recipe in RECIPES},
    "conv": ("mnist1d", CONV, TWO),
    "conv in a stream, by muon": ("mnist1d", CONV, HOP, TWO, "optimiser.name=muon"),
    "transformer": ("bytes-lm", TWO, "optimiser.name=muon"),
    "transformer in a stream": ("bytes-lm", TWO, "recipe=mach-stream"),
    "probes": ("digits", *PROBED),
    "probes of a stream": ("digits", HOP, *PROBED),
    "a child's first layer": ("digits", HOP, "method.momentum_head=layer", "method.momentum_every=2"),
    "from further down": ("digits", "graph=chain", "method.depth=1", "optimiser.name=nadam"),
    "logits up the chain": ("digits", "graph=chain", "model.join=sum", "optimiser.name=sgd"),
    "noise": ("digits", "data.noise=0.1"),
    "policies": ("digits", "staleness.policies=[discount,predict,compensate,clip]", "evaluate.average=0.9"),
    "moments apart": ("digits", "optimiser.separate_late=true", "staleness.policies=[accumulate]"),
    "indices": ("digits", "bus.activation=indices"),
    "indices in a stream": ("digits", HOP, "bus.activation=indices", *CODECS),
}
LEAVES = ("bus/tensors.py", "mach/learner.py")
"""Where what is sent is waited for: an answer is judged on the host."""
SELDOM = ("mach/evaluate.py", "mach/relay.py", "workers/journal.py", "mach/checkpoint.py", "mach/momentum.py")
SELDOM += ("mach/below.py", "mach/state.py", "mach/assemble.py", "mach/data/dataset.py", "mach/data/batches.py")
SELDOM += ("workers/simulate.py",)
"""Where a life begins or ends, is examined or reported; and where a child shows its weights."""
ASKED_FOR = ("mach/probes.py", "mach/salience.py", "mach/staleness.py")
"""Where settings want numbers of the host."""


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.stage, "load", small)
    away.waits.clear()


def files() -> set[str]:
    return {where.partition(":")[0] for where in away.waits}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_there_what_it_learns_on_the_cpu(tmp_path: Path, name: str) -> None:
    of = config(*RUNS[name])
    there = simulated(of, tmp_path / "there", AWAY)
    assert files() <= {*LEAVES, *SELDOM, *ASKED_FOR}, away.waits
    here = simulated(of, tmp_path / "here", CPU)
    for one, other in zip(there.status().components, here.status().components, strict=True):
        assert (one.step, one.messages) == (other.step, other.messages)
        assert not one.messages.dropped.get("unfit")
    for trainer in there.trainers.values():
        learner = trainer.learner
        moments = [each for entry in learner.optimiser.state.values() for each in entry.values()]
        assert {each.device.type for each in moments if isinstance(each, Tensor) and each.ndim} <= {away.NAME}
    if name == "noise":  # that is drawn by another generator
        return
    found = weights(there)
    for key, each in weights(here).items():
        if each.is_floating_point():
            assert (found[key] - each).abs().mean() < 1e-4, key


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "nadam", "muon"])
def test_who_goes_on_from_a_file_steps_as_if_it_had_never_stopped(tmp_path: Path, optimiser: str) -> None:
    of = config("digits", f"optimiser.name={optimiser}", "evaluate.average=0.9", "data.noise=0.1", components=1)
    one = alone(of, tmp_path / "one", AWAY)
    for _ in range(3):
        one.turn()
    saved(one, tmp_path / "saved")
    other = gone_on(alone(of, tmp_path / "other", AWAY), tmp_path / "saved")
    waited = []
    for trainer in (one, other):
        away.waits.clear()
        for _ in range(2):
            trainer.turn()
        waited.append(dict(away.waits))
    assert waited[1] == waited[0]
    assert waited[0] == {}, "alone it has nobody to send to"
    states = [trainer.learner.state(0.0).tensors for trainer in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, each in states[0].items():
        assert torch.equal(each.cpu(), states[1][key].cpu()), key
        assert each.device == states[1][key].device, key
    on_the_cpu = gone_on(alone(of, tmp_path / "back", CPU), tmp_path / "saved")
    assert on_the_cpu.turn() is not None


@pytest.mark.parametrize("source", ["digits", "bytes-lm"])
def test_what_was_trained_there_is_loaded_here_and_may_go_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    of = config(source, "recipe=mach-stream", TWO)
    run = simulated(of, tmp_path / "run", AWAY)
    x = run.stage.dataset.test_inputs
    shipped = export.load(tmp_path / "run" / "weights", 1)
    with torch.no_grad():
        here, there = shipped(x.cpu()), shipped.to(AWAY)(x)
    assert there.device == AWAY
    torch.testing.assert_close(there.cpu(), here)


def test_what_a_device_draws_goes_on_and_is_left_as_it_was() -> None:
    state = pack.of_generators(AWAY)
    expected = torch.rand(5, device=AWAY)
    pack.into_generators(AWAY, state)
    with aside(device=AWAY):
        torch.rand(5, device=AWAY)
    assert torch.equal(torch.rand(5, device=AWAY).cpu(), expected.cpu())
    state.tensors[away.NAME] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(DataError, match="generators: holds no state of such"):
        pack.into_generators(AWAY, state)


def test_copies_are_there_when_they_were_waited_for_and_not_before() -> None:
    weight, copies = torch.ones(4, device=AWAY), Copies()
    taken = copies.take(State({"w": weight})).tensors["w"]
    weight.fill_(2.0)
    assert not torch.equal(taken, torch.ones(4)), "still under way"
    assert not away.waits, "training goes on meanwhile"
    copies.wait()
    assert torch.equal(taken, torch.ones(4))


class Shifting(nn.Module):
    """Adds what is no buffer, and so stays where it was made."""

    def __init__(self, *, in_training: bool) -> None:
        super().__init__()
        self.in_training = in_training
        self.by = torch.ones(1, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by if self.training or not self.in_training else x


class Staying(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).cpu()


@pytest.mark.parametrize(
    ("encoder", "head", "said"),
    [
        (
            lambda: Shifting(in_training=False),
            nn.Linear,
            r"on away:0 the encoder does not take \[2, 64\]: .* along",
        ),
        (lambda: Shifting(in_training=True), nn.Linear, r"on away:0 in training the encoder does not take \[2, 64\]: "),
        (nn.Flatten, Staying, r"on away:0 the head gives a tensor of the cpu: register_buffer"),
        (nn.Flatten, nn.Linear, ""),
    ],
)
def test_a_network_that_leaves_something_behind_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Callable[[], nn.Module], head: Any, said: str
) -> None:
    def make(place: Place) -> Component:
        joiner = nn.Linear(64, place.model.embedding)
        return Component(nn.Sequential(nn.Flatten(), encoder()), joiner, head(place.model.embedding, place.classes), {})

    own = ModuleType("own")
    own.__dict__["make"] = make
    monkeypatch.setitem(sys.modules, "own", own)
    of = config("digits", "model.family=own:make", components=1)
    assert alone(of, tmp_path / "here", CPU).turn() is not None
    if not said:
        assert alone(of, tmp_path / "there", AWAY).turn() is not None
        return
    with pytest.raises(ConfigError, match=said) as error:
        alone(of, tmp_path / "there", AWAY)
    assert "\n" not in str(error.value)


def test_the_device_is_as_strict_as_a_gpu() -> None:
    there, here = torch.ones(2, device=AWAY), torch.ones(2)
    for mixed in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here.add_(there),
        lambda: there[here.long()],
    ):
        with pytest.raises(RuntimeError, match=r"xpected all tensors"):
            mixed()
    with pytest.raises(TypeError, match="can't convert away"):
        there.numpy()
    with pytest.raises(RuntimeError, match="expected a generator of away"):
        torch.rand(2, device=AWAY, generator=torch.Generator())
    assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0], "a single number may come from anywhere"
