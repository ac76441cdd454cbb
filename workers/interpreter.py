"""How processes of ours start another Python. Knows no process.

Law: they find the modules that this one finds. Of itself `python -c` and `python -m` look into the working directory
first, where a stranger's queue.py may lie, as in /tmp; so may ours where it was meant, and there alone: it is on this
one's own path, as `python -m mach` and PYTHONPATH=. put it there.
"""

import os
import sys


def looks_here() -> bool:
    """Whether this Python looks for modules in the working directory, before it looks among its own."""
    try:
        own, here = os.path.realpath(os.path.dirname(os.__file__)), os.getcwd()
    except FileNotFoundError:
        return False  # a directory that was removed has no modules
    for place in sys.path:
        if os.path.realpath(place) == own:
            return False
        if os.path.realpath(place) == here:  # of '', too
            return True
    return False


def options() -> list[str]:
    """For the command of another one, ahead of its -c or -m."""
    return [] if looks_here() else ["-P"]
