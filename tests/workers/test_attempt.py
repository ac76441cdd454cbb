"""One life of a component as its supervisor sees it, with a fake process and a real pair of sockets."""

import resource
from collections.abc import Iterator

import pytest

from fakes import Life
from workers.forkserver import HELPER
from workers.room import THREADS


@pytest.fixture
def life() -> Iterator[Life]:
    life = Life()
    yield life
    life.close()


def ended(life: Life, code: int) -> str:
    life.process.exitcode = code
    life.attempt.read(1.0)
    return life.attempt.verdict()


def test_its_newest_report_counts_and_silence_is_measured(life: Life) -> None:
    assert life.attempt.silence_s(3.0) == 3.0
    life.say("training", step=1)
    life.say("training", step=9)
    life.attempt.read(10.0)
    assert life.attempt.report is not None
    assert life.attempt.report.step == 9
    assert life.attempt.silence_s(12.0) == 2.0


def test_what_is_said_just_before_the_end_is_heard(life: Life) -> None:
    life.say("training", step=7)
    life.say("finished", step=8)
    ended(life, 0)
    assert life.attempt.left_well
    assert life.attempt.done


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, ("ended by SIGKILL", "out of memory", "lower train.batch_size")),
        (-11, ("ended by SIGSEGV", "the stack")),
        (-7, ("ended by SIGBUS", "cut short")),
        (-6, ("ended by SIGABRT", "its log says why")),
        (-15, ("ended by SIGTERM",)),
        (0, ("left without finishing, exit code 0",)),
        (3, ("left without a word, exit code 3",)),
        (255, ("forkserver",)),
    ],
)
def test_how_it_ended_is_named(life: Life, code: int, words: tuple[str, ...]) -> None:
    life.say("training", step=5)
    verdict = ended(life, code)
    assert all(word in verdict for word in words)
    assert not life.attempt.left_well


@pytest.mark.parametrize(
    ("cause", "verdict"),
    [
        ("", "left without a word, exit code 255"),
        ("was killed (SIGKILL)", f"ended with {HELPER}, which was killed (SIGKILL)"),
    ],
)
def test_who_ends_with_its_forkserver_is_told_how_that_ended(
    life: Life, monkeypatch: pytest.MonkeyPatch, cause: str, verdict: str
) -> None:
    monkeypatch.setattr("workers.forkserver.cause", lambda helper: cause)
    assert ended(life, 255) == verdict


@pytest.mark.parametrize("limit", ["", "180 MB"])
def test_who_was_killed_is_told_what_its_control_group_may_have(
    life: Life, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr("workers.attempt.group", lambda: limit)
    assert ("; its control group (container) may have 180 MB" in ended(life, -9)) == (limit != "")


def test_what_it_said_before_it_had_a_log_is_told(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.forkserver.heard", lambda: ["Traceback", "ImportError: no such thing"])
    assert ended(life, 1) == "left without a word, exit code 1: ImportError: no such thing"


def test_want_of_processes_brings_its_advice(life: Life) -> None:
    life.say("failed", reason="RuntimeError: can't start new thread")
    assert ended(life, 1) == f"RuntimeError: can't start new thread; {THREADS}"


@pytest.mark.parametrize("seconds", [3600, resource.RLIM_INFINITY])
def test_who_is_killed_under_a_limit_of_cpu_time_may_have_reached_it(
    life: Life, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (seconds, seconds))
    life.say("training", step=5)
    assert ("ulimit -t" in ended(life, -9)) == (seconds == 3600)


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError: ",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "OSError: [Errno 12] Cannot allocate memory",
        "RuntimeError: std::bad_alloc",
    ],
)
def test_every_way_to_say_that_there_is_no_memory_is_known(life: Life, error: str) -> None:
    life.say("failed", reason=error)
    verdict = ended(life, 1)
    assert verdict.startswith(error)
    assert "out of memory: lower train.batch_size" in verdict


def test_an_exception_is_told_in_its_own_words_and_keeps_the_numbers(life: Life) -> None:
    life.say("training", step=5)
    life.say("failed", reason="ValueError: no such thing")
    assert ended(life, 1) == "ValueError: no such thing"
    assert life.attempt.report is not None
    assert life.attempt.report.step == 5


def test_a_signal_that_was_announced_is_named_in_its_own_words(life: Life) -> None:
    life.say("failed", reason="its script says so")
    assert ended(life, -9) == "ended by SIGKILL (its script says so)"


def test_only_before_its_first_step_it_is_refused() -> None:
    for step, refused in ((0, True), (5, False)):
        life = Life()
        life.say("training", step=step)
        life.say("failed", reason="data.path: there is nothing")
        ended(life, 2)
        assert life.attempt.refused is refused
        life.close()


def test_it_is_killed_for_the_first_reason(life: Life) -> None:
    life.attempt.kill("hung")
    life.attempt.kill("another reason")
    assert ended(life, -9) == "hung"
    assert life.process.killed == 2


def test_orders_reach_it_and_a_closed_end_is_no_error(life: Life) -> None:
    life.attempt.order("stop")
    assert life.orders() == ["stop"]
    life.theirs.close()
    life.attempt.order("stop")
    life.attempt.read(1.0)
