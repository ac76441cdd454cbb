"""The launcher's desk, over its real socket."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import RunError
from workers.desk import ASKERS, NAME, Answer, Ask, Desk, Promise, ask


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def connect(path: Path) -> socket.socket:
    asker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asker.connect(str(path / NAME))
    return asker


def done(wanted: Ask) -> Promise:
    return lambda: Answer(done=True, text=wanted.restart)


def test_who_asks_is_answered_when_it_is_done(desk: Desk, tmp_path: Path, leaks: None) -> None:
    answers: list[Answer | None] = [None, None, Answer(done=True, text="c2 begins anew")]
    with connect(tmp_path) as asker:
        asker.send(b'{"restart": "c2"}')
        for _ in range(3):
            assert answers
            desk.serve(lambda wanted: lambda: answers.pop(0))
        assert b"c2 begins anew" in asker.recv(1000)
        assert asker.recv(1000) == b"", "one request, one answer"


@pytest.mark.parametrize("packet", [b"\xff", b"[]", b'{"restart": 3}', b'{"kill": "c0"}'])
def test_nonsense_is_answered_and_silence_is_let_be(desk: Desk, tmp_path: Path, packet: bytes) -> None:
    with connect(tmp_path), connect(tmp_path) as asker, connect(tmp_path) as gone:
        gone.close()
        asker.send(packet)
        desk.serve(done)
        assert b"not understood" in asker.recv(1000)
        desk.serve(done)


def test_many_that_say_nothing_do_not_pile_up(desk: Desk, tmp_path: Path) -> None:
    askers = []
    for _ in range(3 * ASKERS):
        askers.append(connect(tmp_path))
        desk.serve(done)
    assert len(desk.sockets()) == 1 + ASKERS
    askers[-1].send(b'{"restart": "c1"}')
    desk.serve(done)
    assert b"c1" in askers[-1].recv(1000)
    for asker in askers:
        asker.close()


def test_asking_is_one_call(desk: Desk, tmp_path: Path) -> None:
    found: list[Answer] = []
    asker = threading.Thread(target=lambda: found.append(ask(tmp_path, Ask(restart="c1"), 30.0)))
    asker.start()
    while asker.is_alive():
        desk.serve(done)
        asker.join(0.01)
    assert found == [Answer(done=True, text="c1")]


def test_nobody_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is another place here, as in a container .* where the launcher runs$"):
        ask(tmp_path, Ask(restart="c1"), 1.0)
    Desk(tmp_path).close()
    with pytest.raises(RunError, match=r"\(Connection refused\); see mach status$"):
        ask(tmp_path, Ask(restart="c1"), 1.0)


def test_a_launcher_that_ends_lets_nobody_wait(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with connect(tmp_path) as asker:
        asker.send(b'{"restart": "c2"}')
        desk.serve(lambda wanted: lambda: None)
        desk.close()
        assert asker.recv(1000) == b""
