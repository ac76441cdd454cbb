"""When an accuracy was first reached."""

from rich.console import Console

from workers.curves import MARKS, Point, reached, table, time_to

CURVES = {
    "c0": [Point(seconds=1, step=10, student=0.5), Point(seconds=2, step=20, student=0.96, child=0.9)],
    "c1": [Point(seconds=3, step=10, student=0.9), Point(seconds=4, step=20, student=0.8, child=0.95)],
}


def test_the_first_time_counts_even_if_it_falls_again() -> None:
    assert time_to(0.9, CURVES["c1"]) == 3
    assert time_to(0.9, CURVES["c0"], "child") == 2
    assert time_to(0.99, CURVES["c0"]) is None


def test_components_that_never_got_there_are_not_in_the_times() -> None:
    (ninety, most) = reached(CURVES, (0.9, 0.95))
    assert (ninety.by, ninety.of, ninety.first_s, ninety.median_s, ninety.last_s) == (2, 2, 2, 2.5, 3)
    assert (most.by, most.of, most.median_s) == (1, 2, 2)
    (never,) = reached(CURVES, (1.0,))
    assert (never.by, never.first_s) == (0, None)


def test_the_last_of_a_chain_has_no_child_to_get_anywhere_with() -> None:
    curves = {"c0": [Point(seconds=1, step=10, student=0.5, child=0.9)], "c1": [Point(seconds=1, step=10, student=0.9)]}
    assert [(row.by, row.of) for row in reached(curves, (0.9,), "child")] == [(1, 1)]
    assert [(row.by, row.of) for row in reached(curves, (0.9,))] == [(1, 2)]


def test_the_table_leaves_out_what_nobody_reached() -> None:
    console = Console(width=120)
    with console.capture() as printed:
        console.print(table({"student": reached(CURVES, MARKS), "child": reached({"c0": []}, MARKS)}, "virtual s"))
    text = printed.get()
    assert "95 %" in text
    assert "98 %" not in text
    assert "0/1" in text


def test_bits_are_better_when_fewer() -> None:
    curve = [Point(seconds=s, step=s, student=0.1, student_bits=b) for s, b in ((1, 4.0), (2, 3.0), (3, 2.0))]
    assert time_to(3.0, curve, bits=True) == 2
    assert time_to(1.0, curve, bits=True) is None
    console = Console(width=120)
    with console.capture() as printed:
        console.print(table({"student": reached({"c0": curve}, (3.0,), bits=True)}, "virtual s", bits=True))
    assert "time to bits" in printed.get()
    assert printed.get().splitlines()[1].split() == ["3", "student", "1/1", "2.00", "2.00", "2.00"]
