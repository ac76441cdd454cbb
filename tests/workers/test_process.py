"""The first and the last thing in every child: what goes wrong is one sentence, in the log and to the supervisor."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest

from bus import address
from conftest import DEADLINE_S
from workers.process import UNEXPECTED, by_number, enter, sentence
from workers.report import Report


def test_a_plan_that_cannot_be_read_is_one_sentence_and_its_trace_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "c0.1.log"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = get_context("spawn").Process(target=enter, args=(b"{", "c0", 1, theirs, os.getpid(), str(log)))
        child.start()
        child.join(DEADLINE_S)
        assert child.exitcode == UNEXPECTED
        ours.settimeout(DEADLINE_S)
        report = msgspec.msgpack.decode(ours.recv(1 << 16), type=Report)
        child.close()
    assert (report.component, report.incarnation, report.state) == ("c0", 1, "failed")
    assert report.reason.startswith("DecodeError: ")
    assert report.reason in log.read_text()
    assert "Traceback" in log.read_text()


def test_an_error_of_many_lines_is_one_sentence_after_where_it_was_raised() -> None:
    error = ValueError("sizes differ:\n  3\n  4")
    assert sentence(error) == "ValueError: sizes differ: 3 4"
    error.add_note("in its copy of c1's section")
    assert sentence(error) == "in its copy of c1's section: ValueError: sizes differ: 3 4"


@pytest.mark.parametrize(("device", "told"), [("3", "3"), ("12", "12"), ("", "0"), ("GPU-1f", "0")])
def test_an_error_names_the_device_as_people_do(monkeypatch: pytest.MonkeyPatch, device: str, told: str) -> None:
    """Torch calls the only one that a process sees 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device)
    text = "CUDA out of memory. Tried to allocate 20 GiB. GPU {0} has 10 GiB; two devices, cuda:{0} and cpu; GPU 07"
    assert by_number(text.format("0")) == text.format(told)


def test_a_log_holds_every_character_whatever_the_terminal_can_show(tmp_path: Path) -> None:
    log = tmp_path / "c0.1.log"
    code = (
        f"from pathlib import Path; from workers.process import redirect; redirect(Path({str(log)!r})); print('→ 木')"
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert log.read_text(encoding="utf-8") == "→ 木\n"


@pytest.fixture
def base() -> Iterator[Path]:
    """For private directories: short, and without those of live runs."""
    directory = address.make_directory()
    yield directory
    address.remove(directory)


def test_who_ends_with_its_launcher_removes_the_private_directories_that_are_left(base: Path) -> None:
    """As after kill -9; those of a launcher that lives stay."""
    own_base = {**os.environ, "TMPDIR": str(base)}
    keep = "from bus import address; print(address.make_directory(), flush=True); input()"
    ends = (
        "import sys; from bus import kernel; from workers.process import follow; "
        "watch = kernel.pidfd_open(int(sys.argv[1])); print(flush=True); follow(watch)"
    )
    piped = partial(subprocess.Popen, env=own_base, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with piped([sys.executable, "-c", keep]) as launcher, piped([sys.executable, "-c", keep]) as other:
        left, kept = (Path(each.stdout.readline().strip()) for each in (launcher, other))
        with piped([sys.executable, "-c", ends, str(launcher.pid)]) as child:
            child.stdout.readline()
            assert left.is_dir()
            launcher.kill()
            assert child.wait(DEADLINE_S) == -signal.SIGKILL
        assert not left.exists()
        assert kept.is_dir()
        other.kill()
