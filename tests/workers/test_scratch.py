"""Commands that train in their own process: however they are ended, nothing of theirs stays."""

import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import DEADLINE_S
from workers import scratch as module
from workers.scratch import interruptible, scratch

ENDLESS = ("compare", "mach", "--simulate", "--components", "2", "--steps", "4", "--seeds", "1000")


def begun(place: Path) -> "subprocess.Popen[str]":
    """A comparison that has done its first run, and has many to go."""
    env = os.environ | {"TMPDIR": str(place)}
    words = [sys.executable, "-m", "mach", *ENDLESS]
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal, where these tests run under nohup too
    try:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("mach, seed 0")
    return process


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGINT))],
)
def test_a_comparison_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = begun(tmp_path)
    process.send_signal(number)
    if number != signal.SIGINT:
        process.send_signal(number)  # as `timeout` does
    said = process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "mach: interrupted"
    assert not list(tmp_path.glob("mach-*"))


class Finalised:
    """Told to end in the middle of its finaliser, where Python drops what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_was_lost_in_a_finaliser_may_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module, "MOMENT_S", math.inf)
    try:
        with interruptible():
            Finalised()
            signal.raise_signal(signal.SIGTERM)  # the same one
            monkeypatch.setattr(module, "MOMENT_S", 0.0)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, earlier)


@pytest.mark.slow
def test_what_a_killed_one_left_is_swept_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = begun(tmp_path)
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    (left,) = tmp_path.glob("mach-*")
    with scratch() as folder:
        assert list(tmp_path.glob("mach-*")) == [folder]
        assert left != folder
        (folder / "run" / "metrics").mkdir(parents=True)
        (folder / "run" / "metrics" / "c0.jsonl").write_text("")
    assert not list(tmp_path.glob("mach-*"))
