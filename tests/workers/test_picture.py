"""A comparison as a picture."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from compared import comparison, result, untimed
from configs.errors import ConfigError
from configs.load import load
from mach.recipes import RECIPES
from workers import picture, show
from workers.compare import Comparison
from workers.rows import Rows
from workers.timing import timing_of


def test_curves_are_averaged_at_the_steps_that_all_seeds_have() -> None:
    curves = [result(0, full=1.0).curve, result(1, full=1.0).curve[:1]]
    assert picture.band(curves, bits=True) == ([1.0], [pytest.approx(3.05)], [pytest.approx(0.0707, abs=1e-3)])


@pytest.mark.parametrize("found", [comparison(), untimed()], ids=["timed", "controls without time"])
def test_a_picture_is_a_png(tmp_path: Path, found: Comparison) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    picture.draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="there is no directory"):
        picture.draw(comparison(), tmp_path / "nowhere/curves.png")


def test_a_picture_says_what_was_compared_and_one_point_is_seen() -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    found = replace(comparison(), timing=timing_of("16steps", "0", "5ms", [], 2))
    for one in (*found.rows[0].results, *found.rows[1].results):
        del one.curve[1:]
    (axes,) = picture.drawn(found).axes
    assert axes.get_title() == "digits: 8 steps, latency 80 ms, 2 seeds"
    assert [line.get_marker() for line in axes.lines] == ["o", "o", "."]
    assert [line.get_fillstyle() for line in axes.lines] == ["full", "none", "full"], "a control's is hollow"
    assert picture.headline(comparison()) == "digits: 8 steps, real processes, 2 seeds"


def test_a_picture_that_cannot_be_put_there_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(show, "compare", lambda *_: trained.append("all of it"))

    def compare(png: Path) -> None:
        config = load("digits", ("recipe=mach",), RECIPES)
        show.comparison(
            Rows("digits", {"mach": [config]}, {"skip": [config]}, {}), None, None, target=None, as_json=False, png=png
        )

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
    monkeypatch.setattr(picture.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install .mach-train\[plot\]"):
        picture.check_plot(tmp_path / "a.png")
