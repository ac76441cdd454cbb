"""What the system had too little of, by the words of an error, and what gives more of it: memory, processes.

Knows no process. Of files and disks, see `workers/room.py`.
"""

import re
import resource

from bus.headroom import headroom
from workers.room import THREADS

MEMORY = re.compile(
    r"MemoryError|OutOfMemoryError|out of memory|can(no|')t allocate memory|bad_alloc|not enough memory|"
    r"memory allocation .*failed|failed to map segment",
    re.IGNORECASE,
)
"""How the errors of Python, torch, CUDA and C++ say that there was no memory."""
TASKS = re.compile(
    r"can't start new thread|\[Errno 11\]|Thread creation failed|pthread_create failed|unavailable \(src/thread",
    re.IGNORECASE,
)
"""How those of Python, OpenMP, OpenBLAS and ZeroMQ say that there may be no more processes, threads among them."""


def group() -> str:
    """What a control group may have of memory; empty where none sets a limit."""
    limit = headroom().limit
    return "" if limit is None else f"{limit >> 20:,} MB"


def memory() -> str:
    """What gives a process more memory."""
    limit = group()
    return "free some, or raise ulimit -v" + (f", or the control group's (container's) {limit}" if limit else "")


def remedy(words: str) -> str:
    """What to do about what the launcher, or its helper, said last; empty: it had enough of everything."""
    if MEMORY.search(words):
        return f"out of memory: {memory()}"
    if not TASKS.search(words):
        return ""
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY  # a thread wants room for its stack
    return THREADS + (", or ulimit -v" if limited else "")
