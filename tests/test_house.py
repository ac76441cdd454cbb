"""The laws of the house: arrows only down, a core without I/O, rooms that stay small, a door that opens fast."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("configs", "mach", "bus", "workers", "cli.py", "benchmarks")
SOURCES = sorted(
    path for floor in FLOORS for path in ([ROOT / floor] if floor.endswith(".py") else (ROOT / floor).rglob("*.py"))
)
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]
DOORS = {"mach/__main__.py", "mach/pytest_plugin.py"}
BELOW = {
    "configs": set(),
    "mach": {"configs"},
    "bus": {"mach", "configs"},
    "workers": {"bus", "mach", "configs"},
}
OUTSIDE = {"zmq", "socket", "subprocess", "multiprocessing", "threading", "asyncio", "time", "signal"}


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All of a file."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def floor_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("name", [name for name in NAMES if floor_of(name.replace("/", ".")) in BELOW])
def test_imports_point_down(name: str) -> None:
    floor = name.partition("/")[0]
    ours = {floor_of(module) for module in imported(ROOT / name)} & {
        "configs",
        "mach",
        "bus",
        "workers",
        "cli",
    }
    if name not in DOORS:
        assert ours <= BELOW[floor] | {floor}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("mach/") and name not in DOORS])
def test_the_core_knows_no_socket_process_thread_or_clock(name: str) -> None:
    modules = {floor_of(module) for module in imported(ROOT / name)}
    assert not modules & OUTSIDE
    assert "torch.multiprocessing" not in imported(ROOT / name)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("bus/")])
def test_only_sockets_knows_zmq_and_no_floor_of_the_bus_knows_networks(name: str) -> None:
    modules = imported(ROOT / name)
    assert "torch.nn" not in modules
    assert ("zmq" in {floor_of(module) for module in modules}) == (
        name in ("bus/sockets.py", "bus/curve.py", "bus/strangers.py")
    )


@pytest.mark.parametrize("name", NAMES)
def test_rooms_stay_small(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 400, f"{name} has grown too large"
    for node in nodes(ROOT / name):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{name}: {node.name} is longer than a screen"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_unpickled_evaluated_swallowed_or_left_undone(name: str) -> None:
    text = (ROOT / name).read_text()
    bad = r"NotImplementedError|\bTODO\b|\bFIXME\b|pickle\.|torch\.load\(|recv_pyobj|send_pyobj|\beval\(|\bexec\("
    found = [line for line in text.splitlines() if re.search(bad, line)]
    assert not found
    for node in nodes(ROOT / name):
        if isinstance(node, ast.ExceptHandler):
            assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), f"{name}: an error is swallowed"


def fresh_modules(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that runs `statement`."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import cli", "import workers.supervisor", "import workers.status"])
def test_the_commands_load_neither_torch_nor_zmq(statement: str) -> None:
    assert not fresh_modules(statement) & {"torch", "zmq", "tensorboard"}


def test_the_door_of_children_loads_nothing_of_ours() -> None:
    assert not fresh_modules("import mach.__main__") & {"cli", "bus", "workers", "configs", "click", "torch"}


def opened(finder: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The door, where the import of `configs` begins with the statement `finder`: a module, as `python -m mach` is."""
    code = (
        "import os, signal, sys\nclass Finder:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'configs':\n            {finder}\n"
        "sys.meta_path.insert(0, Finder())\nsys.argv = ['mach', 'runs']\nfrom mach.__main__ import main\nmain()"
    )
    (folder / "door.py").write_text(code)
    env = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run([sys.executable, "-m", "door"], capture_output=True, text=True, cwd=ROOT, env=env)


PRESSED = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    "finder",
    [
        "raise KeyboardInterrupt",
        "exec('raise KeyboardInterrupt')",
        f"try: {PRESSED}; len('')\n            except BaseException: raise RuntimeError",
    ],
)
def test_a_ctrl_c_while_the_door_opens_is_a_stop_without_a_traceback(tmp_path: Path, finder: str) -> None:
    """Before a launch there is nothing that would have to be saved; and an import may make something else of it."""
    done = opened(finder, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_who_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    """As a shell has what it starts in the background do."""
    script = (
        f"{sys.executable} -c 'import os, signal, mach.__main__ as door; door.opened = lambda: {PRESSED}; door.main()'"
    )
    done = subprocess.run(["sh", "-c", f"trap '' INT; {script} --version"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["import numpy.no_such_thing\n", "mine = 1\n", "def\n"])
def test_a_file_that_hides_a_module_of_pythons_own_is_one_sentence(tmp_path: Path, code: str) -> None:
    (tmp_path / "code.py").write_text("")  # is imported by nobody
    (tmp_path / "random.py").write_text(code)
    done = listed(tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{tmp_path / 'random.py'} hides Python's own 'random': rename it" in done.stderr


def test_a_file_that_hides_nothing_is_not_blamed_for_a_dependency_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("")
    (tmp_path / "msgspec.py").write_text("import numpy.no_such_thing\n")
    done = listed(tmp_path)
    assert done.returncode == 1
    assert "code.py" not in done.stderr
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'numpy.no_such_thing'"


def listed(folder: Path) -> "subprocess.CompletedProcess[str]":
    """`mach runs`, with a folder of somebody's own before all others."""
    env = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run([sys.executable, "-m", "mach", "runs"], capture_output=True, text=True, cwd=ROOT, env=env)


def test_a_standard_stream_that_is_closed_is_no_place_for_another_file() -> None:
    code = (
        "import os, sys; from mach.__main__ import fill; fill(); sys.exit(all(map(os.get_inheritable, range(3))) + 6)"
    )
    for closed in ("<&-", ">&- 2>&-", "<&- >&- 2>&-"):
        assert subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], cwd=ROOT).returncode == 7


def test_a_thread_that_somebody_has_left_keeps_no_command() -> None:
    code = (
        "import atexit, threading; from mach.__main__ import leave; atexit.register(print, 'removed')\n"
        "threading.Thread(target=threading.Event().wait).start(); print('said'); leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (3, "said\nremoved\n")
