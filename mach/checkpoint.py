"""States and weights on disk: safetensors and JSON, so nothing is ever unpickled. Written whole or not at all.

What lies where, and what is believed, is `mach/shelf.py`'s. Knows no thread and no clock: `workers/keeper.py` calls it
in the background.
"""

import errno
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import DataError, Diverged
from mach.component import Component
from mach.shelf import STATE, FileFacts, Manifest, Shelf, discard, measure, to_disk, verify, write_manifest
from mach.sound import LARGEST, bounded, finite
from mach.state import BUFFERS, UNBOUNDED, State, buffers_of

ABOUT = "about"
"""The only key of the metadata of a file of weights, since safetensors writes several in an order of its own, another
every time: equal weights are equal files. Files of before have several."""


def save_state(
    shelf: Shelf,
    state: State,
    *,
    component: str,
    version: int,
    incarnation: int,
    config: str,
    keep: int,
    abandoned: Collection[int] = (),
) -> None:
    """Write one checkpoint, then remove all but the newest `keep`, and those `abandoned`.

    Raises:
        OSError: the disk is full or the directory cannot be written; nothing partial is left, what was there still is.
        Diverged: its numbers are ruined; it is not written, since it would push out a good one.
    """
    _judge(state.tensors, state.named(BUFFERS), state.named(UNBOUNDED))
    draft, replaced = shelf.draft(version), shelf.replaced(version)
    try:
        _make(shelf.folder)
        discard(draft)
        draft.mkdir()
        facts = _write_tensors(draft / STATE, state.tensors)
        manifest = Manifest(
            component=component,
            version=version,
            incarnation=incarnation,
            config=config,
            values=state.values,
            files={STATE: facts},
        )
        write_manifest(draft, manifest)
        to_disk(draft)
        _put(draft, shelf.path(version), replaced)
        to_disk(shelf.folder)
    finally:
        for left in (draft, *([replaced] if shelf.path(version).exists() else [])):
            with suppress(OSError):  # the next attempt says why
                discard(left)
    _thin_out(shelf, version, keep, abandoned)


def load_state(shelf: Shelf, version: int, component: str) -> tuple[Manifest, State]:
    """One checkpoint, every checksum compared.

    Raises:
        DataError: it is missing or damaged, or its numbers are ruined; says which file.
    """
    path = shelf.path(version)
    manifest = verify(path, component, version)
    try:
        state = State(load_file(path / STATE), manifest.values)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path / STATE}: holds no tensors ({error})") from error
    _judge(state.tensors, (), state.named(BUFFERS), f"{path}: ")  # infinities were judged when it was saved
    return manifest, state


def save_weights(component: Component, path: Path, about: Mapping[str, str], unbounded: Collection[str] = ()) -> None:
    """Write every parameter and buffer, named as in the module, with `about` in the file's metadata.

    `unbounded`: buffers in which an infinity may be (`mach/state.py`).

    Raises:
        OSError: the disk is full or the directory cannot be written; no partial file is left.
        Diverged: their numbers are ruined; what was there still is.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    weights = _apart(component.state_dict())
    _judge(weights, buffers_of(component), unbounded)
    try:
        save_file(weights, draft, metadata={ABOUT: msgspec.json.encode(about, order="sorted").decode()})
        os.replace(draft, path)
    except SafetensorError as error:
        raise _of_the_disk(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, for `Component.load_state_dict`.

    Raises:
        DataError: a file that is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def load_about(path: Path) -> dict[str, str]:
    """What `save_weights` was told about the weights in a file.

    Raises:
        DataError: as `load_weights`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told: dict[str, str] = file.metadata() or {}
        return msgspec.json.decode(told[ABOUT], type=dict[str, str]) if ABOUT in told else told
    except (OSError, SafetensorError, msgspec.MsgspecError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """One sentence about a file that holds no weights."""
    return DataError(f"{path}: holds no weights ({error}); train the run to its end first")


def _judge(
    tensors: Mapping[str, Tensor], buffers: Collection[str], unbounded: Collection[str], where: str = ""
) -> None:
    """Raise `Diverged` if a number is NaN, infinite, or larger than the square of what neighbours may send: moments
    hold squares. Nothing good comes of going on from there, whatever the checksums say.

    `buffers` may be as large as they are, statistics of x in any unit among them; in those `unbounded` an infinity is
    meant, as in the mask of an attention.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if name in unbounded:
            if bool(tensor.isnan().any()):
                raise Diverged(f"{where}{name} holds numbers that are none (NaN)")
        elif name in buffers:
            if not finite(tensor):
                raise Diverged(f"{where}{name} holds numbers that are not finite")
        elif not bounded(tensor, LARGEST**2):
            raise Diverged(f"{where}{name} holds numbers that are not finite, or beyond {LARGEST**2:g}")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each in memory of its own: tied weights are written under each of their names."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if place in taken else own
        taken.add(place)
    return apart


def _of_the_disk(path: Path, error: SafetensorError) -> OSError:
    """The same as an error of the system, which safetensors has put into words: so nobody says the path twice."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    number = int(said[1]) if said else errno.EIO
    return OSError(number, os.strerror(number) if said else str(error), str(path))


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> FileFacts:
    """Down to the disk; what the file is now."""
    try:
        save_file(_apart(tensors), file)
    except SafetensorError as error:
        raise _of_the_disk(file, error) from error
    to_disk(file)
    try:
        size, digest = measure(file)
    except DataError as error:
        raise OSError(str(error)) from error
    return FileFacts(size, digest)


def _put(draft: Path, place: Path, replaced: Path) -> None:
    """A checkpoint in its place; what stands there already is aside until then, and back if that fails."""
    there = place.exists()  # damaged, or of a life that went back to an older one
    if there:
        discard(replaced)
        os.rename(place, replaced)
    try:
        os.rename(draft, place)
    except OSError:
        if there:
            os.rename(replaced, place)
        raise


def _thin_out(shelf: Shelf, newest: int, keep: int, abandoned: Collection[int]) -> None:
    """Remove what the checkpoint just written has made superfluous; a newer one is of a life that was given up."""
    older = [version for version in shelf.versions() if version < newest and version not in abandoned]
    kept = {newest, *older[: keep - 1]}
    for version in shelf.versions():
        if version not in kept:
            shelf.remove(version)


def _make(folder: Path) -> None:
    """The folder, and the names that lead to it, on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        to_disk(path.parent)
