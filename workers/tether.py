"""Imported by the forkserver alone, first of all (`workers.process.PRELOAD`): it dies with its launcher, at once.

By itself it would notice an ended launcher and then take its interpreter apart, with torch in it: more than a second
on a busy machine, in which a stopped component still lives.

Nor does it look for garbage while it imports, a tenth of that time; what it has imported is none, and its children,
which look for theirs, leave those pages alone. Knows nothing else.
"""

import ctypes
import gc
import os
import signal

PR_SET_PDEATHSIG = 1

ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the launcher's other watches remain if it fails

gc.disable()
os.register_at_fork(before=gc.freeze, after_in_child=gc.enable)
