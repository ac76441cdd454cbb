"""Imported first of all by a process that shall die with the one that started it, at once: the forkserver
(`workers.process.PRELOAD`), and who tries something out (`workers/tryout.py`).

By itself the forkserver would notice an ended launcher and then take its interpreter apart, with torch in it: more than
a second on a busy machine, in which a stopped component still lives. Knows nothing else.
"""

import ctypes
import signal

PR_SET_PDEATHSIG = 1

ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the launcher's other watches remain if it fails
