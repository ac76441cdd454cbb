"""Fibres: straight-line code that waits in virtual time, one thread at a time, and none afterwards."""

from collections.abc import Callable

import pytest
import torch

from bus.fibre import Fibre
from bus.post import EdgeMailbox
from bus.virtual import VirtualBus
from mach.messages import Activation, Target

pytestmark = pytest.mark.usefixtures("leaks")


def pair(bus: VirtualBus) -> tuple[EdgeMailbox, EdgeMailbox]:
    return bus.mailbox("a", children=["b"]), bus.mailbox("b", parents=["a"])


def test_waiting_in_the_middle_of_a_body_takes_virtual_time_and_mail_ends_it() -> None:
    bus = VirtualBus(latency_s=0.25)
    parent, child = pair(bus)
    diary: list[tuple[str, float, int]] = []

    def ask() -> None:
        while not parent.room("b"):
            parent.receive(1.0)
        for id in range(3):
            parent.send("b", Activation(id, 0, torch.zeros(2)))
            (letter,) = parent.receive(10.0)
            diary.append(("answer", bus.clock.now, letter.message.id))
        parent.bye()

    def answer() -> None:
        while len(diary) < 3:
            for letter in child.receive(10.0):
                fibres[1].spend(0.5)
                child.send("a", Target(letter.message.id, 0, torch.zeros(2)))

    fibres = [Fibre(bus, "a", ask), Fibre(bus, "b", answer)]
    bus.run(fibres)
    times = [time for _, time, _ in diary]
    assert [id for _, _, id in diary] == [0, 1, 2]
    assert times[1] - times[0] == pytest.approx(0.25 + 0.5 + 0.25)
    assert times[2] - times[1] == pytest.approx(1.0)
    assert all(fibre.ended for fibre in fibres)
    for fibre in fibres:
        fibre.close()


def test_one_that_computes_reads_no_mail_meanwhile_even_across_runs() -> None:
    bus = VirtualBus()
    pair(bus)
    ends: list[float] = []

    def compute() -> None:
        for _ in range(3):
            fibre.spend(1.0)
            ends.append(bus.clock.now)

    fibre = Fibre(bus, "a", compute)
    for until in (0.3, 0.9, 1.7, 9.0):
        bus.run([fibre], until_s=until)
    assert ends == [1.0, 2.0, 3.0]
    assert fibre.ended
    fibre.close()


def test_an_error_in_a_body_comes_out_of_the_run() -> None:
    bus = VirtualBus()
    pair(bus)

    def fail() -> None:
        fibre.spend(1.0)
        raise ZeroDivisionError("in the body")

    fibre = Fibre(bus, "a", fail)
    with pytest.raises(ZeroDivisionError, match="in the body") as error:
        bus.run([fibre])
    assert error.value.__notes__ == ["a"], "whose it was"
    assert fibre.ended
    assert bus.clock.now == 1.0
    fibre.close()


@pytest.mark.parametrize("started", [True, False])
def test_closing_ends_a_body_where_it_waits_and_lets_it_tidy_up(*, started: bool) -> None:
    bus = VirtualBus()
    parent, _ = pair(bus)
    tidied: list[str] = []

    def wait() -> None:
        try:
            while True:
                parent.receive(1.0)
        finally:
            parent.close()
            tidied.append("closed")

    fibre = Fibre(bus, "a", wait)
    if started:
        bus.run([fibre], until_s=5.0)
    fibre.close()
    fibre.close()
    assert tidied == ["closed"] * started


def test_a_killed_one_has_no_more_turns_and_a_paused_one_none_in_this_run() -> None:
    bus = VirtualBus()
    pair(bus)
    turns: list[str] = []

    def body(name: str, then: Callable[[], None]) -> Callable[[], None]:
        def loop() -> None:
            while True:
                turns.append(name)
                then()

        return loop

    killed = Fibre(bus, "a", body("a", lambda: (bus.kill("a"), killed.spend(1.0))))  # type: ignore[func-returns-value]
    paused = Fibre(bus, "b", body("b", lambda: paused.pause()))
    for until in (5.0, 9.0):
        bus.run([killed, paused], until_s=until)
    assert turns == ["a", "b", "b"]
    killed.close()
    paused.close()


def test_a_fibre_needs_a_mailbox() -> None:
    with pytest.raises(ValueError, match="needs a mailbox"):
        Fibre(VirtualBus(), "a", lambda: None)
