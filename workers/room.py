"""What to do when the system takes no more of what is to be written: the disk is full, or a limit of ours is reached.

Knows errors by their numbers, and no file.
"""

import errno

WAYS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "raise fs.file-max of this machine",
    errno.EFBIG: "raise ulimit -f",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Those that are of one place only: another one would do."""


def room(number: int | None, otherwise: str = "make room") -> str:
    """What to do, of an error of this number; `otherwise`, of one that tells of no limit."""
    return otherwise if number is None else WAYS.get(number, otherwise)
