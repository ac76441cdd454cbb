"""Imported by the forkserver alone, before all that is large (`workers.process.PRELOAD`): it looks for no garbage.

That is a tenth of the time of its imports. What it has imported is none, and its children, which look for theirs,
leave those pages alone. And it looks for the temporary directory once for all of them, and leaves without a traceback
when its launcher hangs up in the middle of a word, as at a limit, which it says itself. Knows nothing else.
"""

import gc
import os
import sys
import tempfile
from types import TracebackType

gc.disable()
os.register_at_fork(before=gc.freeze, after_in_child=gc.enable)
# A file is written there and removed. Who looked for it first when its launcher was killed, to sweep, would be killed
# before the file was removed.
tempfile.gettempdir()


def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`, but of what its launcher says itself."""
    if kind is not EOFError:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = hook
