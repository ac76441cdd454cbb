"""A run over several machines: which of `bus.hosts` this one is, and where everybody listens. Knows no ZeroMQ.

No file says to another machine where a socket was bound, so there every component's port is one that all can tell:
`bus.port` and its number. Laws: machines reach each other with keys alone. A port that is taken is told before
anything starts.
"""

import errno
import ipaddress
import socket
import time

from configs.errors import ConfigError
from configs.tree import Bus

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
PORTS = 1 << 16
LEAVING_S, LOOK_S = 1.0, 0.05
"""Longest time for a killed process to let go of its port, and between two looks."""


def check(bus: Bus) -> None:
    """Refuse `bus.hosts` that cannot be.

    Raises:
        ConfigError: with what to do instead.
    """
    if not bus.hosts:
        if bus.here is not None:
            raise ConfigError("bus.here: is for a run over several machines; set bus.hosts as well, or leave it out")
        return
    if bus.transport != "tcp" or bus.keys is None:
        raise ConfigError(
            "bus.hosts: machines reach each other over tcp and with keys alone; make some with `mach keys new DIR`, "
            "copy DIR to every machine, and give --set bus.transport=tcp --set bus.keys=DIR on each"
        )
    loopback = {_is_loopback(host) for host in bus.hosts}
    if len(loopback) > 1:
        raise ConfigError("bus.hosts: 127.… is this machine to each that reads it; give the address that others reach")
    if bus.here is not None and bus.here not in bus.hosts:
        raise ConfigError(f"bus.here: {bus.here} is none of bus.hosts: {', '.join(dict.fromkeys(bus.hosts))}")
    if bus.host not in (LOOPBACK, EVERYWHERE):
        raise ConfigError(
            f"bus.host: {bus.host} stands beside bus.hosts, whose addresses are bound; leave it out, or set "
            f"{EVERYWHERE} for all that this machine has"
        )
    if bus.port + len(bus.hosts) > PORTS:
        raise ConfigError(f"bus.port: {bus.port} leaves no room below {PORTS} for {len(bus.hosts)} components' ports")


def check_ports(bus: Bus) -> None:
    """Refuse this machine's ports where something else listens.

    Raises:
        ConfigError: with what to do instead.
    """
    own = here(bus)
    for index, host in enumerate(bus.hosts):
        if host == own:
            _try_out(bus, index)


def here(bus: Bus) -> str:
    """The address, of those in `bus.hosts`, of this machine; empty: the run is all on this one.

    Raises:
        ConfigError: none of them is, or several are and `bus.here` does not say which.
    """
    hosts = tuple(dict.fromkeys(bus.hosts))
    if not hosts or bus.here is not None:
        return bus.here or ""
    ours = [host for host in hosts if _is_ours(host)]
    if len(ours) == 1:
        return ours[0]
    found = f"{' and '.join(ours)} are all" if ours else f"none of {', '.join(hosts)} is an"
    raise ConfigError(
        f"bus.hosts: {found} address{'es' if ours else ''} of this machine; say which one it is with --set "
        "bus.here=ADDRESS" + ("" if ours else f", and bus.host={EVERYWHERE} where that leads here by way of another")
    )


def endpoint(bus: Bus, index: int, *, bind: bool = False) -> str:
    """Where component `index` is reached or, to `bind`, listens."""
    return f"tcp://{_address(bus, index, bind=bind)}:{bus.port + index}"


def _address(bus: Bus, index: int, *, bind: bool) -> str:
    return EVERYWHERE if bind and bus.host == EVERYWHERE else bus.hosts[index]


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise ConfigError(f"bus.hosts: {host!r} is no numeric IPv4 address") from None
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"bus.hosts: {host} is no address of one machine")
    return address.is_loopback


def _is_ours(host: str) -> bool:
    with socket.socket() as door:
        try:
            door.bind((host, 0))
        except OSError:
            return False
    return True


def _try_out(bus: Bus, index: int) -> None:
    """Whether component `index` could listen where it has to. One of a launcher that was killed a moment ago may still
    be on its way out, and nobody tells when it has gone: so it is tried again.
    """
    place, until = (_address(bus, index, bind=True), bus.port + index), time.monotonic() + LEAVING_S
    while (error := _listen(place)) is not None:
        taken = error.errno == errno.EADDRINUSE
        if taken and time.monotonic() < until:
            time.sleep(LOOK_S)
            continue
        way = "choose another bus.port, the same on all machines" if taken else f"set bus.host={EVERYWHERE}"
        raise ConfigError(f"bus.hosts: c{index} cannot listen at {place[0]}:{place[1]} ({error.strerror}); {way}")


def _listen(place: tuple[str, int]) -> OSError | None:
    """Why nobody can listen there; None: somebody could."""
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ZeroMQ does: connections of before may linger
        try:
            door.bind(place)
            door.listen()
        except OSError as error:
            return error
    return None
