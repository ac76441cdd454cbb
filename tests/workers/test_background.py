"""A launch in the background that loses the race for its name, or fails: real processes, a played launcher."""

import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from configs.load import load
from fakes import component, status
from mach.recipes import RECIPES
from workers import background
from workers.background import detach, has_begun, resumed, tell_begun
from workers.rundir import RunDir
from workers.status import write

LAUNCHER = """
import os, signal, sys
from pathlib import Path
from workers.background import MAKING, TAKEN, tell_begun
from workers.rundir import RunDir
folder, tell, state, trouble = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
print("it begins", flush=True)
def interrupt():
    signal.signal(signal.SIGTERM, lambda number, frame: Path(folder.parent.parent, "stopped").touch() or sys.exit(130))
    os.kill(os.getppid(), int(trouble.split()[1]))
    while True:
        signal.pause()
if trouble.startswith("early"):
    interrupt()
if trouble == "looked" and folder.exists():
    sys.exit("mach: it exists; choose another --name")
if trouble.startswith("resume"):
    if trouble == "resume busy":
        sys.exit("mach: another launcher is running this run")
    if trouble == "resume killed":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "status.json").write_bytes(state.read_bytes())
    tell_begun(tell)
    sys.exit(0)
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
lock = RunDir(folder).lock()
if not trouble.startswith("late"):
    (folder / "status.json").write_bytes(state.read_bytes())
tell_begun(tell)
if trouble.startswith("late"):
    interrupt()
"""
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).resolve().parent.parent.parent


def folder_of(words: list[str]) -> Path:
    """Of the run that a launcher is told of."""
    name = words[1] if words[0] == "resume" else words[words.index("--name") + 1]
    return Path(words[words.index("--runs") + 1]) / name


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
        lambda words, tell: [
            *(sys.executable, "-c", LAUNCHER, str(folder_of(words)), str(tell), str(tmp_path / "state"), trouble)
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


@pytest.fixture
def _signals() -> Iterator[None]:
    """As a command has them that is run from a shell, also where nohup began the tests; and as they were."""
    earlier = {number: signal.getsignal(number) for number in ENDS}
    for number in ENDS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("trouble", [f"{when} {number:d}" for when in ("early", "late") for number in ENDS])
def test_who_is_interrupted_while_a_launcher_begins_has_stopped_it_and_leaves_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(runs, "r-2")
    assert (runs.parent / "stopped").exists()
    assert capsys.readouterr() == ("", "")
    late = trouble.startswith("late")
    assert sorted(path.name for path in runs.iterdir()) == (["r", "r-2"] if late else ["r"])
    if late:
        assert (runs / "r-2" / "logs" / "launcher.log").read_text() == "it begins\n"


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("trouble", [f"early {signal.SIGHUP:d}"])
def test_a_resume_that_is_interrupted_while_it_begins_is_stopped_as_well(runs: Path) -> None:
    run = RunDir(runs / "r")
    before = sorted(run.path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        resumed(run, None, (), None)
    assert (runs.parent / "stopped").exists()
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), subprocess.TimeoutExpired("mach", 1.0)])
def test_of_a_launcher_that_does_not_stop_at_once_it_is_said_where_to_look(
    runs: Path, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    sent: list[int] = []

    def wait(within_s: float) -> int:
        raise error

    launcher = SimpleNamespace(pid=4711, send_signal=sent.append, wait=wait)
    run = RunDir(runs / "r")
    background.call_off(run, launcher)  # type: ignore[arg-type]
    assert sent == [signal.SIGTERM]
    said = f"mach: the launcher (pid 4711) was told to stop, and has not yet; mach status {run.called}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("trouble", ["resume"])
def test_a_run_that_goes_on_in_the_background_keeps_what_its_earlier_launchers_printed(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(runs / "r")
    for _ in range(2):
        assert resumed(run, None, (), None) == 0
        assert capsys.readouterr().out.startswith("run r goes on in the background; mach status r --runs")
    names = ("launcher", "launcher.2", "launcher.3")
    assert [log.stem for log in run.logs()] == list(names)
    assert [log.read_text() for log in run.logs()] == ["the other's\n", "it begins\n", "it begins\n"]
    assert not list(run.path.glob(".launcher*"))


@pytest.mark.parametrize(
    ("trouble", "code", "cause"),
    [
        ("resume busy", 1, "mach: another launcher is running this run"),
        ("resume killed", -9, "mach: the launcher ended with exit code -9"),
    ],
)
def test_a_launcher_that_does_not_come_to_going_on_is_told_of_and_leaves_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str], code: int, cause: str
) -> None:
    run = RunDir(runs / "r")
    before = sorted(run.path.rglob("*"))
    assert resumed(run, None, (), None) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{cause}\n")
    assert sorted(run.path.rglob("*")) == before
    assert run.launcher_log.read_text() == "the other's\n"


def test_the_launcher_of_a_run_that_goes_on_is_told_what_its_user_asked_for(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def started(run: RunDir, words: list[str], log: Path) -> tuple[bytes, int | None, str]:
        asked.append(words)
        return b".", None, ""

    monkeypatch.setattr(background, "started", started)
    assert resumed(RunDir(runs / "r"), "f.yaml", ("a.b=1", "c=[2, 3]"), "0,1") == 0
    words = ["resume", "r", "--runs", str(runs), "--config", "f.yaml", "--gpus", "0,1", "--set", "a.b=1"]
    assert asked == [[*words, "--set", "c=[2, 3]"]]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("sys.exit('mach: é')", "mach: é"),
        ("sys.stderr.buffer.write(b'libc: \\xe9'); sys.exit(1)", "libc: \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_what_a_launcher_printed_is_told_whatever_the_terminal_can_show(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, cause: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    monkeypatch.setattr(background, "command", lambda words, tell: [sys.executable, "-c", f"import sys; {code}"])
    assert resumed(RunDir(runs / "r"), None, (), None) == 1
    assert capsys.readouterr().err == f"{cause}\n"


@pytest.mark.parametrize(
    ("number", "new", "resumed"),
    [
        (errno.ENOSPC, "make room, or choose another place with --runs", "make room, then mach resume r"),
        (errno.EDQUOT, "make room, or choose another place with --runs", "make room, then mach resume r"),
        (errno.EMFILE, "raise ulimit -n, then launch again", "raise ulimit -n, then mach resume r"),
        (errno.EFBIG, "raise ulimit -f, then launch again", "raise ulimit -f, then mach resume r"),
        (errno.EROFS, "choose another place with --runs", "make it writable, then mach resume r"),
    ],
)
def test_of_a_full_disk_it_is_said_that_it_wants_room_and_of_a_limit_which(number: int, new: str, resumed: str) -> None:
    error = OSError(number, "no", "runs/r/plan.json")
    assert str(background.unwritable(Path("runs"), error)) == f"runs/r/plan.json: no; {new}"
    assert str(background.unwritable(Path("runs"), error, "mach resume r")) == f"runs/r/plan.json: no; {resumed}"


@pytest.mark.parametrize(
    ("states", "so"),
    [
        (("training", "starting"), False),
        (("training", "failed"), True),
        (("failed", "failed"), False),
        (("waiting", "training"), True),
    ],
)
def test_a_run_whose_components_have_all_failed_has_not_begun(states: tuple[str, ...], so: bool) -> None:
    run = status("training")
    run.components = [component(f"c{i}", state=state) for i, state in enumerate(states)]
    assert has_begun(run) == so


def test_a_launcher_goes_on_without_whoever_started_it() -> None:
    import os

    hear, tell = os.pipe()
    os.close(hear)
    tell_begun(tell)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(tell)
