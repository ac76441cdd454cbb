"""What to do when the system takes no more of what is to be written: the disk is full, or a limit of ours is reached.

Knows errors by their numbers, and no file.
"""

import errno

ROOM, WRITABLE = "make room", "make it writable"
"""Of one place only: another one would do."""
THREADS = "raise ulimit -u, or the container's limit of processes (pids)"
WAYS = {
    None: ROOM,
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "raise fs.file-max of this machine",
    errno.EFBIG: "raise ulimit -f",
    errno.EAGAIN: THREADS,
    errno.ENOMEM: "free some memory, or raise ulimit -v",
}


def room(number: int | None) -> str:
    """What to do, of an error of this number; None: it is not known."""
    return WAYS.get(number, WRITABLE)
