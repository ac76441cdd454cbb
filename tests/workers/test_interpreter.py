"""No process of ours executes what lies in the working directory, but where it was put on the path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import DEADLINE_S
from workers import devices, interpreter

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = "import sys\nfrom mach.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
STRANGER = "open({!r}, 'a').write({!r} + '\\n')\nraise SystemExit('executed')\n"
NAMES = ("queue", "random", "selectors", "signal", "torch", "yaml", "configs/__init__", "workers/__init__", "mach")
OWN = """
import os, subprocess, sys
from mach.networks import FAMILIES
def make(place):
    asked = "import os, sys; print('' in sys.path, sorted(key for key in os.environ if key.startswith('PYTHON')))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    print("a child of mine:", done.stdout, flush=True)
    return FAMILIES["mlp"](place)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """As an installation puts it, in a folder of its own."""
    script = tmp_path / "bin" / "mach"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return script


def run(script: Path, cwd: Path, *words: str, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, str(script), *words], os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=DEADLINE_S, check=False)


@pytest.mark.usefixtures("leaks")
@pytest.mark.parametrize(
    "words",
    [
        ("launch", "--components", "1", "--steps", "2", "--name", "r"),
        ("launch", "--components", "1", "--steps", "2", "--name", "r", "--detach"),
        ("launch", "--components", "1", "--dry-run"),
        ("doctor",),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_what_lies_in_the_working_directory_is_not_executed(
    tmp_path: Path, script: Path, words: tuple[str, ...]
) -> None:
    here, executed = tmp_path / "here", tmp_path / "executed"
    for name in NAMES:
        file = here / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(STRANGER.format(str(executed), name))
    done = run(script, here, *words)
    assert (done.returncode, executed.exists()) == (0, False), done.stdout + done.stderr
    if "--detach" in words:
        stopped = run(script, here, "stop", "r")
        assert stopped.returncode == 0, stopped.stderr
        assert not executed.exists()


@pytest.mark.usefixtures("leaks")
@pytest.mark.parametrize("how", [(), ("--detach",)], ids=" ".join)
def test_a_network_of_ones_own_lies_in_the_working_directory_where_the_path_says_so(
    tmp_path: Path, script: Path, how: tuple[str, ...]
) -> None:
    """And what it starts has the environment that the launcher had."""
    (tmp_path / "mine.py").write_text(OWN)
    words = ("launch", "--components", "1", "--steps", "2", "--set", "model.family=mine:make", "--name", "r", *how)
    path = f".{os.pathsep}{ROOT}"
    done = run(script, tmp_path, *words, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    stopped = run(script, tmp_path, "stop", "r", path=path)
    assert stopped.returncode == 0, stopped.stderr
    log = (tmp_path / "runs" / "r" / "logs" / "c0.1.log").read_text()
    wanted = {key for key in os.environ if key.startswith("PYTHON")} | {"PYTHONPATH"}
    wanted |= {"PYTHONIOENCODING"} if how else set()
    assert f"a child of mine: True {sorted(wanted)}" in log


def test_torch_is_not_asked_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "PROBE", "import torch; print('CUDA devices: 3' if torch.Tensor else '')")
    assert devices.ask_torch() == 3


def test_another_python_looks_here_where_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = os.path.dirname(os.__file__)
    for path, options in (
        (["/elsewhere", own], ["-P"]),
        (["", own], []),
        (["/elsewhere", str(tmp_path), own], []),
        ([own, str(tmp_path)], ["-P"]),  # as an installation that is edited there
    ):
        monkeypatch.setattr("sys.path", path)
        assert interpreter.options() == options
