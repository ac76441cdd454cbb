"""Where the checkpoints of one component lie: which there are, which are whole, which go. Files and numbers only.

checkpoints/c0/
    1200/                   the state after step 1200
        state.safetensors   tensors by name
        manifest.json       everything else, and how long the other files must be and their SHA-256
    1400/
    lock                    held by the life that writes here
    .1600                   being written, or left by a writer that was killed: nobody's, removed at the next start
    .1400.old               aside while another takes its place; back at the next start, if none did

Knows no torch, so that a launcher can ask what there is. Laws: a directory with a number for a name was renamed
there when everything in it was on disk; nothing in it is believed before `verify` has compared the checksums.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from configs.errors import DataError

FORMAT = 1
"""Of the files below; another number is refused."""
STATE = "state.safetensors"
MANIFEST = "manifest.json"
OLD = ".old"
"""Ends the name of one that is being replaced."""
LARGEST_MANIFEST = 64 << 20
"""Bytes: a longer one is damaged, and not read into memory."""


class FileFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of a checkpoint must be."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint says about itself."""

    format: int = FORMAT
    component: str
    version: int
    """Optimiser steps taken."""
    incarnation: int
    """Of the life that wrote it."""
    config: str
    """Digest of the configuration it was trained under."""
    values: dict[str, Any]
    """The state's plain values: the rest are tensors."""
    files: dict[str, FileFacts]


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """manifest.json: the manifest, and the SHA-256 of exactly its bytes, so that a flipped digit is seen."""

    sha256: str
    manifest: msgspec.Raw


class Shelf:
    """The checkpoints in one folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def versions(self) -> list[int]:
        """All that there are, newest first; whether they are whole is not asked."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir()]
        return sorted(map(int, names), reverse=True)

    def path(self, version: int) -> Path:
        """Where one lies."""
        return self.folder / str(version)

    def draft(self, version: int) -> Path:
        """Where one is written, until it is whole."""
        return self.folder / f".{version}"

    def replaced(self, version: int) -> Path:
        """Where one lies while another takes its place."""
        return self.folder / f".{version}{OLD}"

    def sound(self, component: str) -> list[int]:
        """The versions whose files are as they were written, newest first."""
        return [version for version in self.versions() if self._fault(version, component) is None]

    def newest(self, component: str) -> tuple[int, dict[int, DataError]]:
        """The newest version that is whole, 0 if none is, and what is wrong with those that are newer."""
        damaged: dict[int, DataError] = {}
        for version in self.versions():
            fault = self._fault(version, component)
            if fault is None:
                return version, damaged
            damaged[version] = fault
        return 0, damaged

    def damaged(self, component: str, above: int) -> dict[int, DataError]:
        """What is wrong with versions above one, newest first."""
        found = {version: self._fault(version, component) for version in self.versions() if version > above}
        return {version: fault for version, fault in found.items() if fault is not None}

    def remove(self, version: int) -> None:
        """Remove one, which first loses its name: no half of it is ever taken for whole."""
        gone = self.draft(version)
        discard(gone)
        os.rename(self.path(version), gone)
        discard(gone)

    def set_aside(self, version: int) -> None:
        """Take one out of the count, and leave it for people to look at, in place of an earlier one of that step."""
        aside = self.folder / f"{version}.damaged"
        if self.path(version).exists():
            shutil.rmtree(aside, ignore_errors=True)
        os.rename(self.path(version), aside)

    def sweep(self) -> None:
        """Remove what killed writers left, and put back what they were about to replace."""
        hidden = [path for path in self.folder.iterdir() if path.name[0] == "."] if self.folder.is_dir() else []
        for path in hidden:
            place = self.folder / path.name[1:].removesuffix(OLD)
            if path.name.endswith(OLD) and not place.exists():
                with suppress(OSError):  # it stays for the next start
                    os.rename(path, place)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _fault(self, version: int, component: str) -> DataError | None:
        try:
            verify(self.path(version), component, version)
        except DataError as error:
            return error
        return None


def discard(folder: Path) -> None:
    """Remove what was written for a checkpoint, or what is left of it; what is gone already is fine. The two files go
    without a descriptor, of which there may be none, and that may be why it is removed.

    Raises:
        OSError: it cannot be removed, and why.
    """
    with suppress(OSError):
        for name in (STATE, MANIFEST):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    if os.path.lexists(folder):
        shutil.rmtree(folder)


def damage(damaged: Mapping[int, DataError]) -> str:
    """Which of a component's checkpoints are damaged, newest first and at least one, and how the newest is."""
    newest, *older = damaged
    if not older:
        return f"its checkpoint of step {newest} is damaged ({damaged[newest]})"
    return f"its checkpoints of steps {', '.join(map(str, damaged))} are damaged (the newest: {damaged[newest]})"


def fallback(damaged: Mapping[int, DataError], found: int) -> str:
    """What damaged ones mean for a component that goes on from step `found`, 0 for the beginning."""
    if found:
        return f"{damage(damaged)}, so it goes on from step {found}; what it had learnt after that is lost"
    return f"{damage(damaged)}, so it starts from the beginning; all that it had learnt is lost"


def verify(path: Path, component: str, version: int) -> Manifest:
    """The manifest of a checkpoint whose files are all as they were written.

    Raises:
        DataError: something is missing, damaged, of another format, or of another component or version.
    """
    manifest = read_manifest(path)
    for what, found, wanted in (
        ("format", manifest.format, FORMAT),
        ("component", manifest.component, component),
        ("version", manifest.version, version),
    ):
        if found != wanted:
            raise DataError(f"{path / MANIFEST}: {what} {found}, where {wanted} is needed")
    if STATE not in manifest.files:
        raise DataError(f"{path / MANIFEST}: does not name {STATE}")
    for name, facts in manifest.files.items():
        found_bytes, digest = measure(path / name)
        if found_bytes != facts.bytes:
            raise DataError(f"{path / name}: {found_bytes} bytes, where {facts.bytes} were written")
        if digest != facts.sha256:
            raise DataError(f"{path / name}: is damaged, its checksum is wrong")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`, whole by its own checksum (DataError: it is not)."""
    file = path / MANIFEST
    try:
        if file.stat().st_size > LARGEST_MANIFEST:
            raise DataError(f"{file}: is damaged, it is too long")
        sealed = msgspec.json.decode(file.read_bytes(), type=Sealed)
        if hashlib.sha256(sealed.manifest).hexdigest() != sealed.sha256:
            raise DataError(f"{file}: is damaged, its checksum is wrong")
        return msgspec.json.decode(sealed.manifest, type=Manifest)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no manifest of this version ({error})") from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write it into the checkpoint at `path`, down to the disk."""
    body = msgspec.json.encode(manifest)
    sealed = Sealed(hashlib.sha256(body).hexdigest(), msgspec.Raw(body))
    with (path / MANIFEST).open("wb") as file:
        file.write(msgspec.json.encode(sealed))
        file.flush()
        os.fsync(file.fileno())


def measure(file: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file (DataError: it cannot be read)."""
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            return content.tell(), digest
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error


def to_disk(path: Path) -> None:
    """What was written to a file, or the names in a directory, will be there after a crash."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
