"""A launch in the background that loses the race for its name, or fails: real processes, a played launcher."""

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
import os, signal, sys
from pathlib import Path
from workers.background import MAKING, TAKEN, tell_begun
folder, tell, state, trouble = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
print("it begins", flush=True)
if trouble == "looked" and folder.exists():
    sys.exit("mach: it exists; choose another --name")
tell_begun(tell, MAKING)
try:
    folder.mkdir()
except FileExistsError:
    tell_begun(tell, TAKEN)
    sys.exit("mach: it exists; choose another --name")
if trouble == "full":
    sys.exit("mach: no space left on device")
if trouble == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "logs").mkdir()
(folder / "status.json").write_bytes(state.read_bytes())
tell_begun(tell)
"""
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def trouble() -> str:
    """What befalls the launcher: it sees, by a look, that the name is taken; a full disk; SIGKILL."""
    return ""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> Path:
    """Where another launch has just begun run r; launchers are played, and end when they have begun."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    others = RunDir(tmp_path / "runs" / "r")
    others.make()
    write(others, status("training"))
    others.launcher_log.write_text("the other's\n")
    (tmp_path / "state").write_bytes(msgspec.json.encode(status("training")))
    monkeypatch.setattr(
        background,
        "command",
        lambda draft, run, more, tell: [
            *(sys.executable, "-c", LAUNCHER, str(run.path), str(tell), str(tmp_path / "state"), trouble)
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


@pytest.mark.parametrize("trouble", ["", "looked"])
def test_a_name_that_nobody_chose_gives_way_to_another(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(runs, "r", iter(["r", "r-2"]).__next__) == 0
    said = capsys.readouterr()
    assert said.out.startswith("run r-2 goes on in the background; mach status r-2")
    assert said.err == ""
    assert (runs / "r" / "logs" / "launcher.log").read_text() == "the other's\n"
    assert (runs / "r-2" / "logs" / "launcher.log").read_text() == "it begins\n"
    assert sorted(path.name for path in runs.iterdir()) == ["r", "r-2"]


@pytest.mark.parametrize(
    ("trouble", "code", "cause"),
    [("full", 1, "mach: no space left on device"), ("killed", -9, "mach: the launcher ended with exit code -9")],
)
def test_a_launcher_that_fails_in_its_own_directory_is_told_of_and_not_repeated(
    runs: Path, capsys: pytest.CaptureFixture[str], code: int, cause: str
) -> None:
    def other() -> str:
        pytest.fail("its name was not taken")

    assert launch(runs, "r-2", other) == code
    assert capsys.readouterr().err == f"{cause}\n"
    assert sorted(path.name for path in runs.iterdir()) == ["r", "r-2"]


def test_a_launcher_goes_on_without_whoever_started_it() -> None:
    import os

    hear, tell = os.pipe()
    os.close(hear)
    tell_begun(tell)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(tell)
