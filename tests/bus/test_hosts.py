"""Which of several machines this one is, where everybody listens, and what is refused before anything starts."""

import errno
import os
import socket
from pathlib import Path

import pytest

from bus import curve, hosts, keys
from configs.errors import ConfigError
from configs.tree import Bus

OURS, ALSO, OTHER = (f"127.{first}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}" for first in (91, 92, 93))
"""Addresses that no other process of this suite has; the last is taken for another machine's."""


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This one, though Linux has all of 127.0.0.0/8."""
    ours = hosts._is_ours
    monkeypatch.setattr(hosts, "_is_ours", lambda host: host != OTHER and ours(host))


def bus(tmp_path: Path, *machines: str, **settings: object) -> Bus:
    place = tmp_path / "keys"
    if not place.exists():
        keys.save(place, curve.new_keys())
    return Bus(**({"transport": "tcp", "keys": str(place), "hosts": machines} | settings))  # type: ignore[arg-type]


def test_a_run_without_machines_is_all_here() -> None:
    assert hosts.here(Bus()) == ""
    hosts.check(Bus())


def test_this_machine_is_the_one_whose_address_it_has(tmp_path: Path) -> None:
    several = bus(tmp_path, OTHER, OURS, OTHER)
    assert hosts.here(several) == OURS
    keys.check(several)
    assert hosts.here(bus(tmp_path, OTHER, OURS, here=OTHER)) == OTHER, "what is said counts"


@pytest.mark.parametrize(
    ("machines", "why"),
    [
        ((OURS, ALSO), rf"^bus.hosts: {OURS} and {ALSO} are all addresses of this machine; say which .*bus.here="),
        (
            ("192.0.2.7", "192.0.2.8"),
            r"^bus.hosts: none of 192.0.2.7, 192.0.2.8 is an address of this machine; .*=0\.0\.0\.0 ",
        ),
    ],
    ids=["several", "none"],
)
def test_who_cannot_tell_is_to_be_told(tmp_path: Path, machines: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        keys.check(bus(tmp_path, *machines))


def test_everybody_listens_at_its_machine_on_a_port_of_its_own(tmp_path: Path) -> None:
    settings = bus(tmp_path, OURS, OTHER, port=4000)
    assert [hosts.endpoint(settings, index) for index in range(2)] == [f"tcp://{OURS}:4000", f"tcp://{OTHER}:4001"]
    behind = bus(tmp_path, OURS, OTHER, port=4000, host="0.0.0.0")
    assert hosts.endpoint(behind, 1, bind=True) == "tcp://0.0.0.0:4001"
    assert hosts.endpoint(behind, 1) == f"tcp://{OTHER}:4001"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"transport": "ipc", "keys": None}, "bus.hosts: machines reach each other over tcp and with keys alone"),
        ({"keys": None}, "bus.hosts: .*`mach keys new DIR`, copy DIR to every machine"),
        ({"hosts": (OURS, "example")}, "bus.hosts: 'example' is no numeric IPv4 address"),
        ({"hosts": (OURS, "0.0.0.0")}, "bus.hosts: 0.0.0.0 is no address of one machine"),
        ({"hosts": (OURS, "224.0.0.1")}, "bus.hosts: 224.0.0.1 is no address of one machine"),
        ({"here": ALSO}, f"bus.here: {ALSO} is none of bus.hosts: {OURS}, {OTHER}"),
        ({"host": ALSO}, f"bus.host: {ALSO} stands beside bus.hosts"),
        ({"port": 65535}, "bus.port: 65535 leaves no room below 65536 for 2 components"),
        (
            {"hosts": ("192.0.2.7", "192.0.2.8"), "here": "192.0.2.8"},
            r"bus.hosts: c1 cannot listen at 192.0.2.8:27701 \(Cannot assign.*\); set bus.host=0.0.0.0",
        ),
        ({"hosts": (OURS, "192.0.2.7")}, "bus.hosts: 127.… is this machine to each that reads it"),
        ({"hosts": (), "here": OURS}, "bus.here: is for a run over several machines"),
    ],
    ids=[*"0123456789a"],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=f"^{why}"):
        keys.check(bus(tmp_path, OURS, OTHER, **settings))


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "LEAVING_S", 0.0)
    with socket.socket() as taken:
        taken.bind((OURS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        why = rf"^bus.hosts: c1 cannot listen at {OURS}:{port} \(Address already in use\); choose another bus.port"
        with pytest.raises(ConfigError, match=why):
            keys.check(bus(tmp_path, OTHER, OURS, port=port - 1))
        keys.check(bus(tmp_path, OTHER, OURS, OTHER, port=port - 2))  # there another machine's component listens


def test_a_port_that_a_killed_component_is_about_to_leave_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [OSError(errno.EADDRINUSE, "Address already in use"), None]
    monkeypatch.setattr(hosts, "_listen", lambda place: said.pop(0))
    keys.check(bus(tmp_path, OURS, OTHER))
    assert said == []
