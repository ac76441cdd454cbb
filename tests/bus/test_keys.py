"""Who has the keys gets in; everybody else is refused, and counted; keys lie in private files."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
import zmq

from bus import address, curve, keys
from bus.sockets import ZmqMailbox
from configs.errors import ConfigError, RunError
from configs.tree import Bus
from mach.messages import Activation

DEADLINE_S = 30.0
pytestmark = pytest.mark.usefixtures("leaks")


def made(directory: Path) -> Path:
    keys.save(directory, curve.new_keys())
    return directory


def test_keys_are_written_once_and_privately(tmp_path: Path) -> None:
    directory = made(tmp_path / "deep" / "keys")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / keys.SECRET).stat().st_mode & 0o777 == 0o600
    before = keys.load(directory)
    assert len(before.public) == len(before.secret) == keys.LENGTH
    with pytest.raises(ConfigError, match="is there already"):
        keys.save(directory, curve.new_keys())
    assert keys.load(directory) == before


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: (d / keys.SECRET).chmod(0o640), "can be read by others"),
        (lambda d: (d / keys.SECRET).unlink(), "No such file"),
        (lambda d: (d / keys.PUBLIC).write_bytes(b"short"), "holds no key"),
        (lambda d: (d / keys.PUBLIC).write_bytes(b"\xff" * 40), "holds no key"),
        (lambda d: (d / keys.PUBLIC).write_bytes(curve.new_keys().public), "no pair"),
        (lambda d: (d / keys.SECRET).write_bytes(b"#" * 40), "no pair"),
    ],
)
def test_keys_that_cannot_be_used_are_refused(tmp_path: Path, spoil: Callable[[Path], None], complaint: str) -> None:
    directory = made(tmp_path / "keys")
    spoil(directory)
    with pytest.raises(ConfigError, match=complaint):
        keys.check(Bus(transport="tcp", keys=str(directory)))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"transport": "tcp", "host": "0.0.0.0"}, "needs keys; make some with `mach keys new DIR`"),
        ({"transport": "tcp", "host": "192.0.2.1"}, "needs keys"),
        ({"transport": "tcp", "host": "example"}, "no numeric IPv4 address"),
        ({"host": "192.0.2.1"}, "bus.host: is for bus.transport=tcp"),
        ({"keys": "somewhere"}, "bus.keys: is for bus.transport=tcp"),
        ({"transport": "tcp", "keys": "/nowhere"}, "No such file"),
    ],
)
def test_addresses_that_need_keys_and_keys_that_need_addresses(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        keys.check(msgspec.convert(settings, Bus))


@pytest.mark.parametrize("host", ["192.0.2.1", "224.0.0.1", "239.1.2.3", "255.255.255.255"])
def test_an_address_of_another_machine_or_of_many_is_refused_by_its_name(tmp_path: Path, host: str) -> None:
    bus = Bus(transport="tcp", host=host, keys=str(made(tmp_path / "keys")))
    with pytest.raises(
        ConfigError, match=rf"^bus.host: {host}: no connection can be made there \((Cannot as|Network is un).* 0.0.0.0"
    ):
        keys.check(bus)


def test_the_broadcast_address_of_a_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^bus.host: 127.255.255.255: no connection can be made there"):
        keys.check(Bus(transport="tcp", host="127.255.255.255"))


def test_keys_that_may_not_be_read_are_not_to_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    directory = made(tmp_path / "keys")
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ConfigError, match=r"public\.key: Permission denied; let this user read it, or make other keys"):
        keys.check(Bus(transport="tcp", keys=str(directory)))


def test_keys_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands what follows `--set bus.keys=`."""
    made(tmp_path / "keys")
    monkeypatch.setenv("HOME", str(tmp_path))
    keys.check(Bus(transport="tcp", keys="~/keys"))


def test_what_may_be(tmp_path: Path) -> None:
    keys.check(Bus())
    keys.check(Bus(transport="tcp", host="127.0.0.2"))
    keys.check(Bus(transport="tcp", host="0.0.0.0", keys=str(made(tmp_path / "keys"))))


def test_an_address_that_has_gone_is_told_by_its_name(tmp_path: Path) -> None:
    """As of a life that begins while the network is away: it is not to launch again, and knows no directory."""
    directory = address.make_directory()
    why = r"^no socket can be bound at bus.host 192.0.2.1 \(Cannot assign.*\); this machine has to have that address$"
    try:
        with pytest.raises(RunError, match=why):
            Run(directory).mailbox("c1", None, "192.0.2.1")
    finally:
        address.remove(directory)


class Run:
    """Mailboxes of c0, which asks c1, over tcp."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.boxes: list[ZmqMailbox] = []

    def mailbox(self, name: str, held: Path | None, host: str = "127.0.0.1") -> ZmqMailbox:
        bus = Bus(transport="tcp", hello_ms=40, host=host, keys=None if held is None else str(held))
        children, parents = (("c1",), ()) if name == "c0" else ((), ("c0",))
        box = ZmqMailbox(
            name, run_id="r", incarnation=1, children=children, parents=parents, bus=bus, directory=self.directory
        )
        self.boxes.append(box)
        return box

    def until(self, done: Callable[[], bool]) -> None:
        end = self.boxes[0].now() + DEADLINE_S
        while not done():
            assert self.boxes[0].now() < end, [(box.name, dict(box.counts.dropped)) for box in self.boxes]
            for box in self.boxes:
                box.receive(0.005)

    def endpoint(self) -> str:
        found = address.endpoint_of(self.directory, "c1")
        assert found is not None
        return found


@pytest.fixture
def run() -> Iterator[Run]:
    directory = address.make_directory()
    found = Run(directory)
    yield found
    for box in found.boxes:
        box._transport.close()
    address.remove(directory)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_both_with_the_keys_of_the_run_talk(run: Run, tmp_path: Path, host: str) -> None:
    held = made(tmp_path / "keys")
    parent, child = run.mailbox("c0", held, host), run.mailbox("c1", held, host)
    run.until(lambda: parent.room("c1"))
    assert parent.send("c1", Activation(0, 0, torch.ones(100_000)))
    (letter,) = child.receive(DEADLINE_S)
    assert isinstance(letter.message, Activation)
    assert not parent.counts.dropped
    assert not child.counts.dropped


@pytest.mark.parametrize("parents", ["another run's", "none"])
def test_a_parent_without_the_right_keys_is_refused_and_counted(run: Run, tmp_path: Path, parents: str) -> None:
    held = None if parents == "none" else made(tmp_path / "other")
    parent, child = run.mailbox("c0", held), run.mailbox("c1", made(tmp_path / "keys"))
    run.until(lambda: child.counts.dropped["bad-key"] > 0)
    assert not parent.room("c1")
    assert set(child.counts.dropped) == {"bad-key"}
    assert not child.counts.received


def test_the_public_key_alone_does_not_open_the_door(run: Run, tmp_path: Path) -> None:
    """A client that knows it, and has a pair of its own: ZAP refuses it."""
    held = keys.load(made(tmp_path / "keys"))
    child = run.mailbox("c1", tmp_path / "keys")
    own = curve.new_keys()
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.curve_publickey, stranger.curve_secretkey, stranger.curve_serverkey = *own, held.public
        stranger.connect(run.endpoint())
        stranger.send(b"let me in")
        run.until(lambda: child.counts.dropped["bad-key"] > 0)
    assert set(child.counts.dropped) == {"bad-key"}


def test_a_bare_socket_of_old_zmtp_delivers_nothing(run: Run, tmp_path: Path) -> None:
    child = run.mailbox("c1", made(tmp_path / "keys"))
    host, _, port = run.endpoint().removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as stranger:
        stranger.sendall(b"\x01\x00\x06\x00hello")
        while stranger.recv(4096):  # a greeting at most, and then it hangs up
            child.receive()
    child.receive()
    assert not child.counts.received
    assert set(child.counts.dropped) <= {"bad-key"}


def test_every_stranger_is_counted_once_and_the_parent_of_the_run_gets_in(run: Run, tmp_path: Path) -> None:
    """No key, another run's key for the server, the pair of another run, this run's public key with another pair."""
    held, other = made(tmp_path / "keys"), curve.new_keys()
    mine = keys.load(held)
    parent, child = run.mailbox("c0", held), run.mailbox("c1", held)
    with zmq.Context() as context:
        strangers = []
        for pair, server in ((None, b""), (mine, other.public), (other, other.public), (other, mine.public)):
            stranger = context.socket(zmq.DEALER)
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.setsockopt(zmq.RECONNECT_IVL, -1)  # each tries once
            if pair is not None:
                stranger.curve_publickey, stranger.curve_secretkey, stranger.curve_serverkey = *pair, server
            stranger.connect(run.endpoint())
            strangers.append(stranger)
        run.until(lambda: child.counts.dropped["bad-key"] >= len(strangers) and parent.room("c1"))
        for stranger in strangers:
            stranger.close()
    assert child.counts.dropped == {"bad-key": len(strangers)}
