"""What ends a command that cannot print any more: real processes, real pipes, a disk that is always full."""

import errno
import io
import os
import resource
from pathlib import Path

import pytest

from conftest import mach
from fakes import status
from workers import output
from workers.rundir import RunDir
from workers.status import write

SHOWING = [("runs",), ("status",), ("status", "--watch", "--json"), ("logs",), ("launch", "--help")]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = RunDir(tmp_path / "runs" / "r")
    run.make()
    (run.path / "logs" / "c0.1.log").write_text("a line\n")
    write(run, status("finished"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return run.path.parent


@pytest.mark.parametrize("words", SHOWING, ids=" ".join)
def test_a_disk_that_is_full_is_one_sentence_and_no_traceback(runs: Path, words: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = mach(*words, "--runs", str(runs), stdout=full)
    finally:
        os.close(full)
    sentence = "mach: standard output cannot be written (No space left on device); make room, or send it elsewhere\n"
    assert (done.returncode, done.stderr) == (1, sentence)
    assert not list((runs.parent / "temporary").iterdir())


@pytest.mark.parametrize("words", SHOWING, ids=" ".join)
def test_a_reader_that_leaves_ends_what_only_shows_without_a_word(runs: Path, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = mach(*words, "--runs", str(runs), stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BrokenPipeError(output.UNREAD), "nobody reads what is printed any more"),
        (output.Unwritable(errno.ENOSPC, "full"), "standard output cannot be written (full)"),
    ],
)
def test_what_is_not_to_be_done_unseen_is_interrupted(
    capfd: pytest.CaptureFixture[str], error: BrokenPipeError, why: str
) -> None:
    earlier = os.dup(1)
    try:
        with pytest.raises(SystemExit) as ended, output.seen():
            raise error
    finally:
        os.dup2(earlier, 1)
        os.close(earlier)
    assert ended.value.code == 130
    assert capfd.readouterr().err == f"mach: interrupted, since {why}\n"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_lines_of_a_run_that_a_full_disk_does_not_take_are_written_whole_or_not_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: bool
) -> None:
    log = tmp_path / "launcher.log"
    raw = io.BufferedWriter(output.Output(log, "w"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = [f"c{step % 2} step {step} ".ljust(99, ".") for step in range(200)]
    with io.TextIOWrapper(raw, encoding="utf-8", line_buffering=unbuffered) as out, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", out)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1050, hard))
        try:
            for step in range(0, 198, 2):
                output.in_passing("\n".join(lines[step : step + 2]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert log.stat().st_size == 1050
        output.in_passing(lines[198])
    kept = log.read_text().splitlines()
    assert set(kept) < set(lines)
    assert len(kept) > 11
    assert (kept[0], kept[-1]) == (lines[0], lines[198])


def test_what_cannot_be_said_on_standard_error_changes_no_exit_code(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert mach("status", "--runs", str(tmp_path), stderr=full).returncode == 3
        assert mach("no-such-command", stderr=full).returncode == 2
    finally:
        os.close(full)
