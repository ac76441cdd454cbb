"""What tests over real sockets share."""

from collections.abc import Iterator

import pytest
import zmq
from zmq.utils import garbage


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
