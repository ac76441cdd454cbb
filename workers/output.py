"""What a command prints: where it goes, and how the command ends when it cannot go there any more.

A reader that has left (`mach logs | head`) and a disk that is full are both a BrokenPipeError to whoever prints: chaos
is interrupted by it, every other command ends. A reader who leaves has what it wanted: exit code 0, and not a word. A
disk has lost it: one sentence, exit code 1. A run is stopped when its reader leaves (`workers/foreground.py`); a full
disk costs it lines (`in_passing`). What a terminal cannot show is a ? there, and what cannot be said on standard error
is lost; neither ends anything. Knows no command.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from workers.room import room

UNREAD = "nobody reads what is printed any more"
INTERRUPTED = 130
DONE_HELP = "Exit code: 0 done, 1 standard output cannot be written, 2 cannot be done, 3 no such run, 130 interrupted."
"""Of a command that only shows or asks, for people."""
TRAINED_HELP = (
    "Exit code: 0 done, 1 training failed, as when it diverges, or standard output cannot be written, 2 it cannot be "
    "run as asked, 3 of simulate: a component made no step or never heard a child; 130 interrupted."
)
"""Of a command that trains to show what comes of it, for people."""


class Unwritable(BrokenPipeError):
    """What keeps standard output from being written, though its reader is there."""


class Output(io.FileIO):
    """Standard output."""

    def write(self, data: Any, /) -> int:
        """As much as it takes."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise BrokenPipeError(UNREAD) from None  # with its number click would end the command, with 1
        except OSError as error:
            raise Unwritable(error.errno, error.strerror) from None


class Remarks(io.FileIO):
    """Standard error."""

    def write(self, data: Any, /) -> int:
        """As much as it takes; of what it does not, nobody can be told."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def take() -> None:
    """From now on print so."""
    for name, number, kind in (("stdout", 1, Output), ("stderr", 2, Remarks)):
        was = getattr(sys, name)  # None: it was closed
        if was is None or isinstance(was, io.TextIOWrapper):
            lines = was is None or was.line_buffering or was.write_through
            encoding = "utf-8" if was is None else was.encoding
            raw = io.BufferedWriter(kind(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, errors="replace", line_buffering=lines))


def in_passing(text: str) -> None:
    """Print a line, or a block of them, of a run that goes on. A disk without room for it costs the line, not the run:
    the first 8 KB, which the stream keeps, are written when there is room again, and later ones are lost, whole.
    """
    with suppress(Unwritable):
        print(f"{text}\n", end="", flush=True)  # in one piece, also where every line break is flushed


def lost(error: BrokenPipeError) -> str:
    """Why nothing can be printed any more."""
    return f"standard output cannot be written ({error.strerror})" if isinstance(error, Unwritable) else UNREAD


def interrupted(error: BaseException | None) -> bool:
    """Whether it is a Ctrl-C in disguise: Python 3.11 makes a RuntimeError of one that comes while it makes a class."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def print_nowhere() -> None:
    """From now on, so that what still waits to be printed raises no second time."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def seen() -> Iterator[None]:
    """What is not to be done unseen: it is interrupted when nothing can be printed any more."""
    try:
        yield
    except BrokenPipeError as error:
        print_nowhere()
        print(f"mach: interrupted, since {lost(error)}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def run(command: click.Command) -> int:
    """Run the command line of this process; its exit code."""
    take()
    try:
        code = command.main(prog_name="mach", standalone_mode=False) or 0
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("mach: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        print_nowhere()
        if not isinstance(error, Unwritable):
            return 0
        print(f"mach: {lost(error)}; {room(error.errno)}, or send it elsewhere", file=sys.stderr)
        return 1
    return int(code)
