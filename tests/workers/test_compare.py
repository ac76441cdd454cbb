"""Recipes side by side, in virtual time and small: what is run, what is measured, and what is made of it."""

from pathlib import Path

import pytest
import torch

from configs.errors import ConfigError, RunError
from configs.load import load
from configs.tree import Config
from mach.controls import CONTROLS, Trained
from mach.recipes import RECIPES
from mach.whole import Reading, Whole, readings
from workers.compare import (
    Comparison,
    Mark,
    Real,
    Result,
    Row,
    Virtual,
    check,
    compare,
    curve_of,
    default_target,
    gap_closed,
    reported,
    staleness,
    time_to,
)
from workers.curves import Point
from workers.report import Report, Spread, Staleness
from workers.rows import Rows
from workers.status import ComponentStatus, Status
from workers.timing import timing_of

pytestmark = pytest.mark.usefixtures("leaks")

SMALL = ("n_components=2", "graph=chain", "train.steps=12", "train.batch_size=32", "evaluate.every_steps=6")


def config(recipe: str = "mach", seed: int = 0, *settings: str) -> Config:
    return load("digits", (f"recipe={recipe}", f"seed={seed}", *SMALL, *settings), RECIPES)


def rows(base: dict[str, list[Config]], **configs: list[Config]) -> Rows:
    return Rows("digits", configs, base, {})


def virtual() -> Virtual:
    return Virtual(timing_of("1ms", "0", "5ms", [], 2))


def test_a_comparison_runs_every_recipe_and_control_with_every_seed(tmp_path: Path) -> None:
    said: list[str] = []
    ours, dgl = [config(seed=0), config(seed=1)], [config("dgl", 0), config("dgl", 1)]
    base = {"skip": ours, "stream": [config("backprop", 0), config("backprop", 1)]}
    found = compare(rows(base, mach=ours, dgl=dgl), virtual(), tmp_path, said.append)
    names = [(row.name, row.control, row.wiring) for row in found.rows]
    assert names[:2] == [("mach", False, "skip"), ("dgl", False, "stream")]
    assert {name for name, control, _ in names if control} == set(CONTROLS)
    assert len(names) == 2 + 2 * len(CONTROLS)
    assert all([result.seed for result in row.results] == [0, 1] for row in found.rows)
    assert len(said) == 2 * len(names)
    mach = found.rows[0].results[0]
    assert set(mach.readings) == {"student", "child", "full"}
    assert mach.staleness_p50 is not None
    assert mach.staleness_p50_ms is not None
    assert mach.steps == {"c0": 12, "c1": 12}
    assert found.rows[-1].results[0].steps == {found.rows[-1].name: 12}
    assert [row.config.recipe for row in found.rows[:2]] == ["mach", "dgl"]
    assert (found.title, found.timing) == ("digits", virtual().timing)
    assert [mark.step for mark in mach.curve][-1] == 12
    again = compare(rows({"skip": [config()]}, mach=[config()]), virtual(), tmp_path / "again", said.append)
    assert again.rows[0].results[0] == mach


def test_a_control_that_cannot_be_made_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mach.controls.size_of", lambda network, dataset: 9 if isinstance(network, Whole) else 3)
    found = compare(rows({"skip": [config()]}, mach=[config()]), virtual(), tmp_path, lambda line: None)
    assert {row.name for row in found.rows if row.control} == {*CONTROLS} - {"wide"}
    assert found.unmade["skip"]["wide"].startswith("one component comes to 3 parameters, all to 9")


def test_controls_take_time_in_proportion_to_what_they_compute() -> None:
    def trained(multiply_adds: float) -> Trained:
        return Trained(Reading(0.5, 1.0), (), multiply_adds, 1)

    assert virtual().step_s(trained(300), trained(100), 1, wall_s=9.0) == pytest.approx(0.015)
    assert virtual().step_s(trained(200), trained(100), 2, wall_s=9.0) == pytest.approx(0.005)


@pytest.mark.parametrize(("devices", "step_s"), [(("cpu",), 3.0), (("0",), None), (("1", "0"), None)])
def test_a_control_on_the_cpu_tells_no_time_beside_recipes_on_gpus(
    tmp_path: Path, devices: tuple[str, ...], step_s: float | None
) -> None:
    """Else asynchronous training would look many times faster than it is."""
    from mach.data import load as load_data
    from workers.compare import control_rows

    real, found = Real(devices), Trained(Reading(0.5, 1.0), (), 1.0, 1)
    assert real.step_s(found, found, 2, wall_s=6.0) == step_s
    once = config("mach", 0, "train.steps=2", "evaluate.every_steps=1")
    (alone,) = control_rows("skip", [once], load_data(once.data), real, lambda line: None, ["alone"])
    assert [mark.step for mark in alone.results[0].curve] == [1, 2]
    assert [mark.seconds is None for mark in alone.results[0].curve] == [step_s is None] * 2
    assert (time_to(0.0, alone.results[0].curve, bits=False) is None) == (step_s is None)


def test_the_readings_are_those_of_the_saved_weights(tmp_path: Path) -> None:
    from mach.checkpoint import load_weights
    from mach.controls import whole_of
    from mach.data import load as load_data
    from workers.compare import recipe

    dataset = load_data(config().data)
    result = recipe(config(), dataset, virtual(), tmp_path / "run", 1.0)
    whole = whole_of(config(), dataset)
    fresh = readings(whole, dataset, 32)
    for index in range(2):
        whole.part(index).load_state_dict(load_weights(tmp_path / f"run/weights/c{index}.safetensors"))
    assert result.readings == readings(whole, dataset, 32)
    assert result.readings != fresh
    examined = [mark for mark in result.curve if mark.step == 12][-1]
    assert examined.accuracy == pytest.approx(result.readings["child"].accuracy, abs=0.05)
    assert torch.isfinite(torch.tensor(result.readings["full"].bits))


@pytest.mark.parametrize("name", ["mach", "mach-stream", "dgl"])
def test_what_component_0_finds_of_itself_over_the_bus_is_what_is_read_off_its_weights(
    tmp_path: Path, name: str
) -> None:
    from mach.data import load as load_data
    from workers.compare import recipe

    seen: list[Status] = []

    class Kept(Virtual):
        def run(self, config: Config, directory: Path) -> tuple[Status, dict[str, list[Point]]]:
            status, curves = super().run(config, directory)
            seen.append(status)
            return status, curves

    once = config(name, 0, "evaluate.every_steps=1000")
    found = recipe(once, load_data(once.data), Kept(virtual().timing), tmp_path / "run", 1.0)
    examined = seen[0].components[0].accuracy
    assert examined.step == 12
    assert examined.student == pytest.approx(found.readings["student"].accuracy)
    assert examined.student_bits == pytest.approx(found.readings["student"].bits, abs=1e-4)
    if name != "mach":  # its child and the last one have not moved since the last batch went through them
        assert examined.full == pytest.approx(found.readings["full"].accuracy, abs=0.03)


def test_backpropagation_over_the_bus_is_the_plain_loop(tmp_path: Path) -> None:
    from mach import controls
    from mach.data import load as load_data
    from workers.compare import recipe

    plain = config("backprop", 3, "n_components=3", "train.steps=30", "evaluate.every_steps=1000")
    dataset = load_data(plain.data)
    timing = Virtual(timing_of("3ms", "2ms", "5ms", [], 3))
    over_the_bus = recipe(plain, dataset, timing, tmp_path / "run")
    expected = controls.train("backprop", plain, dataset)
    assert over_the_bus.readings["full"].bits == pytest.approx(expected.reading.bits, abs=1e-6)
    assert over_the_bus.multiply_adds == pytest.approx(expected.multiply_adds, rel=0.02)


def point(seconds: float, step: int, student: float, child: float | None = None) -> Point:
    bits = None if child is None else 1.0 - child
    return Point(seconds=seconds, step=step, student=student, child=child, student_bits=2.0 - student, child_bits=bits)


def test_the_curve_of_skip_wiring_is_c0_with_its_child_and_of_stream_the_last_component() -> None:
    curves = {"c0": [point(1, 5, 0.5), point(2, 5, 0.5, 0.7)], "c1": [point(3, 6, 0.9)]}
    (skip,) = curve_of(config(), curves, 1)
    assert (skip.seconds, skip.step, skip.accuracy, skip.bits) == (2, 5, 0.7, pytest.approx(0.3))
    (stream,) = curve_of(config("dgl"), curves, 1)
    assert (stream.seconds, stream.accuracy) == (3, 0.9)


def status(*rows: dict[str, Spread]) -> Status:
    components = [
        ComponentStatus(
            component=f"c{i}",
            kind="trainer",
            incarnation=1,
            pid=0,
            device="cpu",
            state="finished",
            staleness=Staleness(**row),
        )
        for i, row in enumerate(rows)
    ]
    times = {"started_at": 0.0, "written_s": 0.0, "elapsed_s": 0.0}
    return Status(
        run="r", state="finished", launcher_pid=0, launcher_started="", boot="", components=components, **times
    )


def test_staleness_is_the_median_over_everything_late() -> None:
    few, many = Spread(count=10, p50=9, p50_ms=20.0), Spread(count=100, p50=3, p50_ms=165.0)
    assert staleness(status({"target": few}, {"gradient": many}), "p50") == 3
    assert staleness(status({"target": few}, {"gradient": many}), "p50_ms") == 165.0
    assert staleness(status({"target": few, "gradient": Spread(count=9, p50=1)}), "p50") == 9
    assert staleness(status({}), "p50") is None


def row(name: str, bits: float, *more: float, control: bool = True, accuracy: float = 0.5) -> Row:
    """A row of as many seeds as there are bits, the accuracy falling by 0.1 from one to the next."""
    results = [
        Result(
            seed=seed,
            readings={"full": Reading(accuracy - seed / 10, each)},
            curve=[Mark(seconds=1.0, step=1, accuracy=accuracy - seed / 10, bits=each)],
            staleness_p50=None,
            multiply_adds=1.0,
            steps={},
        )
        for seed, each in enumerate((bits, *more))
    ]
    return Row(name=name, control=control, wiring="skip", results=results, config=config())


def board(*rows: Row, symbols: bool = True) -> Comparison:
    return Comparison(rows=list(rows), symbols=symbols, clock="s")


def test_the_gap_is_that_between_one_alone_and_backpropagation() -> None:
    controls = (row("alone+student", 2.58), row("backprop", 2.36), row("alone", 2.68))
    found = gap_closed(board(row("mach", 2.50, control=False), row("dgl", 2.63, control=False), *controls))
    assert found == {"mach": pytest.approx(0.08 / 0.22), "dgl": pytest.approx(-0.05 / 0.22)}


@pytest.mark.parametrize(("floor", "ceiling"), [(2.0, 2.0), (2.0, 2.1), (2.0, 1.98), (0.056, 0.05)])
def test_without_a_distance_nothing_is_closed(floor: float, ceiling: float) -> None:
    rows = row("alone+student", floor), row("backprop", ceiling), row("mach", 1.0, control=False)
    assert gap_closed(board(*rows)) == {"mach": None}


def test_the_target_is_what_one_alone_reaches() -> None:
    assert default_target(board(row("alone", 2.68), row("backprop", 2.36))) == pytest.approx(2.68)
    assert default_target(board(row("alone", 1.0, accuracy=0.8), symbols=False)) == pytest.approx(0.8)
    assert default_target(board(row("alone", 1.0, control=False), row("alone", 2.0))) == 2.0, "a row of that name"


@pytest.mark.parametrize("symbols", [True, False])
def test_every_seed_of_one_alone_reaches_the_target_that_it_sets(*, symbols: bool) -> None:
    """A mean over seeds is missed by those that end worse."""
    found = board(row("alone", 2.1, 2.2, 2.5, accuracy=0.9), row("backprop", 2.0), symbols=symbols)
    target = default_target(found)
    assert [time_to(target, each.curve, bits=symbols) for each in found.rows[0].results] == [1.0] * 3


def test_the_time_to_a_target_is_the_first() -> None:
    curve = [Mark(seconds=s, step=s, accuracy=a, bits=b) for s, a, b in ((1, 0.5, 3.0), (2, 0.9, 2.0), (3, 0.8, 2.5))]
    assert time_to(0.8, curve, bits=False) == 2
    assert time_to(2.5, curve, bits=True) == 2
    assert time_to(1.0, curve, bits=True) is None


def test_reports_tell_the_curve_of_a_real_run(tmp_path: Path) -> None:
    import msgspec

    from workers.report import Accuracies

    base = Report(component="c0", kind="trainer", incarnation=1, pid=1, device="cpu", state="training")
    told = [
        (0.5, Accuracies()),
        (1.0, Accuracies(student=0.5, step=10)),
        (1.5, Accuracies(student=0.5, step=10)),
        (2.0, Accuracies(student=0.5, child=0.6, step=10)),
    ]
    reports = [msgspec.structs.replace(base, elapsed_s=seconds, accuracy=seen) for seconds, seen in told]
    file = tmp_path / "c0.jsonl"
    file.write_bytes(b"\n".join(map(msgspec.json.encode, reports)) + b"\n")
    assert [(point.seconds, point.child) for point in reported(file)] == [(1.0, None), (2.0, 0.6)]


def test_every_report_of_a_real_run_is_written_or_its_curve_would_lack_examinations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def thin(config: Config, *_: object) -> None:
        raise RunError(f"thin {config.report.thin}")

    monkeypatch.setattr("workers.compare.run_quietly", thin)
    with pytest.raises(RunError, match=r"^thin 0\.0$"):
        Real(("cpu",)).run(config("mach", 0), tmp_path / "r")


def test_what_cannot_be_compared_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="--steps"):
        check([config("mach", 0, "train.minutes=1")])
    with pytest.raises(ConfigError, match="components\\.N\\.stub"):
        check([config("mach", 0, "components.1.stub.drop=0.1")])
