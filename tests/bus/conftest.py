"""What tests over real sockets share, the two ends of a lane, and a world of mailboxes of every kind."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zmq
from zmq.utils import garbage

from bus import address, curve, keys, lane
from bus.segment import Segment
from bus.wire import Frame
from lanes import Ends
from worlds import World


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


@pytest.fixture(params=["virtual", "ipc", "tcp", "curve", "far", "lane"])
def world(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    if request.param == "lane":  # every tensor is a long one, so that the first message makes the memory
        monkeypatch.setattr(lane, "FROM", -1)
    directory = address.make_directory()
    made = World(request.param, directory)
    written = Segment.write

    def write(segment: Segment, first: Frame, rest: Sequence[Frame], slot: int, past: int) -> None:
        made.entries += 1
        written(segment, first, rest, slot, past)

    monkeypatch.setattr(Segment, "write", write)
    if request.param in ("curve", "far"):
        held = tmp_path_factory.mktemp("keys")
        keys.save(held, curve.new_keys())
        made.settings["keys"] = str(held)
    yield made
    for box in made.boxes:
        made.kill(box)
    made.leave()
    left = sorted(path.name for path in directory.iterdir())
    address.remove(directory)
    assert left == ["place"]


@pytest.fixture
def sockets(world: World) -> World:
    if world.kind == "virtual":
        pytest.skip("about sockets")
    return world


@pytest.fixture
def open_sockets(sockets: World) -> World:
    if sockets.kind in ("curve", "far"):
        pytest.skip("strangers do not get this far: tests/bus/test_keys.py")
    return sockets
