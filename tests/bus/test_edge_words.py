"""An edge under every word of mishaps at every point: lost, doubled, swapped, late, foreign, lives that begin anew.

`Line.check` after every event: at most W in flight, every activation accounted for exactly once, every frame that came
used or dropped for exactly one reason, every frame that never came counted once. `healed` at the end: every place in
the window is back, and the edge carries on.
"""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from badline import EXCHANGE, LEAVES, MISHAPS, ORDINARY, Line, fresh, full, healed, opened
from bus.rules import State

Mishap = Callable[[Line], object]


def suffer(line: Line, word: tuple[Mishap, ...] | list[Mishap]) -> None:
    for mishap in word:
        mishap(line)
        line.check()


def told(word: tuple[Mishap, ...] | list[Mishap]) -> list[str]:
    return [mishap.__name__ for mishap in word]


def exchanges_with(count: int, *, within: int = len(EXCHANGE)) -> Iterator[list[Mishap]]:
    """The whole exchange with `count` mishaps, in every choice, put in at every choice of points `within` reach."""
    for points in itertools.combinations_with_replacement(range(len(EXCHANGE) + 1), count):
        if points[-1] - points[0] > within:
            continue
        for word in itertools.product(MISHAPS, repeat=count):
            made = list(EXCHANGE)
            for point, mishap in zip(reversed(points), reversed(word), strict=True):
                made.insert(point, mishap)
            yield made


def test_the_exchange_itself_is_whole() -> None:
    line = fresh()
    suffer(line, EXCHANGE)
    assert (line.parent.asked, line.parent.answered, line.parent.in_flight()) == (2, 2, 0)
    assert not line.down
    assert not line.up
    assert not line.parent.dropped
    assert not line.child.dropped
    assert line.below.verdicts == {"used": 5}  # hello, two activations, two gradients


def test_a_mishap_at_every_point_of_the_exchange_keeps_the_books_and_heals() -> None:
    for word in exchanges_with(1):
        line = fresh()
        suffer(line, word)
        assert healed(line), told(word)


def test_two_mishaps_at_near_points_of_the_exchange_keep_the_books_and_heal() -> None:
    """Every fourth choice; all of them, and those of points far apart, at night."""
    for word in itertools.islice(exchanges_with(2, within=1), 0, None, 4):
        line = fresh()
        suffer(line, word)
        assert healed(line), told(word)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(8))
def test_two_mishaps_at_every_two_points_of_the_exchange_all_night(part: int) -> None:
    for word in itertools.islice(exchanges_with(2), part, None, 8):
        line = fresh()
        suffer(line, word)
        assert healed(line), told(word)


@pytest.mark.parametrize("start", [fresh, opened, full])
def test_every_short_word_of_mishaps_keeps_the_books_and_heals(start: Callable[[], Line]) -> None:
    for word in itertools.product(MISHAPS, repeat=3):
        line = start()
        suffer(line, word)
        assert healed(line), told(word)


@pytest.mark.parametrize("seed", range(150))
def test_long_words_of_mishaps_keep_the_books_and_heal(seed: int) -> None:
    rng = random.Random(seed)
    line = opened()
    suffer(line, rng.choices(MISHAPS, k=200))
    assert healed(line)


@pytest.mark.parametrize("leave", LEAVES)
def test_a_bye_at_every_point_ends_the_edge_on_both_sides(leave: Mishap) -> None:
    for word in itertools.product(ORDINARY, repeat=2):
        line = full()
        for mishap in word:
            mishap(line)
        leave(line)
        for _ in range(2):
            line.check()
            line.calm()
        assert line.parent.state is State.CLOSED
        assert line.child.state is State.CLOSED
        assert line.parent.in_flight() == 0
        assert not line.parent.awaits()
        assert line.parent.due(line.now) is None


@pytest.mark.nightly
@pytest.mark.parametrize("start", [fresh, opened, full])
@pytest.mark.parametrize("first", MISHAPS)
def test_every_word_of_four_mishaps_all_night(start: Callable[[], Line], first: Mishap) -> None:
    for rest in itertools.product(MISHAPS, repeat=3):
        line = start()
        suffer(line, (first, *rest))
        assert healed(line), told((first, *rest))
