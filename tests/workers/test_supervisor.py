"""The supervisor's clock: monotonic, and fair to components while the launcher itself was away."""

from workers.supervisor import AWAY_S, Clock


class FakeTime:
    """A monotonic clock in the tester's hand."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def test_it_counts_from_the_launch() -> None:
    time = FakeTime()
    clock = Clock(time)
    assert clock.look() == 0.0
    time.now += 0.25
    assert clock.look() == 0.25
    assert clock.now == clock.elapsed_s() == 0.25


def test_time_in_which_the_launcher_was_stopped_is_nobodys_silence() -> None:
    time = FakeTime()
    clock = Clock(time)
    time.now += 3600.0
    assert clock.look() == AWAY_S
    time.now += 0.25
    assert clock.look() == AWAY_S + 0.25
    assert clock.elapsed_s() == 3600.25
