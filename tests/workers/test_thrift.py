"""The forkserver's first import: no garbage is looked for while it imports, and its children look for their own."""

import subprocess
import sys

import pytest

CODE = """
import gc, os
import workers.thrift
print(gc.isenabled(), gc.get_freeze_count(), flush=True)
if child := os.fork():
    os.waitpid(child, 0)
else:
    print(gc.isenabled(), gc.get_freeze_count(), flush=True)
"""


def test_a_child_of_the_forkserver_looks_for_its_own_garbage_alone() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    server, child = done.stdout.splitlines()
    assert server == "False 0"
    looks, frozen = child.split()
    assert looks == "True"
    assert int(frozen) > 1000, "what was there before the child was"


def test_a_child_of_the_forkserver_knows_the_temporary_directory() -> None:
    """To find it, a file is written there, which one that is killed meanwhile leaves."""
    code = "import tempfile, workers.thrift; print(tempfile.tempdir is not None)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize(("error", "says"), [("EOFError", False), ("ValueError", True)])
def test_a_forkserver_on_which_its_launcher_hung_up_ends_without_a_traceback(error: str, says: bool) -> None:
    code = f"import workers.thrift; raise {error}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, says)
