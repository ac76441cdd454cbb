"""A run in the background: a launcher in a session of its own, seen to begin. Knows no option and no torch.

    mach launch --detach ── starts ──▶ mach launch --name r --tell FD
                         ◀── MAKING ──                       it is about to make the directory of run r
                         ◀── TAKEN ───                       another launch has made it
                         ◀── BEGUN ───                       the run is its own, and goes on

So nobody takes another's run for the one just launched, however close to each other two are, nor a launcher that failed
for one whose name was taken. `mach resume --detach` does the same with a run that is there: its launcher says BEGUN
alone, and nothing where another one goes on with the run already. Who is interrupted while it waits for that has the
launcher stop.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bus import address, kernel, keys
from configs.errors import RunError
from configs.load import dump
from configs.tree import Config
from workers import interpreter
from workers.holder import noted
from workers.room import ROOM, WRITABLE, room
from workers.rundir import RunDir
from workers.scratch import interruptible
from workers.status import FINAL, Status, read

MAKING, TAKEN, BEGUN = b"m", b"t", b"."
LOOK_S = 0.25
"""Time between two looks into files that the launcher writes."""
PATIENCE_S = 15.0
"""Longest wait for a launcher to stop that was still to begin."""


@interruptible()
def detach(
    config: Config,
    runs: Path,
    name: str,
    gpus: str | None,
    *,
    lockstep: bool,
    other: Callable[[], str] | None = None,
) -> int:
    """Start a launcher, and see that its components begin; the exit code. `other`: a name in place of one that was
    taken meanwhile.

    Raises:
        RunError: nothing can be written there.
    """
    keys.check(config.bus)
    more = [*(["--gpus", gpus] if gpus else []), *(["--lockstep"] if lockstep else [])]
    try:
        runs.mkdir(parents=True, exist_ok=True)
        while True:
            taken, code, words = launched(config, RunDir(runs / name), more)
            if other is None or not taken:
                break
            name = other()
    except OSError as error:
        raise unwritable(runs, error) from error
    return told(RunDir(runs / name), code, words)


@interruptible()
def resumed(run: RunDir, file: str | None, settings: Sequence[str], gpus: str | None) -> int:
    """Start a launcher that goes on with a run that has ended, and see that its components begin; the exit code.
    `file` and `settings`: its configuration, as of `mach resume`.

    Raises:
        RunError: nothing can be written there.
    """
    more = [*(["--config", file] if file else []), *(["--gpus", gpus] if gpus else [])]
    more += [word for setting in settings for word in ("--set", setting)]
    words = ["resume", run.name, "--runs", str(run.path.parent), *more]
    try:
        _, code, said = started(run, words, run.launcher_draft)
    except OSError as error:
        raise unwritable(run.path, error, f"mach resume {run.called}") from error
    return told(run, code, said)


def told(run: RunDir, code: int | None, said: str) -> int:
    """Say what has become of a launcher; the exit code. `said`: the last line that it printed."""
    if code:
        last = said if code > 0 else ""  # a signal leaves no time for a last word
        print(last or f"mach: the launcher ended with exit code {code}", file=sys.stderr)
        return code
    it = run.called
    print(f"run {run.name} goes on in the background; mach status {it}, mach logs {it} -f, mach stop {it}")
    return 0


def unwritable(place: Path, error: OSError, again: str = "") -> RunError:
    """What to say of a system that does not take a run; `again`: the command that goes on with one that lies there."""
    way, elsewhere = room(error.errno), "choose another place with --runs"
    if again or way not in (ROOM, WRITABLE):
        way += f", then {again or 'launch again'}"
    else:
        way = elsewhere if way == WRITABLE else f"{way}, or {elsewhere}"
    return RunError(f"{error.filename or place}: {error.strerror or error}; {way}")


def launched(config: Config, run: RunDir, more: list[str]) -> tuple[bool, int | None, str]:
    """Whether the name was taken, the launcher's exit code if it has ended, and the last line that it printed."""
    draft, log = (run.path.with_name(f".{run.name}.{os.getpid()}.{end}") for end in ("yaml", "log"))
    words = ["launch", "--config", str(draft), "--name", run.name, "--runs", str(run.path.parent), *more]
    try:
        draft.write_text(dump(config), encoding="utf-8")
        said, code, line = started(run, words, log)
    finally:
        draft.unlink(missing_ok=True)
    # one that did not come to making it: the directory that is there is another's
    return said == TAKEN or (said == b"" and run.path.exists()), code, line


def started(run: RunDir, words: list[str], log: Path) -> tuple[bytes, int | None, str]:
    """A launcher's last word to us, its exit code if it has ended, and the last line that it printed: into `log`, until
    the run is its own.
    """
    hear, tell = os.pipe()
    try:
        try:
            with log.open("wb") as out:
                launcher = subprocess.Popen(
                    command(words, tell),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"PYTHONIOENCODING": "utf-8"},  # a log, whatever the terminal is
                    start_new_session=True,
                    pass_fds=(tell,),
                )
        finally:
            os.close(tell)
        try:
            said = heard(hear)
            ours, place = said == BEGUN, log
            if ours:
                place = log.replace(run.next_launcher_log())
            code = begun(run, launcher) if ours else launcher.wait()
        except KeyboardInterrupt:
            call_off(run, launcher)
            holder = noted(run.lock_file)  # its last word may be lost with the interrupt
            if holder is not None and holder.pid == launcher.pid and log.exists():
                log.replace(run.next_launcher_log())
            raise
        lines = place.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return said, code, lines[-1] if lines else ""
    finally:
        os.close(hear)
        log.unlink(missing_ok=True)


def call_off(run: RunDir, launcher: "subprocess.Popen[bytes]") -> None:
    """Stop a launcher that is no longer wanted. Who does not wait for its end, or waits too long, is told where to see
    it.
    """
    launcher.send_signal(signal.SIGTERM)
    try:
        launcher.wait(PATIENCE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        way = f"mach status {run.called}"
        print(f"mach: the launcher (pid {launcher.pid}) was told to stop, and has not yet; {way}", file=sys.stderr)
    address.sweep()  # one that did not listen yet was ended by it, and removed nothing


def command(words: list[str], tell: int) -> list[str]:
    """What a launcher is."""
    return [sys.executable, *interpreter.options(), "-m", "mach", *words, "--tell", str(tell)]


def heard(hear: int) -> bytes:
    """The launcher's last word; none or MAKING: it has ended, or is about to."""
    said = b""
    while (word := os.read(hear, 1)) != b"":
        said = word
        if word != MAKING:
            break
    return said


def tell_begun(tell: int, word: bytes = BEGUN) -> None:
    """In the launcher: the run is its own, or another `word`."""
    with suppress(BrokenPipeError):  # whoever started it is gone, and it goes on
        os.write(tell, word)
    if word != MAKING:
        os.close(tell)


def has_begun(status: Status) -> bool:
    """Whether every component has, and somebody is at it: where all are over, the launcher's end tells how it went."""
    states = [row.state for row in status.components]
    return "starting" not in states and any(state not in FINAL for state in states)


def begun(run: RunDir, launcher: "subprocess.Popen[bytes]") -> int | None:
    """Wait until every component trains, or the launcher has ended; its exit code in that case."""
    watch = kernel.pidfd_open(launcher.pid)
    try:
        while not select.select([watch], [], [], LOOK_S)[0]:
            if run.status.exists() and has_begun(read(run)):
                return None
    finally:
        os.close(watch)
    return launcher.wait()
