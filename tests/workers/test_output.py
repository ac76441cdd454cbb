"""What ends a command that cannot print any more: real processes, real pipes, a disk that is always full."""

import errno
import os
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


def test_what_cannot_be_said_on_standard_error_changes_no_exit_code(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert mach("status", "--runs", str(tmp_path), stderr=full).returncode == 3
        assert mach("no-such-command", stderr=full).returncode == 2
    finally:
        os.close(full)
