"""The door for tests: pytest loads this from any environment that has MACH installed.

It offers one fixture, `neighbourhood`, and imports nothing before a test asks for it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from workers.neighbourhood import Neighbourhood


@pytest.fixture
def neighbourhood() -> "Iterator[Callable[..., Neighbourhood]]":
    """Makes one real component between stub neighbours; the arguments are those of `Neighbourhood`.

    Example:
        def test_my_component_answers_its_parent(neighbourhood):
            near = neighbourhood("digits", child={"latency_ms": 20, "drop": 0.1})
            near.run(steps=100)
            assert len(near.sent(Target, to="c0")) > 50
    """
    from workers.neighbourhood import Neighbourhood

    made: list[Neighbourhood] = []

    @functools.wraps(Neighbourhood, updated=())
    def make(*args: Any, **options: Any) -> "Neighbourhood":
        made.append(Neighbourhood(*args, **options))
        return made[-1]

    yield make
    for near in made:
        near.close()
