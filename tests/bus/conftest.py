"""What tests over real sockets share, and the two ends of a lane."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from zmq.utils import garbage

from bus import lane
from lanes import Ends


@pytest.fixture(scope="session", autouse=True)
def _collector() -> Iterator[None]:
    """pyzmq starts one thread per process at the first send without a copy; that is no leak of a test."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://first")
        other.connect("inproc://first")
        one.send(bytes(1 << 20), copy=False)
        other.recv()
    yield
    garbage.gc.stop()


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """Of a lane whose reader looks at its socket every time; nothing of them is left in the directory."""
    monkeypatch.setattr(lane, "QUIET_S", 0.0)
    made = Ends(tmp_path)
    yield made
    made.parent.close()
    made.child.close()
    assert list(tmp_path.iterdir()) == []
