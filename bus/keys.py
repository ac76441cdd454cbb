"""Keys of a run, as files: who holds them may talk to its components; and whether `bus.host` will do.
Knows no ZeroMQ: `bus/curve.py` does.

    <directory>/          0700
        public.key        40 characters of Z85 (ZeroMQ RFC 32)
        secret.key        0600; travels as this file only, never in an argument, an environment or a plan

All components of a run share one CURVE key pair: it proves that a peer belongs to the run, in both directions.
"""

import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from bus import hosts
from configs.errors import ConfigError
from configs.tree import Bus

PUBLIC, SECRET = "public.key", "secret.key"
LENGTH = 40
KNOCK_S = 5.0
"""Longest wait for a connection to this machine itself."""
_ALPHABET = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")


class Keys(NamedTuple):
    """A CURVE key pair in Z85."""

    public: bytes
    secret: bytes


def save(directory: Path, keys: Keys) -> None:
    """Write a new pair; never over an old one.

    Raises:
        ConfigError: there are keys already, or the directory cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, key, mode in ((SECRET, keys.secret, 0o600), (PUBLIC, keys.public, 0o644)):
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(key)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename}: is there already; choose another directory for new keys") from error
    except OSError as error:
        raise ConfigError(
            f"{directory}: keys cannot be written ({error.strerror}); choose another directory"
        ) from error


def load(directory: Path) -> Keys:
    """The pair in a directory.

    Raises:
        ConfigError: a file is missing, can be read by others, or holds no key; or they do not belong together.
    """
    from bus import curve  # loads ZeroMQ, which a launcher without keys does not need

    directory = directory.expanduser()
    keys = Keys(_read(directory / PUBLIC), _read(directory / SECRET, private=True))
    if not curve.is_pair(keys):
        raise ConfigError(
            f"bus.keys: {directory}: {PUBLIC} and {SECRET} are no pair; copy both of one directory, or make keys with "
            "`mach keys new DIR`"
        )
    return keys


def check(bus: Bus) -> None:
    """Refuse addresses that others could reach without keys, keys that cannot be used, and addresses of other machines.

    Raises:
        ConfigError: with what to do instead.
    """
    hosts.check(bus)
    try:
        loopback = ipaddress.IPv4Address(bus.host).is_loopback
    except ValueError:
        raise ConfigError(f"bus.host: {bus.host!r} is no numeric IPv4 address; 127.0.0.1 is this host alone") from None
    if bus.transport == "ipc" and (bus.keys is not None or not loopback):
        key = "bus.host" if bus.keys is None else "bus.keys"
        raise ConfigError(f"{key}: is for bus.transport=tcp; ipc sockets lie in a private directory and need none")
    if bus.keys is not None:
        load(Path(bus.keys))
    elif not loopback:
        raise ConfigError(
            f"bus.host: {bus.host} can be reached by others, which needs keys; make some with `mach keys new DIR` "
            f"and give --set bus.keys=DIR, or leave the host at 127.0.0.1"
        )
    if bus.transport == "tcp":
        _try_out(bus.host)
    hosts.check_ports(bus)


def _try_out(host: str) -> None:
    try:
        with socket.socket() as door, socket.socket() as visitor:
            door.bind((host, 0))
            door.listen()
            visitor.settimeout(KNOCK_S)
            visitor.connect(door.getsockname())  # an address of many can be bound, and nobody is reached there
    except OSError as error:
        raise ConfigError(
            f"bus.host: {host}: no connection can be made there ({error.strerror or error}); give an address of this "
            "machine, or 0.0.0.0 for all that it has"
        ) from error


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        mode, key = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        way = "make keys with `mach keys new DIR`, or copy DIR from where they were made"
        if isinstance(error, PermissionError):
            way = "let this user read it, or make other keys with `mach keys new DIR`"
        raise ConfigError(f"bus.keys: {path}: {error.strerror}; {way}") from error
    if private and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"bus.keys: {path}: can be read by others; chmod 600 it, or make new keys")
    if len(key) != LENGTH or not _ALPHABET.issuperset(key):
        raise ConfigError(f"bus.keys: {path}: holds no key; make keys with `mach keys new DIR`")
    return key
