"""Words of the command line into seconds."""

import pytest

from configs.errors import ConfigError
from workers.timing import seconds, timing_of


@pytest.mark.parametrize(
    ("text", "value"),
    [("50ms", 0.05), ("0.2s", 0.2), (".5 s", 0.5), ("80us", 80e-6), ("8steps", 0.04), ("1step", 0.005), ("0", 0.0)],
)
def test_durations_have_units(text: str, value: float) -> None:
    assert seconds("--latency", text, step_s=0.005) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "ms", "", "-5ms", "5 min", "nan", "1e3", "5ms6ms"])
def test_what_is_no_duration_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--latency .*: is no duration; write a number and its unit"):
        seconds("--latency", text, step_s=0.005)


def test_steps_make_no_sense_where_they_are_defined() -> None:
    with pytest.raises(ConfigError, match=r"as in 50ms, 0.2s, 80us$"):
        seconds("--compute", "8steps")


def test_a_timing_with_exceptions_and_stragglers() -> None:
    timing = timing_of("8steps", "1ms", "5ms, c2=50ms", ["c1=10x", "c2=2x"], 4)
    assert timing.latency_s == pytest.approx(0.04)
    assert timing.jitter_s == pytest.approx(0.001)
    assert [times[0] for times in timing.compute_s] == pytest.approx([0.005, 0.05, 0.1, 0.005])


@pytest.mark.parametrize(
    ("compute", "stragglers", "sentence"),
    [
        ("c1=5ms", [], "give one value for all"),
        ("5ms,6ms", [], "give one value for all"),
        ("5ms,c4=1ms", [], "no component 'c4'; this run has c0 to c3"),
        ("0ms", [], "a step takes time"),
        ("5ms", ["c1"], "as in c1=10x"),
        ("5ms", ["c1=10"], "as in c1=10x"),
        ("5ms", ["c1=0x"], "as in c1=10x"),
        ("5ms", ["c1=0.5x"], "how many times slower, 1x or more"),
        ("5ms", ["d1=2x"], "no component 'd1'"),
    ],
)
def test_a_wrong_timing_is_one_sentence(compute: str, stragglers: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        timing_of("1ms", "0", compute, stragglers, 4)
    assert "\n" not in str(caught.value)
