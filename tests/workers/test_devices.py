"""Devices: what `--gpus` means, and that looking for them costs a CPU machine nothing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from workers import devices


@pytest.mark.parametrize(
    ("gpus", "found", "chosen"),
    [
        (None, ("0", "1"), ("0", "1")),
        (None, (), ("cpu",)),
        ("cpu", ("0",), ("cpu",)),
        ("1,0", ("0", "1"), ("1", "0")),
        ("GPU-5a,3", ("3", "GPU-5a"), ("GPU-5a", "3")),
        (" 0 , 01", ("0", "1"), ("0", "1")),
    ],
)
def test_the_choice(gpus: str | None, found: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    assert devices.choose(gpus, found) == chosen


@pytest.mark.parametrize(
    ("gpus", "found", "sentence"),
    [
        ("7", ("0", "1"), "--gpus 7: there is no such device; there are: 0, 1"),
        ("0", (), "--gpus 0: there is no CUDA device here; use --gpus cpu"),
        ("0,0", ("0",), "--gpus 0,0: a device is named twice; components share devices by themselves"),
        ("cpu,0", ("0",), "--gpus cpu,0: give numbers of devices, like 0,1, or cpu; there are: 0"),
        ("", (), "--gpus : give numbers of devices, like 0,1, or cpu; there is no CUDA device here"),
        ("-1", ("0",), "--gpus -1: give numbers of devices, like 0,1, or cpu; there are: 0"),
    ],
)
def test_a_wrong_choice_is_told_what_there_is(gpus: str, found: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        devices.choose(gpus, found)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("had", "found", "sentence"),
    [
        (("3",), ("0", "1"), "GPU 3, which is not here; there are: 0, 1: give --gpus 0,1"),
        (("0", "2", "3"), ("0",), "GPUs 2, 3, which are not here; there are: 0: give --gpus 0"),
        (("0",), (), "GPU 0, which is not here; there is no CUDA device here: give --gpus cpu"),
    ],
)
def test_a_run_that_goes_on_without_its_devices_is_told_what_nobody_typed(
    had: tuple[str, ...], found: tuple[str, ...], sentence: str
) -> None:
    devices.check_here(found, found)
    with pytest.raises(ConfigError) as refused:
        devices.check_here(had, found)
    assert str(refused.value) == f"the run was recorded on {sentence}"


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """No answer of one test is given in another."""
    devices.find_devices.cache_clear()
    yield
    devices.find_devices.cache_clear()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has the driver."""
    monkeypatch.setattr(devices, "DRIVERS", (tmp_path,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def answering(output: str, code: int = 0, error: str = "") -> Any:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, stdout=output, stderr=error)

    return run


def never(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("probe", "found"),
    [
        ("print('CUDA devices:', 2)", ("0", "1")),
        ("print('CUDA devices: 0')", ()),
        ("import os; os.write(1, b'7 \\xff\\n9'); print('\\nCUDA devices: 1'); print('good-bye')", ("0",)),
        ("print('CUDA devices: 1', flush=True); import os; os.abort()", ("0",)),
    ],
    ids=["two", "none", "noisy", "crashes after its answer"],
)
def test_torch_is_asked_where_there_is_a_driver(
    monkeypatch: pytest.MonkeyPatch, probe: str, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr(devices, "PROBE", probe)
    assert devices.find_devices() == found


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("probe", "limit_s", "said"),
    [
        ("import time; time.sleep(1000)", 0.01, " did not answer within 0.01 s; try again"),
        ("import os; os.kill(os.getpid(), 9)", 60.0, " ended with exit code -9 and told no number; "),
        ("raise ImportError('no libcudart')", 60.0, " exit code 1 and told no number: ImportError: no libcudart; "),
        ("print('CUDA devices: many')", 60.0, " exit code 0 and told no number; "),
        ("print(2)", 60.0, " exit code 0 and told no number; "),
    ],
    ids=["slow", "killed", "broken", "unreadable", "unmarked"],
)
def test_where_there_is_a_driver_no_answer_is_not_taken_for_no_device(
    monkeypatch: pytest.MonkeyPatch, probe: str, limit_s: float, said: str
) -> None:
    monkeypatch.setattr(devices, "PROBE", probe)
    monkeypatch.setattr(devices, "PROBE_S", limit_s)
    with pytest.raises(ConfigError) as refused:
        devices.find_devices()
    assert str(refused.value).startswith("there is a GPU driver, but ")
    assert said in str(refused.value)
    assert str(refused.value).endswith(", or train on the CPU with --gpus cpu")


@pytest.mark.usefixtures("driver")
def test_an_interpreter_that_cannot_be_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="could not be started"):
        devices.find_devices()


@pytest.mark.usefixtures("driver")
def test_torch_answers_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    assert len(devices.find_devices()) == torch.cuda.device_count()


@pytest.mark.usefixtures("driver")
def test_visible_devices_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5a,99")  # CUDA ignores what comes after a wrong one
    monkeypatch.setattr(subprocess, "run", answering("CUDA devices: 2\n"))
    assert devices.find_devices() == ("2", "GPU-5a")


@pytest.mark.usefixtures("driver")
def test_torch_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on looks whether its devices are there, and then deals them."""
    monkeypatch.setattr(subprocess, "run", answering("CUDA devices: 2\n"))
    found = devices.find_devices()
    monkeypatch.setattr(subprocess, "run", never)
    assert devices.find_devices() == found == ("0", "1")


@pytest.mark.usefixtures("driver")
def test_hidden_devices_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(subprocess, "run", never)
    assert devices.find_devices() == ()


def test_without_a_driver_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVERS", (tmp_path / "none",))
    monkeypatch.setattr(subprocess, "run", never)
    assert devices.find_devices() == ()


def test_looking_loads_no_torch() -> None:
    code = "import sys, workers.devices as d; d.find_devices(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.gpu
def test_the_devices_of_this_machine_are_found() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    assert len(devices.find_devices()) == torch.cuda.device_count()
