"""One process as its supervisor sees it, with a fake process and a real pair of sockets."""

import socket
from collections.abc import Iterator

import msgspec
import pytest

from workers.member import STARTING_S, Member
from workers.plan import ProcessPlan
from workers.report import Report


class FakeProcess:
    pid = 4711

    def __init__(self) -> None:
        self.exitcode: int | None = None
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1


class Harness:
    def __init__(self, kind: str = "trainer") -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = FakeProcess()
        plan = ProcessPlan(name="c1", index=1, kind=kind, device="cpu", children=("c2",), parents=("c0",))
        self.member = Member(plan, self.process, ours, silent_s=3.0, now=0.0)

    def say(self, state: str, step: int = 0, reason: str = "") -> None:
        report = Report(
            component="c1", kind="trainer", incarnation=1, pid=4711, device="cpu", state=state, step=step, reason=reason
        )
        self.theirs.send(msgspec.msgpack.encode(report))

    def end(self, code: int, now: float = 1.0) -> None:
        self.process.exitcode = code
        self.member.read(now)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.theirs.close()
    harness.member.channel.close()


def test_it_is_starting_until_it_says_something(harness: Harness) -> None:
    status = harness.member.status(1.0)
    assert (status.state, status.pid, status.last_seen_s) == ("starting", 4711, None)
    assert not harness.member.stalled(STARTING_S - 1)
    assert harness.member.stalled(STARTING_S + 1)


def test_its_newest_report_counts_and_silence_shows(harness: Harness) -> None:
    harness.say("training", step=1)
    harness.say("training", step=9)
    harness.member.read(10.0)
    assert harness.member.status(12.0).state == "training"
    assert harness.member.status(12.0).last_seen_s == 2.0
    assert harness.member.status(12.0).step == 9
    stalled = harness.member.status(14.0)
    assert stalled.state == "stalled"
    assert "not heard of for 4 s" in stalled.reason
    assert harness.member.stalled(14.0)
    assert not harness.member.stalled(14.0, times=2)


def test_a_good_end_keeps_the_last_report(harness: Harness) -> None:
    harness.say("finished", step=100)
    harness.end(0)
    assert not harness.member.failed
    assert harness.member.status(99.0).state == "finished"
    assert harness.member.status(99.0).exit_code == 0


def test_a_signal_is_named_with_advice(harness: Harness) -> None:
    harness.say("training", step=5)
    harness.end(-9)
    assert harness.member.failed
    assert "SIGKILL" in harness.member.cause
    assert "memory" in harness.member.cause
    assert "logs/c1.log" in harness.member.cause
    assert harness.member.status(2.0).step == 5


def test_an_exception_is_told_in_its_own_words_and_keeps_the_numbers(harness: Harness) -> None:
    harness.say("training", step=5)
    harness.say("failed", reason="ValueError: no such thing")
    harness.end(1)
    status = harness.member.status(2.0)
    assert (status.state, status.step, status.reason) == ("failed", 5, "ValueError: no such thing")


def test_a_refusal_before_the_first_step_is_the_sentence_alone(harness: Harness) -> None:
    harness.say("failed", reason="data.path: there is nothing")
    harness.end(2)
    assert harness.member.refused
    assert harness.member.cause == "data.path: there is nothing"


def test_what_is_said_just_before_the_end_is_heard(harness: Harness) -> None:
    harness.say("training", step=7)
    harness.say("finished", step=8)
    harness.end(0)
    assert harness.member.done
    assert harness.member.steps == 8


def test_orders_reach_it_and_a_closed_end_is_no_error(harness: Harness) -> None:
    harness.member.order("stop")
    assert harness.theirs.recv(100) == b"stop"
    harness.theirs.close()
    harness.member.order("stop")
    harness.member.read(1.0)


def test_it_is_killed_once_and_says_why(harness: Harness) -> None:
    harness.say("training", step=3)
    harness.member.read(1.0)
    harness.member.kill("stopped: killed, since it did not leave in time")
    harness.member.kill("another reason")
    harness.end(-9)
    assert harness.process.killed == 1
    assert harness.member.status(2.0).state == "stopped"
    assert harness.member.status(2.0).reason.endswith("did not leave in time")


def test_a_stub_is_always_done() -> None:
    harness = Harness("stub")
    assert harness.member.done
    harness.theirs.close()
    harness.member.channel.close()
