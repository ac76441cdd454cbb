"""What a Python may lack, through the C library: the same as Python's own."""

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from bus import kernel
from conftest import DEADLINE_S

pytestmark = pytest.mark.usefixtures("leaks")
OPENS = (kernel.pidfd_open, kernel.pidfd_open_by_c)
"""The first are Python's own, where it has them."""
SENDS = (kernel.pidfd_send_signal, kernel.pidfd_send_signal_by_c)


@pytest.fixture
def waiting() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when it is told to."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.skipif(not hasattr(fcntl, "F_ADD_SEALS"), reason="this Python has none")
def test_the_numbers_are_those_of_the_kernel() -> None:
    for name in ("F_ADD_SEALS", "F_GET_SEALS", "F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW"):
        assert getattr(kernel, name) == getattr(fcntl, name)
    assert kernel._CLOEXEC | kernel._ALLOW_SEALING == os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING


@pytest.mark.parametrize("lacking", [False, True])
def test_memory_has_its_name_stays_here_and_can_be_sealed(monkeypatch: pytest.MonkeyPatch, lacking: bool) -> None:
    if lacking:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = kernel.memfd_create("mach-test")
    try:
        assert os.readlink(f"/proc/self/fd/{descriptor}") == "/memfd:mach-test (deleted)"
        assert not os.get_inheritable(descriptor)
        os.ftruncate(descriptor, 4096)
        fcntl.fcntl(descriptor, kernel.F_ADD_SEALS, kernel.F_SEAL_SHRINK | kernel.F_SEAL_GROW)
        assert fcntl.fcntl(descriptor, kernel.F_GET_SEALS) == kernel.F_SEAL_SHRINK | kernel.F_SEAL_GROW
        for size in (0, 8192):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("create", [kernel.memfd_create, partial(kernel.memfd_create_by_c, flags=0)])
def test_a_name_that_the_kernel_refuses_is_an_os_error(create: Callable[[str], int]) -> None:
    with pytest.raises(OSError, match="Invalid argument") as raised:
        create("x" * 300)
    assert raised.value.errno == errno.EINVAL


def test_a_c_library_without_memfds_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_libc", object())
    with pytest.raises(OSError, match="not implemented") as raised:
        kernel.memfd_create_by_c("mach-test", 0)
    assert raised.value.errno == errno.ENOSYS


@pytest.mark.parametrize(("open_", "send"), [*zip(OPENS, SENDS, strict=True)])
def test_a_process_is_held_told_and_seen_to_end(
    waiting: "subprocess.Popen[bytes]", open_: Callable[[int], int], send: Callable[[int, int], None]
) -> None:
    watch = open_(waiting.pid)
    try:
        assert not os.get_inheritable(watch)
        assert not select.select([watch], [], [], 0)[0]
        send(watch, signal.SIGTERM)
        assert select.select([watch], [], [], DEADLINE_S)[0] == [watch]
        assert waiting.wait(DEADLINE_S) == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            send(watch, signal.SIGTERM)
        with pytest.raises(ProcessLookupError):
            open_(waiting.pid)
    finally:
        os.close(watch)


@pytest.mark.parametrize("open_", OPENS)
def test_a_number_that_no_process_has_is_an_os_error(open_: Callable[[int], int]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        open_(0)


def test_a_python_that_lacks_all_of_it_has_its_lane_and_its_watches() -> None:
    code = (
        "import fcntl, os, signal\n"
        "for name in [each for each in dir(fcntl) if 'SEAL' in each]: delattr(fcntl, name)\n"
        "for name in [each for each in dir(os) if each.startswith(('memfd', 'MFD_', 'pidfd'))]: delattr(os, name)\n"
        "vars(signal).pop('pidfd_send_signal', None)\n"
        "from workers import background, doctor, commands, process\n"
        "print(doctor.ring() or 'a ring')\n"
        "process.die_with(os.getppid())\n"
        "print('a watch')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("a ring\na watch\n", "")
