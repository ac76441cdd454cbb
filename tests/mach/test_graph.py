"""Who is whose child."""

import pytest

from configs.errors import ConfigError
from mach.graph import children_of, name_of, parents_of, sizes_of


def test_named_graphs() -> None:
    assert children_of("chain", 3) == ((1,), (2,), ())
    assert children_of("ring", 3) == ((1,), (2,), (0,))
    assert children_of("ring", 1) == ((),)
    assert children_of("kgraph", 3) == ((1, 2), (0, 2), (0, 1))


def test_parents_are_the_same_edges_seen_from_below() -> None:
    children = ((1, 2), (2,), ())
    assert children_of(children, 3) == children
    assert parents_of(children) == ((), (0,), (0, 1))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (((1,), ()), "2 rows for 3"),
        (((0,), (), ()), "row 0 names 0"),
        (((3,), (), ()), "row 0 names 3"),
        (((), (-1,), ()), "row 1 names -1"),
        (((1, 1), (), ()), "row 0 names 1"),
        ("star", "none of chain, ring"),
    ],
)
def test_illegal_graphs_are_refused_with_the_row(graph: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        children_of(graph, 3)  # type: ignore[arg-type]


def test_everything_below_is_counted_once_for_every_way_that_leads_there() -> None:
    assert sizes_of(children_of("chain", 4)) == (4, 3, 2, 1)
    assert sizes_of(((1, 2), (3,), (3,), ())) == (5, 2, 2, 1)
    for graph in ("ring", "kgraph"):
        with pytest.raises(ConfigError, match=r"graph: model\.join sum and mean .* cycle"):
            sizes_of(children_of(graph, 3))


def test_names() -> None:
    assert [name_of(i) for i in (0, 11)] == ["c0", "c11"]
