"""What this machine can do: every check passes here, and whatever breaks is one failed line."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bus import address, headroom, segment
from configs.errors import RunError
from workers import doctor, interpreter
from workers.doctor import Check
from workers.room import THREADS

NAMES = ["versions", "devices", "ulimits", "runs directory", "sockets", "shared memory", "bus round trip"]


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of its own for private directories, with a path that is short enough: `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setenv("TMPDIR", place)
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield Path(place)


@pytest.mark.usefixtures("leaks")
def test_every_check_passes_here_and_the_round_trip_is_measured(tmp_path: Path, sockets: Path) -> None:
    assert address.base() == sockets
    checks = doctor.run(tmp_path / "runs")
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.verdict == "fail"] == []
    measured = re.fullmatch(r"(\d+) µs over ipc, 32 KiB each way", checks[-1].text)
    assert measured is not None
    assert int(measured[1]) > 0
    assert all(name in checks[0].text for name in ("Python 3.", "mach-train ", "torch ", "numpy ", "libzmq 4."))
    assert not (tmp_path / "runs").exists()
    assert list(sockets.iterdir()) == []


def test_a_broken_check_is_one_failed_line() -> None:
    def broken() -> Check:
        raise ImportError("libcuda.so: cannot open\n  shared object file")

    assert doctor.attempt("torch", broken) == Check(
        "torch", "fail", "ImportError: libcuda.so: cannot open shared object file"
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemError('no torch here')", "the checking process ended with 1: SystemError: no torch here"),
        ("print('hello')", "the checking process ended with 0: it said nothing"),
        ("print('[]')", "the checking process ended with 0: it said nothing"),
        (
            "import sys; sys.exit('Resource temporarily unavailable (src/thread.cpp:241)')",
            "the checking process ended with 1: Resource temporarily unavailable (src/thread.cpp:241); " + THREADS,
        ),
        ("import os; os.abort()", "the checking process ended with -6: it said nothing"),
    ],
)
def test_a_process_that_breaks_fails_its_checks(monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    real = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command == [sys.executable, *interpreter.options(), "-m", "workers.doctor"]
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.probe() == [Check(name, "fail", reason) for name in doctor.HEAVY]


def test_a_process_that_hangs_fails_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_S", 0.0)
    assert {(check.verdict, check.text) for check in doctor.probe()} == {("fail", "no answer within 0 s")}


def test_a_missing_interpreter_fails_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert doctor.probe()[0].text == "/nowhere/python cannot be started (No such file or directory)"


def test_a_file_in_place_of_the_runs_directory_fails(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    check = doctor.writable(tmp_path / "runs")
    assert (check.verdict, check.text) == (
        "fail",
        f"{tmp_path / 'runs'} is no directory; name another one with --runs",
    )


def test_a_place_that_takes_no_file_fails_in_words_of_its_own() -> None:
    check = doctor.writable(Path("/proc/x"))
    text = "/proc: no file can be written there (No such file or directory); name another place with --runs"
    assert (check.verdict, check.text) == ("fail", text)


def test_a_full_disk_fails_and_a_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as there: a file can be made, and takes no byte
    try:
        assert doctor.writable(tmp_path).verdict == "fail"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    usage = shutil.disk_usage(tmp_path)._replace(free=99 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check = doctor.writable(tmp_path)
    assert (check.verdict, check.text) == (
        "warn",
        f"{tmp_path} can be written, 99 MB free; make room, or name another place with --runs",
    )


def test_sockets_without_a_place_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RunError("no short writable directory for sockets")

    monkeypatch.setattr(address, "base", nowhere)
    assert doctor.attempt("sockets", doctor.sockets).text == "no short writable directory for sockets"


@pytest.mark.parametrize(("files", "verdict"), [(1023, "warn"), (1024, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch, files: int, verdict: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    monkeypatch.setattr(doctor, "tasks_left", lambda: None)
    assert doctor.limits().verdict == verdict


@pytest.mark.parametrize(("left", "verdict"), [(None, "ok"), (44, "ok"), (43, "warn"), (9, "warn"), (8, "fail")])
def test_where_few_processes_may_be_added_it_is_told_how_many_a_launch_takes(
    monkeypatch: pytest.MonkeyPatch, left: int | None, verdict: str
) -> None:
    monkeypatch.setattr(doctor, "tasks_left", lambda: left)
    check = doctor.limits()
    assert check.verdict == verdict
    told = f"; room for {left} more processes and threads: a launch takes 4, every component 5; raise ulimit -u, or "
    assert (told in check.text) == (verdict != "ok")


@pytest.mark.parametrize(("uid", "leave", "left"), [(0, None, None), (0, 7, 7), (1, None, 90), (1, 7, 7), (1, 200, 90)])
def test_the_limit_of_processes_counts_those_that_the_user_has(
    monkeypatch: pytest.MonkeyPatch, uid: int, leave: int | None, left: int | None
) -> None:
    users = [(os.getuid(), 4), (os.getuid(), 6), (os.getuid() + 1, 50)]
    found = [SimpleNamespace(info={"uids": SimpleNamespace(real=uid), "num_threads": count}) for uid, count in users]
    monkeypatch.setattr(psutil, "process_iter", lambda _: [*found, SimpleNamespace(info={"uids": None})])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(headroom, "tasks", lambda: leave)
    assert doctor.tasks_left() == left


def test_a_machine_on_which_no_process_may_be_added_says_which_limit_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", full)
    assert doctor.probe()[0].text.endswith("cannot be started (Resource temporarily unavailable); " + THREADS)


def test_without_a_temporary_directory_it_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found in [...]")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    for check in (doctor.sockets, doctor.shared_memory, doctor.round_trip):
        found = doctor.attempt("some", check)
        assert (found.verdict, "; make room, or set TMPDIR to a directory that can be written" in found.text) == (
            *("fail", True),
        )
        assert found.text.startswith("there is no temporary directory: ")


@pytest.mark.parametrize(
    ("found", "driver", "verdict", "text"),
    [
        (("0", "3"), True, "ok", "CUDA 0, 3"),
        ((), False, "ok", "no CUDA device: components train on the CPU"),
        ((), True, "warn", "a driver, but no CUDA device that torch can use; see CUDA_VISIBLE_DEVICES"),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], driver: bool, verdict: str, text: str
) -> None:
    monkeypatch.setattr(doctor, "find_devices", lambda: found)
    monkeypatch.setattr(doctor, "has_driver", lambda: driver)
    check = doctor.devices()
    assert (check.verdict, check.text) == (verdict, text)


@pytest.mark.parametrize(
    ("free", "limit", "verdict", "text"),
    [
        (4096, None, "ok", "4,096 MB free, room for messages of up to 204 MB (bus.window=2)"),
        (1 << 20, None, "ok", "1,048,576 MB free, room for messages of up to 256 MB (bus.window=2)"),
        (256, 8192, "ok", "256 MB of the control group's 8,192 free, room for messages of up to 12 MB (bus.window=2)"),
        (255, 512, "warn", "255 MB of the control group's 512 free, room for messages of up to 12 MB (bus.window=2)"),
        (
            *(0, 64, "warn"),
            "no ring can be made (452 KB are more than 1/4 of the 0 MB of the control group's 64 that are free)",
        ),
    ],
)
def test_shared_memory_is_bounded_by_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, limit: int | None, verdict: str, text: str
) -> None:
    left = headroom.Headroom(free << 20, None if limit is None else limit << 20)
    for module in (headroom, segment):
        monkeypatch.setattr(module, "headroom", lambda: left)
    monkeypatch.setattr(segment, "ORDERED", True)
    check = doctor.shared_memory()
    assert (check.name, check.verdict) == ("shared memory", verdict)
    assert check.text.startswith(text)


@pytest.mark.usefixtures("leaks")
def test_shared_memory_is_made_and_filled_as_the_lane_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is allowed no larger files is not given a larger memfd; /dev/shm has nothing to do with it."""
    assert doctor.ring() == ""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        assert doctor.ring() == "no ring can be made (File too large)"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(segment, "find", lambda door, number: None)
    assert doctor.ring() == "a ring cannot be opened through /proc"
    monkeypatch.setattr(segment, "ORDERED", False)
    assert doctor.shared_memory().text.startswith("not used on ")
