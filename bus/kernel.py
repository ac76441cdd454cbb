"""What Linux offers and a Python may lack: a portable build knows only what the old headers did that it was built on.

    memfd_create         memory with a descriptor, and the seals that keep it whole
    pidfd_open           a process that is held: its end can be waited for, and its number is given to nobody else
    pidfd_send_signal    to the process that is held, and no other

Python's own where they are, else (`*_by_c`) the C library's. Knows nothing of ours. Law: what goes wrong is the same
OSError either way, also where the C library or the kernel has no such thing (ENOSYS).
"""

import ctypes
import errno
import fcntl
import os
import signal

F_ADD_SEALS: int = getattr(fcntl, "F_ADD_SEALS", 1033)
F_GET_SEALS: int = getattr(fcntl, "F_GET_SEALS", 1034)
F_SEAL_SEAL: int = getattr(fcntl, "F_SEAL_SEAL", 1)
F_SEAL_SHRINK: int = getattr(fcntl, "F_SEAL_SHRINK", 2)
F_SEAL_GROW: int = getattr(fcntl, "F_SEAL_GROW", 4)
_CLOEXEC, _ALLOW_SEALING = 1, 2
"""Flags of a memfd."""
_SEND_SIGNAL, _OPEN = 424, 434
"""Numbers of the calls about pidfds, which are the same on x86-64 and on ARM."""
_libc = ctypes.CDLL(None, use_errno=True)


def memfd_create(name: str) -> int:
    """A descriptor of new memory, which can be sealed and is passed on to no program."""
    create = getattr(os, "memfd_create", memfd_create_by_c)
    descriptor: int = create(name, _CLOEXEC | _ALLOW_SEALING)
    return descriptor


def pidfd_open(pid: int) -> int:
    """A descriptor of a process: readable when it has ended; passed on to no program.

    Raises:
        ProcessLookupError: there is none.
    """
    descriptor: int = getattr(os, "pidfd_open", pidfd_open_by_c)(pid)
    return descriptor


def pidfd_send_signal(descriptor: int, number: int) -> None:
    """Send a signal to the process behind a descriptor.

    Raises:
        ProcessLookupError: it has ended.
    """
    getattr(signal, "pidfd_send_signal", pidfd_send_signal_by_c)(descriptor, number)


def memfd_create_by_c(name: str, flags: int) -> int:
    """As `os.memfd_create`."""
    create = getattr(_libc, "memfd_create", None)
    if create is None:  # glibc before 2.27
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return _checked(create(os.fsencode(name), ctypes.c_uint(flags)))


def pidfd_open_by_c(pid: int) -> int:
    """As `os.pidfd_open`."""
    return _checked(_libc.syscall(ctypes.c_long(_OPEN), ctypes.c_long(pid), ctypes.c_long(0)))


def pidfd_send_signal_by_c(descriptor: int, number: int) -> None:
    """As `signal.pidfd_send_signal`."""
    words = (_SEND_SIGNAL, descriptor, number, 0, 0)
    _checked(_libc.syscall(*map(ctypes.c_long, words)))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
