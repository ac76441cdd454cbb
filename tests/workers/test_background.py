"""A launch in the background that loses the race for its name: real processes, a played launcher."""

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from configs.load import load
from fakes import status
from mach.recipes import RECIPES
from workers import background
from workers.background import detach, tell_begun
from workers.rundir import RunDir
from workers.status import write

LAUNCHER = """
import os, sys
from pathlib import Path
folder, tell, state = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
print("it begins", flush=True)
try:
    folder.mkdir()
except FileExistsError:
    sys.exit("mach: it exists; choose another --name")
(folder / "logs").mkdir()
(folder / "status.json").write_bytes(state.read_bytes())
os.write(tell, b".")
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where another launch has just begun run r; launchers are played, and end when they have begun."""
    others = RunDir(tmp_path / "runs" / "r")
    others.make()
    write(others, status("training"))
    others.launcher_log.write_text("the other's\n")
    (tmp_path / "state").write_bytes(msgspec.json.encode(status("training")))
    monkeypatch.setattr(
        background,
        "command",
        lambda draft, run, more, tell: [
            *(sys.executable, "-c", LAUNCHER, str(run.path), str(tell), str(tmp_path / "state"))
        ],
    )
    return tmp_path / "runs"


def launch(runs: Path, name: str, other: Callable[[], str] | None = None) -> int:
    return detach(load("digits", (), RECIPES), runs, name, None, lockstep=False, other=other)


def test_anothers_run_of_that_name_is_not_taken_for_ours(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(runs, "r") == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "mach: it exists; choose another --name\n")
    assert (runs / "r" / "logs" / "launcher.log").read_text() == "the other's\n"
    assert [path.name for path in runs.iterdir()] == ["r"], "nothing is left lying about"


def test_a_name_that_nobody_chose_gives_way_to_another(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(runs, "r", iter(["r", "r-2"]).__next__) == 0
    said = capsys.readouterr()
    assert said.out.startswith("run r-2 goes on in the background; mach status r-2")
    assert said.err == ""
    assert (runs / "r" / "logs" / "launcher.log").read_text() == "the other's\n"
    assert (runs / "r-2" / "logs" / "launcher.log").read_text() == "it begins\n"
    assert sorted(path.name for path in runs.iterdir()) == ["r", "r-2"]


def test_a_launcher_goes_on_without_whoever_started_it() -> None:
    import os

    hear, tell = os.pipe()
    os.close(hear)
    tell_begun(tell)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(tell)
