"""A comparison on the screen and as JSON."""

import platform

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

from compared import comparison, result, row, untimed
from workers import scoreboard, screen, tally
from workers.timing import timing_of


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


def test_the_document_has_every_seed_and_what_made_it() -> None:
    timing = timing_of("16steps", "0", "5ms", [], 2)
    found = scoreboard.document(replace(comparison(), timing=timing, shared={"loss.student": "--set"}), target=3.05)
    ours = found["mach-stream"]
    assert [each["loss_bits"] for each in ours["by_seed"]] == [2.4, 2.6]
    assert [each["accuracy_student"] for each in ours["by_seed"]] == [0.74, 0.72]
    assert [each["seconds_to_target"] for each in ours["by_seed"]] == [1.0, 2.0]
    assert ours["by_seed"][0]["steps"] == {"c0": 8, "c1": 8}
    assert (ours["by_seed"][0]["seconds"], ours["by_seed"][1]["seed"]) == (3.0, 1)
    assert (ours["staleness_p50_ms"], ours["fewest_steps"]) == (16.0, 8)
    assert ours["config"]["recipe"] == "dgl"
    assert (found["configuration"], found["steps"], found["timing"]["latency_s"]) == ("digits", 8, 0.08)
    assert found["set_for_all"] == {"loss.student": "--set"}
    assert found["versions"]["python"] == platform.python_version()
    assert set(found["versions"]) == {"mach", "torch", "numpy", "pyzmq", "python"}


def test_every_field_of_the_document_is_documented() -> None:
    found = scoreboard.document(comparison(), target=3.05)
    assert set(found) == {"mach-stream", *tally.Found.__struct_fields__}
    assert set(found["mach-stream"]) == set(tally.RowOf.__struct_fields__)
    assert set(found["mach-stream"]["by_seed"][0]) == set(tally.SeedOf.__struct_fields__)
    told = screen.fields_help(tally.RECORDS)
    for record in tally.RECORDS:
        for field in msgspec.structs.fields(record):
            assert screen.meanings(record)[field.name].replace("None", "null") in told


def test_who_made_fewer_steps_is_named_with_its_window() -> None:
    short = [replace(result(seed, full=2.4), steps={"c0": 8, "c1": 5 + seed}) for seed in range(2)]
    found = comparison()
    found.rows.append(row("dgl", short, control=False))
    told = scoreboard.account(found, 3.05)
    assert "Fewer steps than the others: dgl (c1 made 5 of 8, bus.window 32). In stream wiring" in told
    assert scoreboard.document(found, 3.05)["dgl"]["fewest_steps"] == 5
    assert "Here one to the next" not in told
    told = scoreboard.account(replace(found, timing=timing_of("16steps", "2steps", "5ms", [], 2)), 3.05)
    assert "the section below is slower. Here one to the next section takes 35 steps. More steps" in told
    assert "Fewer steps" not in scoreboard.account(comparison(), 3.05)


def test_who_reads_x_again_is_named_and_whose_figures_that_changes() -> None:
    deep = ("method.context=true",)
    found = comparison()
    ours, *controls = found.rows
    found.rows[:] = [row("mach-hop", ours.results, control=False, settings=deep), *controls]
    told = "Every section of mach-hop reads x again (method.context), so that the stream controls do, too"
    assert f"{told}." in scoreboard.account(found, 3.05)
    found.rows.extend(row(name, ours.results, control=False) for name in ("dgl", "mine"))
    assert f"{told}: effort and gap closed of dgl, mine are against networks that read x" in scoreboard.account(
        found, 3.05
    )
    assert scoreboard.document(found, 3.05)["x_again"] == {"stream": ["mach-hop"]}
    assert "x again" not in scoreboard.account(comparison(), 3.05)
    assert scoreboard.document(comparison(), 3.05)["x_again"] == {}


def test_what_is_set_for_all_rows_is_told_once() -> None:
    found = replace(comparison(), shared={"method.update_every": "my.yaml", "loss.student": "--set"})
    told = scoreboard.account(found, 3.05)
    assert "Not the recipes' own: method.update_every (my.yaml), loss.student (--set). What a file sets" in told
    assert "Not the recipes' own" not in scoreboard.account(comparison(), 3.05)


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
    assert "virtual ms" in text
    assert "16 ± 0" in text
    assert len(text.strip().splitlines()) == 4


def test_every_column_that_does_not_tell_its_unit_is_told_below() -> None:
    told = scoreboard.account(comparison(), 3.05)
    assert all(f"{name}: " in told for name in ("Staleness", "To target", "Effort", "Gap closed"))
    assert "Staleness: versions" in told
    assert "then virtual ms from sending to use" in told
    assert "window (bus.window)" in told
    assert "on average over seeds if all came there, else how many did" in told


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
