"""What a launch would be refused for is found without one, and in the same words."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError, DataError
from configs.load import load
from configs.tree import LARGEST
from conftest import DEADLINE_S, mach, wait_gone
from mach.recipes import RECIPES
from workers import tryout
from workers.plan import Plan, make_plan
from workers.planning import describe

OWN = """
import atexit
print("what this prints is no answer")
atexit.register(print, "nor is this")

def boom(place):
    return helper()

def helper():
    raise KeyError("layer")

def data(data):
    return 1 / 0
"""

BUSY = """
import multiprocessing, os, pathlib, threading
from mach.networks.mlp import mlp

def stay():
    threading.Event().wait(60)
    pathlib.Path("late").touch()
    os._exit(0)

def busy(place):
    threading.Thread(target=threading.Event().wait).start()
    daemon = multiprocessing.get_context("fork").Process(target=stay, daemon=True)
    daemon.start()
    with open("pids", "a") as file:
        print(daemon.pid, os.fork() or stay(), file=file)
    return mlp(place)
"""


def plan_of(*settings: str, lockstep: bool = False) -> Plan:
    config = load("digits", settings, RECIPES)
    return make_plan(config, run="r", directory=Path("r"), sockets=Path("s"), lockstep=lockstep)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules of the user's own, for processes that this one starts."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path / "mine.py"


@pytest.mark.parametrize("recipe", ["mach", "mach-stream", "dni"])
def test_what_can_be_launched_passes(recipe: str) -> None:
    tryout.build(plan_of(f"recipe={recipe}", "graph=chain", "n_components=3"))


def test_a_stub_needs_no_network() -> None:
    found = tryout.build(plan_of("n_components=2", "components.1.stub.drop=0.1"))
    assert list(found.parameters) == ["c0"]


def test_what_is_built_is_told(tmp_path: Path) -> None:
    for part in ("train", "test"):
        np.save(tmp_path / f"{part}_inputs.npy", 1000 * np.ones((200, 3), int))
        np.save(tmp_path / f"{part}_labels.npy", 1 + np.arange(200) % 2)
    own = ("data.source=npy", f"data.path={tmp_path}", "n_components=2", "graph=chain", "model.joiner=[]")
    told = describe(load("digits", own, RECIPES), tmp_path, "r", ("cpu",), lockstep=False)
    _, data, warning, c0, c1 = told.splitlines()
    assert data.startswith("# data: 200 samples to train on, 200 to test on, each float32 [3], 3 classes, of which 0 ")
    assert warning.startswith("# warning: inputs are whole numbers from 1000 to 1000; ")
    assert c0.endswith(" parameters")
    assert c1.endswith("answers c0  451 parameters")


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        (("model.family=mlpp",), ConfigError, "'mlpp' is none of mlp, .*; did you mean 'mlp'"),
        (("data.source=digitss",), ConfigError, "'digitss' is none of digits, .*; did you mean 'digits'"),
        (("model.family=transformer",), ConfigError, "takes sequences of symbols"),
        (("data.source=idx", "data.path=/nowhere"), DataError, "/nowhere"),
        (
            ("data.source=bytes", "data.noise=1", "model.family=transformer", "n_components=1"),
            ConfigError,
            "data.noise",
        ),
    ],
)
def test_what_is_refused_at_the_start_is_refused_here(
    settings: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        tryout.build(plan_of(*settings))


@pytest.mark.usefixtures("leaks")
def test_the_process_of_its_own_says_it_and_nothing_else(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own.parent)
    tryout.check(plan_of(f"supervise.starting_ms={LARGEST}"))
    with pytest.raises(ConfigError, match=r"^data.source: 'mine:data' raised ZeroDivisionError: .* in data\)$"):
        tryout.check(plan_of("data.source=mine:data"))


def test_a_process_that_breaks_is_one_sentence(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own.parent)
    own.write_text("import os\n\ndef data(data):\n    os.kill(os.getpid(), 9)\n")
    with pytest.raises(ConfigError, match=r"networks ended by SIGKILL; launched without --dry-run, it leaves"):
        tryout.check(plan_of("data.source=mine:data"))
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ConfigError, match="ended with 1; launched without"):
        tryout.check(plan_of())


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_factory_that_raises_is_the_users_mistake_with_the_place_of_it(
    own: Path, tmp_path: Path, dry: tuple[str, ...]
) -> None:
    words = ("--components", "2", "--gpus", "cpu", "--set", "model.family=mine:boom", "--runs", str(tmp_path / "runs"))
    done = mach("launch", *words, *dry)
    told = f"mach: model.family: 'mine:boom' raised KeyError: 'layer' ({own}, line 10, in helper)\n"
    assert (done.returncode, done.stderr) == (2, "what this prints is no answer\n" * len(dry) + told)
    assert (tmp_path / "runs").exists() != bool(dry)


def test_what_hangs_is_given_up_and_where_it_does_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own.parent)
    own.write_text("import signal\n\ndef hang(place):\n    signal.pause()\n")
    said = r"'mine:hang' raised TimeoutError: made no progress for 0\.5 s, .*: hung \(.*mine\.py, line 4, in hang\)$"
    with pytest.raises(ConfigError, match=said):
        tryout.check(plan_of("model.family=mine:hang", "supervise.starting_ms=500"))


def test_what_hangs_and_minds_no_error_is_given_up_too(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own.parent)
    own.write_text(
        "import signal\n\ndef hang(place):\n    while True:\n"
        "        try:\n            signal.pause()\n        except Exception:\n            continue\n"
    )
    with pytest.raises(ConfigError, match="ended with 1; launched without"):
        tryout.check(plan_of("model.family=mine:hang", "supervise.starting_ms=500"))


def test_threads_and_processes_that_a_factory_leaves_keep_nobody(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(own.parent)
    own.write_text(BUSY)
    monkeypatch.chdir(own.parent)
    tryout.check(plan_of("n_components=1", "model.family=mine:busy"))
    assert not Path("late").exists()
    pids = Path("pids").read_text().split()
    assert pids
    assert all(wait_gone(int(pid)) for pid in pids)


def test_a_terminal_that_stops_whoever_prints_behind_stops_nobody(own: Path) -> None:
    """`stty tostop`."""
    screen, terminal = os.openpty()
    words = ("launch", "--dry-run", "--gpus", "cpu", "--set", "data.source=mine:data")
    shell = ("sh", "-c", 'exec <>"$0" 2>&0; stty tostop; exec "$@"', os.ttyname(terminal))
    command = (*shell, sys.executable, "-m", "mach", *words)
    with subprocess.Popen(command, cwd=own.parent, stdout=subprocess.DEVNULL, start_new_session=True) as asks:
        try:
            assert asks.wait(DEADLINE_S) == 2
        finally:
            asks.kill()
    said = os.read(screen, 1 << 12)
    os.close(screen)
    os.close(terminal)
    assert said.startswith(b"what this prints is no answer\r\nmach: data.source: 'mine:data' raised ZeroDivisionError")


def test_it_ends_with_the_command_that_asked(own: Path, tmp_path: Path) -> None:
    """However long the data take: nobody would read what it finds."""
    os.mkfifo(tmp_path / "door")
    own.write_text(
        "import os, signal\n\ndef data(data):\n    open('door', 'w').write(str(os.getpid()))\n"
        "    signal.alarm(300)\n    signal.pause()\n"
    )
    words = ("launch", "--dry-run", "--gpus", "cpu", "--set", "data.source=mine:data")
    with subprocess.Popen([sys.executable, "-m", "mach", *words], cwd=tmp_path, stderr=subprocess.DEVNULL) as asks:
        pid = int((tmp_path / "door").read_text())
        asks.kill()
    assert wait_gone(pid)
