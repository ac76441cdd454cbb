"""An error that is none of ours ends a command with one line, whatever the machine has too little of."""

import os
import tempfile
from multiprocessing import current_process
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import cli
from workers.options import Group
from workers.room import THREADS

NOWHERE = (
    "there is no temporary directory: nothing can be written to /tmp, to /var/tmp or here; make room, or set TMPDIR"
)


def told(error: Exception) -> str:
    """What a command that raises it says, in one line."""

    @click.command()
    def broken() -> None:
        raise error

    done = CliRunner().invoke(Group(commands={"broken": broken}), ["broken"])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1), done.output
    return done.output


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the root cannot be written, nor the working directory."""

    def find() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']")

    monkeypatch.setattr(tempfile, "gettempdir", find)
    monkeypatch.delitem(current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]


def test_a_surprise_leaves_its_traceback_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = told(ValueError("no good"))
    (log,) = tmp_path.glob("mach-*.traceback")
    assert said.startswith(f"mach: ValueError: no good; the traceback is in {log}: please report it, unless")
    assert "ValueError: no good" in log.read_text()


@pytest.mark.usefixtures("nowhere")
def test_a_surprise_without_a_place_for_its_traceback_is_one_line_all_the_same() -> None:
    said = told(ValueError("no good"))
    assert said.startswith("mach: ValueError: no good; the traceback can be written nowhere (No usable temporary dir")
    assert "MACH_DEBUG=1 shows it: please report it" in said


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), BlockingIOError(11, "Resource temporarily unavailable")]
)
def test_a_limit_of_processes_is_no_surprise(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert told(error) == f"mach: {type(error).__name__}: {error}; {THREADS}\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    "words",
    [
        ("launch", "--components", "1", "--steps", "2"),
        ("launch", "--components", "1", "--dry-run"),
        ("simulate", "--components", "1", "--steps", "2"),
    ],
    ids=" ".join,
)
def test_without_a_temporary_directory_a_command_says_what_to_set(words: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, [*words, *(("--runs", str(tmp_path)) if words[0] == "launch" else ())])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1), done.output
    assert done.output.startswith(f"mach: {NOWHERE}")
