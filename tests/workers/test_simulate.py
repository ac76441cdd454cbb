"""A run in virtual time: the same to the last bit, the same lives as in processes, and nothing left."""

import math
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch
from safetensors.torch import load_file

import reference
from configs.errors import RunError
from configs.load import load
from configs.tree import Config, Probes
from conftest import forbid_compiler
from mach.component import Component
from mach.data import load as load_data
from mach.export import load as load_network
from mach.networks.mlp import mlp
from mach.networks.place import Place
from mach.recipes import RECIPES
from workers.rundir import RunDir
from workers.simulate import Outcome, Simulation, simulate
from workers.status import Status
from workers.timing import Timing, timing_of
from workers.turns import Trainer

ALL_PROBES = [f"probes.{name}=true" for name, value in msgspec.to_builtins(Probes()).items() if value is False]

pytestmark = pytest.mark.usefixtures("leaks")


def config(*settings: str) -> Config:
    base = ("n_components=3", "train.steps=40", "train.batch_size=32", "evaluate.every_steps=20", "seed=5")
    return load("digits", (*base, *settings), RECIPES)


def timing(latency: str = "1ms", jitter: str = "0ms", compute: str = "5ms", straggler: str = "c1=1x") -> Timing:
    return timing_of(latency, jitter, compute, [straggler], 3)


def run(tmp_path: Path, of: Config, at: Timing, name: str = "run", *, lockstep: bool = False) -> Outcome:
    return simulate(of, at, tmp_path / name, lockstep=lockstep)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    files = {f"c{i}": load_file(RunDir(directory).weights(f"c{i}")) for i in range(3)}
    return {f"{name}.{key}": tensor for name, tensors in files.items() for key, tensor in tensors.items()}


def test_two_runs_give_identical_weights_messages_and_reports(tmp_path: Path) -> None:
    shaky = timing("4ms", "9ms")
    one, other = (run(tmp_path, config(), shaky, name) for name in ("one", "other"))
    theirs = weights(tmp_path / "other")
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in weights(tmp_path / "one").items())
    assert msgspec.json.encode(one) == msgspec.json.encode(other)
    assert one.digest == other.digest
    assert sum(one.versions["c0"]["target"].values()) > 5


def normed(place: Place) -> Component:
    """Networks whose state is more than weights: a count of batches, a buffer with steps in memory, and a mask."""
    component = mlp(place)
    component.joiner = torch.nn.Sequential(component.joiner, torch.nn.BatchNorm1d(place.model.embedding))
    component.register_buffer("every_other", torch.arange(10)[::2])
    component.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    return component


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_networks_with_batch_normalisation_and_other_buffers_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float
) -> None:
    monkeypatch.setitem(sys.modules, "theirs", ModuleType("theirs"))
    monkeypatch.setattr(sys.modules["theirs"], "normed", normed, raising=False)
    settings = ("model.family=theirs:normed", f"evaluate.average={average}")
    outcome = run(tmp_path, config(*settings), timing())
    assert weights(tmp_path / "run")["c0.joiner.1.num_batches_tracked"] > 0
    assert outcome.digest != run(tmp_path, config(*settings, "seed=6"), timing(), "other").digest


@pytest.mark.parametrize("change", ["seed", "latency"])
def test_another_seed_or_timing_is_another_run(tmp_path: Path, change: str) -> None:
    base = run(tmp_path, config(), timing("4ms", "9ms"), "base")
    settings, at = (("seed=6",), timing("4ms", "9ms")) if change == "seed" else ((), timing("5ms", "9ms"))
    assert run(tmp_path, config(*settings), at, "changed").digest != base.digest


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_loads_torch_s_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    """Which costs a launch as much as torch itself, and a component that loads it alone as much again."""
    forbid_compiler(monkeypatch)
    short = ("graph=chain", "train.steps=4", "evaluate.every_steps=2", "train.batch_size=8")
    outcome = run(tmp_path, config(f"recipe={recipe}", *short, *ALL_PROBES), timing())
    assert outcome.status.state == "finished"


@pytest.mark.parametrize(("name", "optimiser"), [("mnist1d", "nadam"), ("bytes-lm", "muon"), ("bytes-lm", "sgd")])
def test_no_model_loads_torch_s_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, optimiser: str
) -> None:
    forbid_compiler(monkeypatch)
    small = ("n_components=3", "train.steps=4", "train.batch_size=4", "model.embedding=16", "model.channels=8")
    small += ("data.train_samples=64", "data.test_samples=8", "evaluate.average=0.9")
    of = load(name, (*small, f"optimiser.name={optimiser}"), RECIPES)
    assert run(tmp_path, of, timing()).status.state == "finished"


def test_who_watches_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.simulate.LOOK_S", 0.0)
    seen: list[Status] = []
    watched = simulate(config(), timing("4ms", "9ms"), tmp_path / "watched", watcher=seen.append)
    assert watched == run(tmp_path, config(), timing("4ms", "9ms"))
    assert len(seen) >= 3
    assert seen[0].state == "training"


def test_an_examination_that_runs_at_the_end_of_a_stream_gives_way_to_the_final_one(tmp_path: Path) -> None:
    late = config("recipe=mach-hop", "evaluate.every_steps=37")  # the whole way takes longer than three steps
    outcome = run(tmp_path, late, timing("20ms"))
    for row in outcome.status.components:
        assert row.pid is None
        assert row.accuracy is not None
        assert row.accuracy.step == 40
        assert row.accuracy.full is not None
        alone = [37] if row.component == "c0" else []  # who reads the data is judged with its student at once
        assert [point.step for point in outcome.curves[row.component]] == [*alone, 40]


class Killer:
    """An actor that kills a component at a time."""

    name, ended = "killer", False

    def __init__(self, simulation: Simulation, victim: str, at_s: float) -> None:
        self.simulation, self.victim, self.at_s = simulation, victim, at_s

    def turn(self, now: float) -> float:
        if now < self.at_s:
            return self.at_s - now
        self.simulation.stage.bus.kill(self.victim)
        self.ended = True
        return math.inf

    def close(self) -> None:
        """Holds nothing."""


@pytest.mark.parametrize("victim", ["c0", "c1"])
@pytest.mark.parametrize("at_s", [0.0, 0.1])
def test_those_below_one_that_was_killed_for_good_finish_with_what_they_have_and_nobody_else_notices(
    tmp_path: Path, victim: str, at_s: float
) -> None:
    simulation = Simulation(config("recipe=mach-hop", "bus.timeout_ms=200"), timing(), tmp_path / "run")
    simulation.stage.fibres["killer"] = Killer(simulation, victim, at_s)  # type: ignore[assignment]
    simulation.run()
    rows = {row.component: row for row in simulation.outcome().status.components}
    below = ["c1", "c2"] if victim == "c0" else ["c2"]
    for name in below:
        assert rows[name].state == "finished"
        assert (rows[name].step < 40) is True
        assert (rows[name].step > 5) is (at_s > 0.0)
        assert load_file(RunDir(tmp_path / "run").weights(name))
    assert rows["c0"].step == 40 if victim == "c1" else rows["c0"].state != "finished"
    assert "steps, since nothing more comes from c" in RunDir(tmp_path / "run").launcher_log.read_text()


def test_everybody_finishes_examines_and_saves(tmp_path: Path) -> None:
    outcome = run(tmp_path, config(), timing())
    assert outcome.status.state == "finished"
    for row in outcome.status.components:
        assert (row.state, row.step, row.exit_code) == ("finished", 40, 0)
        assert row.accuracy.step == 40
        assert row.accuracy.child is not None
        curve = outcome.curves[row.component]
        assert {point.step for point in curve} >= {20, 40}
        assert curve[-1].student == row.accuracy.student
        assert curve[-1].child == row.accuracy.child
        assert [point.seconds for point in curve] == sorted(point.seconds for point in curve)
    # the steps, the answers to the last examination, and the longest wait between two looks for orders
    assert 40 * 0.005 < outcome.status.elapsed_s < 40 * 0.005 + 0.02 + 0.1
    assert (tmp_path / "run/metrics/c0.jsonl").read_text().count('"finished"') >= 1


def test_in_lockstep_it_equals_the_plain_loop_bit_for_bit(tmp_path: Path) -> None:
    lockstepped = config("train.steps=12")
    run(tmp_path, lockstepped, timing("3ms", "5ms", "5ms,c2=9ms"), lockstep=True)
    for i, expected in enumerate(reference.train(lockstepped, 12)):
        found = load_file(RunDir(tmp_path / "run").weights(f"c{i}"))
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_straggler_costs_itself_and_not_the_others(tmp_path: Path) -> None:
    even, uneven = run(tmp_path, config(), timing(), "even"), run(tmp_path, config(), timing(straggler="c1=10x"), "un")
    rates = [[row.rate for row in outcome.status.components] for outcome in (even, uneven)]
    assert rates[0] == pytest.approx([200, 200, 200], rel=0.01)
    assert rates[1] == pytest.approx([200, 20, 200], rel=0.01)


def test_a_window_s_worth_of_answers_comes_in_every_round_trip(tmp_path: Path) -> None:
    outcome = run(tmp_path, config("bus.window=4", "train.steps=120", "evaluate.every_steps=1000"), timing("8steps"))
    for row in outcome.status.components:
        assert 4 * 120 / 18 - 4 <= row.child_steps <= 4 * 120 / 16  # 8 steps there, 8 back, up to 2 to be noticed
        assert row.staleness.gradient.p50 == pytest.approx(17, abs=1)
        assert row.staleness.target.p50_ms == pytest.approx(80, abs=10)


def test_what_a_step_owes_leaves_when_the_step_is_over(tmp_path: Path) -> None:
    settings = ("bus.window=1", "evaluate.every_steps=1000")
    outcome = run(tmp_path, config(*settings), timing("0ms"))
    # no latency: what is learned from an answer of version v in the step after it meets version v + 1 or v + 2
    assert set(outcome.versions["c0"]["gradient"]) <= {1, 2}
    slow = run(tmp_path, config(*settings), timing("0ms", straggler="c2=10x"), "slow")
    assert outcome.versions["c0"] != slow.versions["c0"]
    assert max(slow.versions["c0"]["gradient"]) >= 10  # c2 asks c0, and pays ten of its steps later


def test_stubs_play_and_a_crash_is_the_end_of_one(tmp_path: Path) -> None:
    scripts = ("components.1.stub.crash_at=10", "components.2.stub.duplicate=0.5", "bus.timeout_ms=50")
    outcome = simulate(config(*scripts), timing(), tmp_path / "run", watcher=lambda _: None)
    rows = {row.component: row for row in outcome.status.components}
    assert rows["c0"].step == 40
    assert 0 < rows["c0"].child_steps < 20
    assert rows["c2"].messages.faults["duplicate"] > 0
    assert outcome.status.state == "finished"


def test_an_error_of_one_life_ends_all_and_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workers.trainer.save_weights", full)
    with pytest.raises(RunError, match=r"^c0: .*c0\.safetensors: cannot be written .No space left.*; make room"):
        run(tmp_path, config("train.steps=3"), timing())


def test_who_has_diverged_is_told_so_and_leaves_no_weights(tmp_path: Path) -> None:
    said = r"^c0: training has diverged: \w\S+ holds numbers that are .*; begin again with --set optimiser\.lr=SMALLER"
    with pytest.raises(RunError, match=said) as raised:
        run(tmp_path, config("train.steps=3", "optimiser.name=sgd", "optimiser.lr=1e30"), timing())
    assert raised.value.exit_code == 1
    assert str(tmp_path) not in str(raised.value), "it is gone by then"
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_run_that_waits_for_itself_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(trainer: Trainer) -> None:
        trainer.mailbox.receive(1.0)

    monkeypatch.setattr(Trainer, "turn", wait)
    with pytest.raises(RunError, match=r"stands still since 0 s .*c0 at step 0"):
        run(tmp_path, config("bus.timeout_ms=1000000"), timing())


def test_a_step_that_takes_an_hour_is_no_standstill(tmp_path: Path) -> None:
    slow = run(tmp_path, config("train.steps=2", "evaluate.every_steps=2"), timing(straggler="c1=800000x"))
    assert [row.step for row in slow.status.components] == [2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        (("recipe=backprop", "n_components=2", "components.1.stub.silent_at=5"), 4),
        (("recipe=ddg", "n_components=3", "components.2.stub.crash_at=5"), 4),  # c0's questions time out for ever
    ],
)
def test_who_waits_end_to_end_for_a_stub_that_is_gone_is_told_so(
    tmp_path: Path, settings: tuple[str, ...], step: int
) -> None:
    cut = config(*settings)
    told = rf"c0 at step {step}: waiting for its children's answers; .*by script nothing more comes from c\d:"
    with pytest.raises(RunError, match=told):
        run(tmp_path, cut, timing_of("1ms", "0ms", "5ms", (), cut.n_components))


PROBES = ("weight_gap", "fresh", "agreement", "cka", "r2", "reliance", "salience")
STREAM = {"weight_gap/rms", "weight_gap/versions", "fresh/cosine", "fresh/norm_ratio", "agreement/child"}
TARGETS = {f"{part}/c1" for part in ("cka", "r2", "reliance/zeroed", "reliance/shuffled", "salience/pruning")}


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("mach", TARGETS | {"salience/weight/c1", "salience/integrated/own"}),
        ("mach-hop", STREAM | TARGETS),
        ("ddg", STREAM - {"agreement/child"}),
        ("dni", {"weight_gap/rms"}),
    ],
)
def test_probes_change_no_bit_of_a_run_and_are_in_its_reports(tmp_path: Path, recipe: str, told: set[str]) -> None:
    settings = (f"recipe={recipe}", "graph=chain", "probes.every_steps=10")
    on = [f"probes.{name}=true" for name in PROBES]
    off = ("probes.bytes=false", "probes.idle=false")
    probed = run(tmp_path, config(*settings, *on), timing(), "on")
    plain = run(tmp_path, config(*settings, *off), timing(), "off")
    assert probed.digest == plain.digest
    assert [row.probes for row in plain.status.components] == [{}, {}, {}]
    rows = {row.component: row.probes for row in probed.status.components}
    assert told | {"bytes/c1", "idle"} <= set(rows["c0"])
    assert rows["c0"]["idle"] <= (0.0 if recipe in ("mach", "mach-hop") else 0.9)
    if recipe != "mach":
        assert rows["c2"]["idle"] > 0.0, "it waits for its first batch"
    if recipe in ("mach", "mach-hop"):
        assert "agreement/parent" in rows["c1"]


def test_what_policies_did_is_in_the_reports(tmp_path: Path) -> None:
    settings = ("recipe=mach-hop", 'staleness.policies=["bound","discount"]', "staleness.max_versions=1")
    outcome = run(tmp_path, config(*settings), timing("9ms"))
    for row in outcome.status.components:
        ages = outcome.versions[row.component]["gradient"]
        assert row.staleness.policies == {"bound": sum(count for lag, count in ages.items() if lag > 1)}
    assert outcome.status.components[0].staleness.policies["bound"] > 5


def test_without_policies_there_is_nothing_to_count(tmp_path: Path) -> None:
    outcome = run(tmp_path, config("recipe=mach-hop"), timing("9ms"))
    assert [row.staleness.policies for row in outcome.status.components] == [{}, {}, {}]


def test_a_stub_gives_receipts_where_no_target_is_wanted(tmp_path: Path) -> None:
    stub = ("graph=chain", "n_components=2", "train.steps=40", "components.1.stub.latency_ms=1")
    outcome = run(tmp_path, config("recipe=mach-stream", *stub), timing_of("1ms", "0", "5ms", (), 2))
    row = outcome.status.components[0]
    assert row.step == 40
    assert 0 < row.staleness.target.count <= 5, "of every eighth batch at most; an examination takes turns too"
    assert not row.messages.dropped.get("unfit")


def test_below_a_stub_that_drops_who_waits_says_why(tmp_path: Path) -> None:
    """All places are taken by what was dropped, until the time-out of 30 s."""
    stub = ("recipe=dgl", "train.steps=400", "components.1.stub.drop=0.2")
    outcome = run(tmp_path, config(*stub), timing())
    assert outcome.status.elapsed_s > 30.0
    waited = RunDir(tmp_path / "run").metrics("c2").read_text()
    assert "for its parent's next activation" in waited
    assert "never came, each of which holds a place in the window for bus.timeout_ms" in waited


def test_a_stream_that_is_over_before_all_have_made_a_step_is_no_success(tmp_path: Path) -> None:
    status = run(tmp_path, config("recipe=dgl", "train.steps=1"), timing()).status
    assert [row.step > 0 for row in status.components] == [True, False, False]
    assert (status.state, status.exit_code) == ("finished", 3)
    assert status.reason.startswith("c1, c2: ended without a step")


@pytest.mark.parametrize(
    ("recipe", "stubs"),
    [
        ("mach-hop", (0,)),
        ("mach-stream", (1,)),
        ("ddg", (3,)),
        ("dgl", (0, 1)),
        ("mach-hop", (1, 2)),
        ("dni", (0, 3)),
        ("mach-stream", (2, 3)),
    ],
)
def test_a_stream_with_stubs_in_it_ends_by_itself(tmp_path: Path, recipe: str, stubs: tuple[int, ...]) -> None:
    scripts = [f"components.{index}.stub.rate=400" for index in stubs]
    chain = config(f"recipe={recipe}", "n_components=4", *scripts)
    outcome = run(tmp_path, chain, timing_of("1ms", "0ms", "5ms", (), 4))
    assert outcome.status.state == "finished"
    for index, row in enumerate(outcome.status.components):
        assert row.messages.dropped.get("unfit", 0) == 0
        assert row.below == (f"c{stubs[0]}" if index > stubs[0] else "")
        assert row.kind == "stub" or (row.accuracy.step is None) == bool(row.below)
        if index in stubs:
            assert (row.kind, row.step) == ("stub", 0)
        elif index == 0 or index - 1 in stubs:  # nobody above says when it is over
            assert row.step == 40
        else:
            assert 0 < row.step <= 40 + chain.bus.window
        if index < stubs[0]:
            assert row.accuracy.full is row.accuracy.full_bits is None, "noise is not what the network says"
            assert (row.accuracy.student is None) == (recipe in ("ddg", "dni")), "the last alone has a head there"
    examined = outcome.status.components[0].accuracy
    if 0 not in stubs:
        assert examined is not None
        assert examined.step == 40
        assert recipe == "ddg" or examined.child is not None, "a stub answers an examination as well"


@pytest.mark.parametrize("window", [1, 2])
def test_who_guesses_gradients_is_no_further_ahead_of_the_true_ones_than_its_window(
    tmp_path: Path, window: int
) -> None:
    of = config("recipe=dni", "n_components=2", f"bus.window={window}", "evaluate.every_steps=10")
    first, second = run(tmp_path, of, timing_of("1ms", "0", "5ms", ["c1=3x"], 2)).status.components
    assert first.step == 40
    assert second.step >= 40 - window, "three times slower, examined on the way, and it saw every batch"


def test_who_waits_for_a_child_trains_on_all_that_has_come_before_it_ends_with_its_parent(tmp_path: Path) -> None:
    of = config("recipe=dni", "bus.window=4", "components.0.stub.silent_at=24")
    second = run(tmp_path, of, timing(straggler="c2=10x")).status.components[1]
    assert second.step == second.messages.received["activation"] > 20


@pytest.mark.parametrize("settings", [("recipe=mach-hop",), ("recipe=mach-stream",), ("recipe=mach", "graph=chain")])
def test_at_the_end_nobody_waits_for_a_stub_that_has_gone_silent(tmp_path: Path, settings: tuple[str, ...]) -> None:
    outcome = run(tmp_path, config(*settings, "components.2.stub.silent_at=10"), timing())
    first, second, _ = outcome.status.components
    assert first.accuracy.student is not None
    assert second.accuracy.child is None
    assert outcome.status.elapsed_s < 1.0, "of the run's own time: 40 steps of 5 ms"


@pytest.mark.parametrize("script", ["{silent_at: 10}", "{crash_at: 10}"])
def test_a_stream_whose_stub_sends_no_more_ends_with_what_has_come(tmp_path: Path, script: str) -> None:
    cut = config("recipe=mach-hop", f"components.0.stub={script}")
    outcome = run(tmp_path, cut, timing())
    assert outcome.status.state == "finished"
    _, first, second = outcome.status.components
    assert 5 < first.step < 20
    assert 0 < second.step <= first.step


@pytest.mark.parametrize("recipe", ["dgl", "mach-stream"])
def test_what_a_slow_section_is_said_to_be_is_what_it_saves(tmp_path: Path, recipe: str) -> None:
    """Its line of batches takes it far longer than anybody would wait; the last examination stands behind them."""
    settings = (f"recipe={recipe}", "graph=chain", "n_components=3", "train.steps=60", "train.batch_size=16")
    config = load("digits", (*settings, "evaluate.every_steps=20"), RECIPES)
    outcome = simulate(config, timing_of("1ms", "0", "20ms", ["c1=8x"], 3), tmp_path / "run")
    dataset = load_data(config.data)
    for k, row in enumerate(outcome.status.components):
        network = load_network(tmp_path / "run" / "weights", k)
        with torch.no_grad():
            right = (network(dataset.test_inputs).argmax(dim=1) == dataset.test_labels).float().mean()
        assert float(right) == pytest.approx(row.accuracy.student, abs=1e-6), row.component
