"""Restarts as exact tables: what happens to a component, and what becomes of it."""

import pytest

from workers.policy import Restart, Restarts, patience_s, pause_s

F, B = "failed", "began"
"""A life fails; a life makes its first step. A number: a checkpoint of that step."""


def live(*events: str | int, max_restarts: int = 100) -> list[float | str]:
    """The pauses before restarts, or the reason for none."""
    account, verdicts = Restarts(max_restarts), []
    for event in events:
        if event == B:
            account.began()
        elif event == F:
            verdict = account.failed()
            verdicts.append(verdict.after_s if isinstance(verdict, Restart) else verdict.why)
        else:
            account.saved(int(event))
    return verdicts


@pytest.mark.parametrize(
    ("events", "verdicts"),
    [
        ((B, F), [0.0]),
        ((B, F, F, F), [0.0, 0.5, 1.0]),
        ((B, F, F, 100, F, F), [0.0, 0.5, 0.0, 0.5]),
        ((B, 100, F, 100, F), [0.0, 0.5]),
        ((B, 100, F, 50, F), [0.0, 0.5]),
        ((B, F, B, F, B, F), [0.0, 0.5, 1.0]),
        ((F, B, F), [0.0, 0.5]),
    ],
    ids=[
        "the first restart is immediate",
        "the pause doubles",
        "a new checkpoint resets it",
        "the old checkpoint is none",
        "an older one, in place of a damaged one, is none",
        "steps without a checkpoint are none",
        "a failure before the first step counts like one after it",
    ],
)
def test_pauses(events: tuple[str | int, ...], verdicts: list[float]) -> None:
    assert live(*events) == verdicts


@pytest.mark.parametrize(
    ("events", "restarts", "why"),
    [
        ((F, F), 1, "2 times before its first step"),
        ((B, F, F, F, F), 3, "after 3 restarts in a row that brought no new checkpoint"),
        ((B, 1, F, F, F, F), 3, "after 3 restarts in a row that brought no new checkpoint"),
    ],
)
def test_a_spent_budget_ends_it(events: tuple[str | int, ...], restarts: int, why: str) -> None:
    *pauses, last = live(*events)
    assert len(pauses) == restarts
    assert isinstance(last, str)
    assert why in last


@pytest.mark.parametrize("most", [0, 1, 7])
def test_whatever_its_progress_restarts_are_limited_in_all(most: int) -> None:
    events = [event for step in range(most + 1) for event in (B, step, F)]
    *pauses, last = live(*events, max_restarts=most)
    assert pauses == [0.0] * most
    assert isinstance(last, str)
    assert f"no restart left of {most}" in last


def test_the_pause_grows_from_nothing_to_half_a_minute() -> None:
    assert [pause_s(n) for n in range(10)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_patience_is_five_slow_steps_or_the_set_time() -> None:
    assert patience_s(10_000, None) == 10.0
    assert patience_s(10_000, 400.0) == 10.0
    assert patience_s(10_000, 4_000.0) == 20.0
