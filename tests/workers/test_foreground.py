"""What a run says on a terminal, and what becomes of it when nobody reads: a real pipe, a played supervisor."""

import contextlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from configs.errors import RunError
from configs.load import load
from fakes import status as status_of
from mach.recipes import RECIPES
from workers import foreground, output, screen
from workers.background import BEGUN
from workers.foreground import Opening, supervised
from workers.plan import Plan, make_plan
from workers.report import Checkpoint
from workers.rundir import RunDir
from workers.status import ComponentStatus, Status

UNREAD = f"since {output.UNREAD}"


class Played:
    """A supervisor whose run is over when a test says so, and that stops as told."""

    ends: Status
    left_when_over: Callable[[], None]
    stopped: list[str]

    def __init__(self, plan: Plan) -> None:
        self.status = status_of("training")

    def __enter__(self) -> "Played":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def watch(self) -> Iterator[Status]:
        if not self.stopped and self.ends.state == "stopped":
            print("still training", flush=True)
            yield self.status
            pytest.fail("somebody goes on watching a run that nobody reads")
        self.status = self.ends
        yield self.status
        Played.left_when_over()

    def stop(self, why: str) -> None:
        self.stopped.append(why)


@contextlib.contextmanager
def reader() -> Iterator[Callable[[], None]]:
    """Standard output is a pipe; how its reader leaves."""
    reading, writing = os.pipe()
    left: list[int] = []

    def leave() -> None:
        if not left:
            left.append(reading)
            os.close(reading)

    with os.fdopen(writing, "w", encoding="utf-8") as out, contextlib.redirect_stdout(out):
        yield leave
        print("what is printed afterwards raises nothing", flush=True)
        leave()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    def run(ends: Status, left_when_over: Callable[[], None] = lambda: None, opening: Opening = None) -> int:
        monkeypatch.setattr(foreground, "Supervisor", Played)
        Played.ends, Played.left_when_over, Played.stopped = ends, staticmethod(left_when_over), []
        plan = make_plan(load("digits", (), RECIPES), run="r", directory=tmp_path / "r", sockets=tmp_path)
        return supervised(plan, opening)

    return run


def ended(state: str, exit_code: int, reason: str = "") -> Status:
    return msgspec.structs.replace(status_of(state), exit_code=exit_code, reason=reason)  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", ["", "c1 failed: ended by SIGKILL; see logs/c1.1.log"])
def test_a_reader_that_leaves_before_the_verdict_changes_none(
    play: Callable[..., int], capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    code = 3 if reason else 0
    with reader() as leave:
        assert play(ended("finished", code, reason), leave) == code
    assert capsys.readouterr().err == (f"mach: {reason}\n" if reason else "")


@pytest.mark.parametrize(
    ("code", "more"), [(130, ""), (3, "; c1 failed: could not save its end: No space left on device")]
)
def test_a_reader_that_leaves_stops_the_run_and_the_error_says_so(
    play: Callable[..., int], code: int, more: str
) -> None:
    with reader() as leave:
        leave()
        with pytest.raises(RunError) as raised:
            play(ended("stopped", code, UNREAD + more))
    assert Played.stopped == [UNREAD]
    assert raised.value.exit_code == code
    assert f"nobody reads what is printed any more, so run r was stopped{more}; mach resume r" in str(raised.value)


@pytest.mark.parametrize("saved", [True, False])
def test_a_stopped_run_ends_with_the_way_on_if_anything_was_saved(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, saved: bool
) -> None:
    kept = Checkpoint(step=7 if saved else None)
    row = ComponentStatus(
        component="c0", kind="trainer", incarnation=1, pid=0, device="cpu", state="stopped", checkpoint=kept
    )
    ends = msgspec.structs.replace(ended("stopped", 130, "by SIGTERM"), components=[row])
    foreground.conclude(
        ends,
        make_plan(load("digits", (), RECIPES), run="r", directory=tmp_path / "r", sockets=tmp_path),
        screen.console(),
    )
    told = capsys.readouterr().out.splitlines()
    way = f"run {ends.run}: {tmp_path / 'r'}; go on with mach resume r --runs {tmp_path}"
    assert told[-2:] == ["by SIGTERM", way] if saved else told[-1] == "by SIGTERM"


def test_an_opening_that_nobody_reads_stops_the_run(play: Callable[..., int]) -> None:
    goes_on = partial(print, "run r goes on", flush=True)
    with reader() as leave:
        assert play(ended("finished", 0), opening=goes_on) == 0
        assert Played.stopped == []
        leave()
        with pytest.raises(RunError, match="run r was stopped"):
            play(ended("stopped", 130, UNREAD), opening=goes_on)
    assert Played.stopped == [UNREAD]


def test_a_run_whose_output_lies_on_a_full_disk_goes_on_to_its_verdict(
    play: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []
    monkeypatch.setattr(foreground, "PLAIN_S", 0.0)
    raw = io.BufferedWriter(output.Output("/dev/full", "w"))
    with io.TextIOWrapper(raw, encoding="utf-8") as full, contextlib.redirect_stdout(full):
        assert play(ended("finished", 0), opening=partial(foreground.opened, "run r goes on", told.append)) == 0
    assert told == [BEGUN]
    assert Played.stopped == []
    assert capsys.readouterr().err == "mach: standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_who_watches_without_a_terminal_is_shown_every_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, as_json: bool
) -> None:
    states = iter(("starting", "training", "finished"))
    monkeypatch.setattr(foreground, "LOOK_S", 0.0)
    monkeypatch.setattr(foreground, "read", lambda run: status_of(next(states)))  # type: ignore[arg-type]
    assert foreground.shown(RunDir(tmp_path), watch=True, as_json=as_json).state == "finished"
    told = capsys.readouterr().out
    if as_json:
        assert [json.loads(line)["state"] for line in told.splitlines()] == ["starting", "training", "finished"]
    else:
        assert re.findall("run r  ([a-z]+)", told) == ["starting", "training", "finished"]


def test_the_first_lines_of_a_run_that_goes_on_wait_for_its_first_new_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Resumed:
        def watch(self) -> Iterator[Status]:
            for state, step in (("starting", 20), ("training", 21), ("training", 22)):
                row = ComponentStatus("c0", "trainer", incarnation=2, pid=1, device="cpu", state=state, step=step)  # type: ignore[arg-type]
                yield msgspec.structs.replace(status_of("training"), components=[row])

    monkeypatch.setattr(foreground, "PLAIN_S", math.inf)
    foreground.follow_plainly(Resumed())  # type: ignore[arg-type]
    assert re.findall(r"c0 (\w+) step (\d+)", capsys.readouterr().out) == [("training", "21")]


def test_a_console_without_a_reader_raises_and_ends_no_program() -> None:
    with reader() as leave:
        leave()
        with pytest.raises(BrokenPipeError):
            screen.console().print("hello")
        output.print_nowhere()
