"""A comparison on the screen, as JSON and as a picture."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from configs.errors import ConfigError
from configs.load import load
from mach.recipes import RECIPES
from mach.whole import Reading
from workers import scoreboard, show
from workers.compare import Comparison, Mark, Result, Row


def result(seed: int, *, curve: bool = True, **bits: float) -> Result:
    readings = {kind: Reading(1.0 - value / 10, value) for kind, value in bits.items()}
    marks = [Mark(seconds=s, step=s, accuracy=0.4 + s / 10, bits=4.0 - s + seed / 10) for s in (1, 2)] if curve else []
    return Result(seed=seed, readings=readings, curve=marks, staleness_p50=2.0, multiply_adds=300.0)


def comparison(*, symbols: bool = True) -> Comparison:
    two = [result(0, student=2.6, child=2.5, full=2.4), result(1, student=2.8, child=2.7, full=2.6)]
    plain = [result(0, full=2.0), result(1, full=2.2)]
    floor = [result(0, student=3.0, full=3.0), result(1, student=3.2, full=3.2)]
    rows = [
        Row(name="mach-stream", control=False, wiring="stream", results=two),
        Row(name="backprop", control=True, wiring="stream", results=plain),
        Row(name="alone+student", control=True, wiring="stream", results=floor),
    ]
    return Comparison(rows=rows, symbols=symbols, clock="virtual s")


def test_the_document_has_a_record_a_recipe_and_the_gaps() -> None:
    found = scoreboard.document(comparison(), target=3.05)
    ours = found["mach-stream"]
    assert ours["loss_bits"] == pytest.approx(2.5)
    assert ours["loss_bits_sd"] == pytest.approx(0.1414, abs=1e-3)
    assert ours["loss_bits_student"] == pytest.approx(2.7)
    assert ours["staleness_p50"] == 2.0
    assert ours["multiply_adds"] == 300.0
    assert ours["seconds_to_target"] == 1.5  # seed 0 after 1 s, seed 1 after 2
    assert found["gap_closed"] == {"mach-stream": pytest.approx(0.6)}
    assert set(found["controls"]["stream"]) == {"backprop", "alone+student"}
    assert found["controls"]["stream"]["backprop"]["loss_bits_student"] is None


def test_a_control_that_could_not_be_made_is_not_there_and_both_say_why() -> None:
    found = replace(comparison(), unmade={"stream": {"wide": "one comes to 3 parameters, all to 9"}})
    assert scoreboard.document(found, 3.05)["left_out"] == {
        "controls.stream.wide": "one comes to 3 parameters, all to 9"
    }
    assert "No control wide (stream): one comes to 3 parameters, all to 9." in scoreboard.account(found, 3.05)
    assert scoreboard.document(comparison(), 3.05)["left_out"] == {}
    assert "No control" not in scoreboard.account(comparison(), 3.05)


def test_where_there_is_no_distance_to_close_the_document_says_so() -> None:
    ours, ceiling, floor = comparison().rows
    found = scoreboard.document(
        replace(comparison(), rows=[ours, ceiling, replace(floor, results=ceiling.results)]), 3.05
    )
    assert found["gap_closed"] == {"mach-stream": None}
    assert "backprop ends with no fewer bits than alone+student" in found["left_out"]["gap_closed.mach-stream"]


def test_a_target_that_one_seed_misses_has_no_mean_time() -> None:
    found = scoreboard.document(comparison(), target=2.05)
    assert found["mach-stream"]["seconds_to_target"] is None
    assert scoreboard.spread([1.0, None], ".2f") == "1 of 2"
    assert scoreboard.spread([None, None], ".2f") == "–"
    assert scoreboard.spread([1.0, 3.0], ".1f") == "2.0 ± 1.4"
    assert scoreboard.spread([1.0], ".1f") == "1.0"


@pytest.mark.parametrize(("symbols", "cell"), [(True, "2.500 ± 0.141"), (False, "75.00 ± 1.41")])
def test_the_table_shows_means_and_deviations(*, symbols: bool, cell: str) -> None:
    console = Console(width=200)
    with console.capture() as printed:
        console.print(scoreboard.table(comparison(symbols=symbols), 3.05 if symbols else 0.5))
    text = printed.get()
    assert cell in text
    assert "control backprop" in text
    assert "0.60" in text
    assert len(text.strip().splitlines()) == 4


def test_every_column_that_does_not_tell_its_unit_is_told_below() -> None:
    told = scoreboard.account(comparison(), 3.05)
    assert all(f"{name}: " in told for name in ("Staleness", "To target", "Effort", "Gap closed"))
    assert "Staleness: versions" in told


def untimed() -> Comparison:
    """Recipes on GPUs, controls on the CPU."""
    found = comparison()
    for row in found.rows:
        for one in row.results if row.control else ():
            one.curve[:] = [replace(mark, seconds=None) for mark in one.curve]
    return found


def test_controls_whose_time_is_not_known_have_none_and_a_note_says_why() -> None:
    found = scoreboard.document(untimed(), target=3.05)
    times = [each["seconds_to_target"] for each in found["controls"]["stream"].values()]
    assert (found["mach-stream"]["seconds_to_target"], times) == (1.5, [None, None])
    console = Console(width=200)
    with console.capture() as printed:
        console.print(scoreboard.table(untimed(), 3.05))
    [backprop] = [line for line in printed.get().splitlines() if "control backprop" in line]
    assert "–" in backprop
    assert "Controls have no time to target: " in scoreboard.account(untimed(), 3.05)
    assert "Controls have no" not in scoreboard.account(comparison(), 3.05)


def test_curves_are_averaged_at_the_steps_that_all_seeds_have() -> None:
    curves = [result(0, full=1.0).curve, result(1, full=1.0).curve[:1]]
    assert scoreboard.band(curves, bits=True) == ([1.0], [pytest.approx(3.05)], [pytest.approx(0.0707, abs=1e-3)])


@pytest.mark.parametrize("found", [comparison(), untimed()], ids=["timed", "controls without time"])
def test_a_picture_is_a_png(tmp_path: Path, found: Comparison) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    scoreboard.draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="there is no directory"):
        scoreboard.draw(comparison(), tmp_path / "nowhere/curves.png")


def test_a_picture_that_cannot_be_put_there_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(scoreboard.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(show, "compare", lambda *_: trained.append("all of it"))

    def compare(png: Path) -> None:
        config = load("digits", ("recipe=mach",), RECIPES)
        show.comparison(["mach"], lambda *_: config, None, None, seeds=1, target=None, as_json=False, png=png)

    folder = tmp_path / "b.png"
    folder.mkdir()
    for wrong, said in (
        (tmp_path / "nowhere" / "a.png", "there is no directory"),
        (folder, "is a directory"),
        (tmp_path / "a.xyz", r"let its name end in \.png"),
    ):
        with pytest.raises(ConfigError, match=said):
            compare(wrong)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="may not be written"):
        compare(tmp_path / "a.png")
    assert not trained
    assert list(tmp_path.iterdir()) == [folder], "trying it out leaves nothing"


def test_without_matplotlib_it_is_one_sentence_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoreboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install .mach-train\[plot\]"):
        scoreboard.check_plot(tmp_path / "a.png")
