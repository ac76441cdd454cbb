"""The process that starts components: how it ended is told, and no more made of it than is known."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bus import address
from bus.headroom import Headroom
from configs.errors import RunError
from configs.load import load
from conftest import DEADLINE_S
from mach.recipes import RECIPES
from workers import forkserver, scarce
from workers.plan import make_plan
from workers.room import THREADS
from workers.supervisor import Supervisor

ROOT = Path(__file__).resolve().parent.parent.parent
WARM = """
import os, select, signal, sys
from bus import kernel
from workers import forkserver
forkserver.PRELOAD = sys.argv[1:]
forkserver.warm()
number = forkserver.pid()
"""
DIES = WARM + "select.select([kernel.pidfd_open(number)], [], [])\nprint(forkserver.cause(number))"
TWICE = (
    WARM
    + """
print(forkserver.cause(number) == "", forkserver.cause(0))
os.kill(number, signal.SIGKILL)
print(forkserver.cause(number))
forkserver.warm()
print(forkserver.pid() != number, forkserver.cause(forkserver.pid()) == "", forkserver.cause(number))
"""
)


def said(code: str, *words: str, path: Path = ROOT) -> str:
    """What a launcher prints, and nothing beside that."""
    env = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise ValueError('no good')", "ended with exit code 1: ValueError: no good"),
        ("import os; os._exit(7)", "ended with exit code 7"),
        ("import os; os.kill(os.getpid(), 11)", "was ended by SIGSEGV"),
        (
            "raise BlockingIOError(11, 'no')",
            f"ended with exit code 1: BlockingIOError: [Errno 11] no; {THREADS}",
        ),
        ("raise MemoryError('so much')", "ended with exit code 1: MemoryError: so much; out of memory: free some"),
    ],
)
def test_how_it_ended_is_told_with_what_it_said_last(tmp_path: Path, body: str, cause: str) -> None:
    (tmp_path / "loaded.py").write_text(body)
    assert said(DIES, "nothere", "loaded", path=tmp_path).startswith(cause)


def test_one_that_was_killed_lacked_memory_and_another_takes_its_place() -> None:
    lives, killed, anew = said(TWICE).splitlines()
    assert lives == "True has gone"
    assert killed.startswith("was killed (SIGKILL), probably out of memory: free some, or raise ulimit -v")
    assert anew == f"True True {killed}"


NOTHING = """
import errno, os
from bus import kernel
def lacking(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
kernel.memfd_create = lacking
"""


def test_where_nothing_is_kept_of_what_it_says_its_end_is_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "loaded.py").write_text("import os; os._exit(7)")
    assert said(NOTHING + DIES, "loaded", path=tmp_path) == "ended with exit code 7"


def test_what_it_says_and_lives_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forkserver, "heard", lambda: ["loaded.py:1: a warning", "  so it goes"])
    config, sockets = load("digits", ("n_components=1", "train.steps=1"), RECIPES), address.make_directory()
    with Supervisor(make_plan(config, run="r", directory=tmp_path / "r", sockets=sockets)) as supervisor:
        *_, last = supervisor.watch()
    assert last.state == "finished"
    assert capfd.readouterr().err == "loaded.py:1: a warning\n  so it goes\n"


@pytest.mark.parametrize("limit", [None, 180])
def test_the_limit_of_a_control_group_is_named(monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    monkeypatch.setattr(scarce, "headroom", lambda: Headroom(0, None if limit is None else limit << 20))
    more = "" if limit is None else ", or the control group's (container's) 180 MB"
    assert scarce.memory() == f"free some, or raise ulimit -v{more}"


def test_a_python_that_cannot_be_executed_is_one_sentence() -> None:
    code = "from multiprocessing import spawn\nspawn.set_executable('/nowhere/python')\n" + DIES
    assert said(code) == f"could not be begun: {sys.executable} cannot be executed; see to it that this user may"


def test_where_no_process_may_be_added_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", full)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(RunError, match=r"could not be begun \(Resource .*\); raise ulimit -u, or the container's"):
        forkserver.warm()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
