"""Imported by the forkserver alone, before all that is large (`workers.process.PRELOAD`): it looks for no garbage.

That is a tenth of the time of its imports. What it has imported is none, and its children, which look for theirs,
leave those pages alone. Knows nothing else.
"""

import gc
import os

gc.disable()
os.register_at_fork(before=gc.freeze, after_in_child=gc.enable)
