"""Checkpoints on disk: whole or not at all, the newest kept, damage seen wherever it is."""

import errno
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch

from configs.errors import DataError
from mach import checkpoint, shelf
from mach.checkpoint import load_state, save_state
from mach.shelf import MANIFEST, STATE, Shelf
from mach.sound import LARGEST
from mach.state import State


@pytest.fixture
def c0(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "checkpoints" / "c0")


def save(shelf: Shelf, version: int, *, keep: int = 2, abandoned: set[int] | None = None) -> None:
    state = State({"w": torch.full((3,), float(version))}, {"late": [["c1", 2, 0.5]]})
    save_state(
        *(shelf, state),
        component="c0",
        version=version,
        incarnation=1,
        config="abc",
        keep=keep,
        abandoned=abandoned or set(),
    )


def names(shelf: Shelf) -> list[str]:
    return sorted(os.listdir(shelf.folder))


def test_what_was_saved_comes_back(c0: Shelf) -> None:
    save(c0, 7)
    manifest, state = load_state(c0, 7, "c0")
    assert state.tensors["w"].tolist() == [7.0, 7.0, 7.0]
    assert state.values == {"late": [["c1", 2, 0.5]]}
    assert (manifest.component, manifest.version, manifest.incarnation, manifest.config) == ("c0", 7, 1, "abc")
    assert sorted(os.listdir(c0.path(7))) == [MANIFEST, STATE]


def test_the_newest_two_are_kept(c0: Shelf) -> None:
    for version in (3, 20, 100, 101):
        save(c0, version)
    assert c0.versions() == c0.sound("c0") == [101, 100]
    save(c0, 150, keep=1)
    assert names(c0) == ["150"]


def test_a_life_that_went_back_gives_up_what_it_left_behind(c0: Shelf) -> None:
    for version in (100, 200, 300):
        save(c0, version, keep=3)
    save(c0, 120, keep=2)
    assert c0.versions() == [120, 100]
    for version in (100, 110):
        save(c0, version, keep=3)
    save(c0, 120, keep=2, abandoned={110})
    assert c0.versions() == [120, 100]
    save(c0, 120)
    assert c0.sound("c0") == [120, 100]


def test_nothing_there_is_no_error(c0: Shelf) -> None:
    c0.sweep()
    assert c0.versions() == []
    assert not c0.folder.exists()
    with pytest.raises(DataError, match="cannot be read"):
        load_state(c0, 5, "c0")


def test_what_killed_writers_left_is_no_checkpoint_and_goes(c0: Shelf) -> None:
    save(c0, 5)
    c0.draft(9).mkdir()
    (c0.draft(9) / STATE).write_bytes(b"half")
    (c0.folder / "notes").mkdir()
    assert c0.versions() == [5]
    c0.sweep()
    assert names(c0) == ["5", "notes"]


def test_what_a_killed_writer_was_about_to_replace_is_back(c0: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two renames, as an error that is none of the system's leaves it."""
    save(c0, 5, keep=1)
    rename = os.rename

    def killed(source: Path, target: Path) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mach.checkpoint.os.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(c0, 5, keep=1)
    assert c0.versions() == []
    c0.replaced(7).mkdir()
    save(c0, 7)
    c0.sweep()
    assert names(c0) == ["5", "7"]
    assert c0.sound("c0") == [7, 5]


@pytest.mark.parametrize("file", [STATE, MANIFEST])
@pytest.mark.parametrize("harm", ["flip", "cut", "longer", "empty", "gone"])
def test_damage_is_named(c0: Shelf, file: str, harm: str) -> None:
    save(c0, 4)
    save(c0, 5)
    path = c0.path(5) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    harmed = {"flip": bytes(content), "cut": content[:-1], "longer": content + b" x", "empty": b""}
    path.unlink()
    if harm != "gone":
        path.write_bytes(harmed[harm])
    with pytest.raises(DataError, match=f"5/{file}"):
        load_state(c0, 5, "c0")
    assert c0.sound("c0") == [4]


def test_every_flipped_bit_of_a_manifest_is_seen(c0: Shelf) -> None:
    save(c0, 5)
    path = c0.path(5) / MANIFEST
    whole = path.read_bytes()
    for at in range(len(whole)):
        harmed = bytearray(whole)
        harmed[at] ^= 1 << (at % 8)
        path.write_bytes(harmed)
        with pytest.raises(DataError):
            shelf.verify(c0.path(5), "c0", 5)
    path.write_bytes(whole)
    shelf.verify(c0.path(5), "c0", 5)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As many files are open as may be."""
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 512), limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_one_that_failed_for_want_of_descriptors_leaves_nothing_and_says_so_every_time(c0: Shelf) -> None:
    save(c0, 4)
    for _ in range(2):
        with no_descriptors(), pytest.raises(OSError) as told:  # noqa: PT011
            save(c0, 20)
        assert told.value.errno == errno.EMFILE
        assert names(c0) == ["4"]
    save(c0, 20)
    assert c0.sound("c0") == [20, 4]


def test_what_stands_in_the_way_of_a_checkpoint_and_cannot_be_removed_is_named(
    c0: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(c0, 4)
    (c0.draft(20) / "strange").mkdir(parents=True)

    def full(folder: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(folder))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", full)
        with pytest.raises(OSError, match=r"Too many open files: .*/\.20"):
            save(c0, 20)
    save(c0, 20)
    assert names(c0) == ["20", "4"]


def test_anothers_checkpoint_a_renamed_one_and_another_format_are_refused(c0: Shelf, tmp_path: Path) -> None:
    save(c0, 5)
    with pytest.raises(DataError, match="component c0, where c1"):
        load_state(c0, 5, "c1")
    c0.path(5).rename(c0.path(6))
    with pytest.raises(DataError, match="version 5, where 6"):
        load_state(c0, 6, "c0")
    manifest = shelf.read_manifest(c0.path(6))
    shelf.write_manifest(c0.path(6), msgspec.structs.replace(manifest, format=2))
    with pytest.raises(DataError, match="format 2"):
        load_state(c0, 6, "c0")
    shelf.write_manifest(c0.path(6), msgspec.structs.replace(manifest, version=6, files={}))
    with pytest.raises(DataError, match="does not name"):
        load_state(c0, 6, "c0")
    (c0.path(6) / MANIFEST).write_bytes(b"\xff" * 10)
    with pytest.raises(DataError, match="no manifest"):
        load_state(c0, 6, "c0")


def test_one_set_aside_counts_no_more_and_stays_for_people_to_look_at(c0: Shelf) -> None:
    for version in (4, 5):
        save(c0, version)
    c0.set_aside(5)
    assert c0.versions() == c0.sound("c0") == [4]
    assert sorted(os.listdir(c0.folder / "5.damaged")) == [MANIFEST, STATE]
    c0.sweep()
    save(c0, 5)
    save(c0, 6)
    assert names(c0) == ["5", "5.damaged", "6"], "neither swept nor thinned out, and in nobody's way"
    (c0.path(5) / "newer").touch()
    c0.set_aside(5)
    assert names(c0) == ["5.damaged", "6"]
    assert (c0.folder / "5.damaged" / "newer").exists()
    for missing in (5, 7):
        with pytest.raises(FileNotFoundError):
            c0.set_aside(missing)
    assert names(c0) == ["5.damaged", "6"], "nor does it cost what was set aside before"


RUINED = [
    torch.tensor([1.0, math.nan]),
    torch.tensor([math.inf, 1.0]),
    torch.tensor([[0.0], [-math.inf]], dtype=torch.bfloat16),
    torch.tensor([1.0, -2 * LARGEST**2]),
]


@pytest.mark.parametrize("numbers", RUINED, ids=["nan", "inf", "bf16", "too large"])
def test_ruined_numbers_are_no_checkpoint_whatever_their_checksums(
    c0: Shelf, monkeypatch: pytest.MonkeyPatch, numbers: torch.Tensor
) -> None:
    """They are not written; those that were, by somebody who did not look, are not loaded. What was there stays."""
    save(c0, 4)
    write = partial(save_state, c0, State({"w": torch.ones(2), "moments": numbers}, {}))
    told = {"component": "c0", "version": 5, "incarnation": 1, "config": "", "keep": 2}
    with pytest.raises(DataError, match=r"^moments holds numbers that are not finite, or beyond 1e\+12"):
        write(**told)
    assert names(c0) == ["4"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_judge", lambda *_: None)
        write(**told)
    assert c0.sound("c0") == [5, 4]
    with pytest.raises(DataError, match="c0/5: moments holds numbers"):
        load_state(c0, 5, "c0")
    assert load_state(c0, 4, "c0")[1].tensors["w"].tolist() == [4.0, 4.0, 4.0]


def test_large_moments_whole_numbers_and_empty_tensors_are_sound(c0: Shelf) -> None:
    moments, steps = torch.tensor([LARGEST**2, -(LARGEST**2)]), torch.tensor([1 << 62])
    fine = {"moments": moments, "steps": steps, "none": torch.ones(0)}
    save_state(c0, State(fine, {}), component="c0", version=5, incarnation=1, config="", keep=2)
    assert all(torch.equal(load_state(c0, 5, "c0")[1].tensors[name], tensor) for name, tensor in fine.items())


@pytest.mark.parametrize("at", ["save_file", "write_manifest", "to_disk", "rename"])
def test_a_file_system_that_fails_leaves_nothing_partial(c0: Shelf, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Whatever step of the writing fails: what was there still loads, nothing else is left, the next one works."""
    save(c0, 4)
    fired = []

    def fail(*words: object, **more: object) -> None:
        fired.append(at)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if at == "rename" else checkpoint, at, fail)
        with pytest.raises(OSError, match="No space"):
            save(c0, 5)
    assert fired
    assert names(c0) == ["4"]
    assert c0.sound("c0") == [4]
    save(c0, 6)
    assert c0.sound("c0") == [6, 4]


KILLED = """
import os, random, select, signal, sys
from pathlib import Path
import torch
from mach.checkpoint import load_state, save_state
from mach.shelf import Shelf
from mach.state import State

shelf, chance, halves, reached = Shelf(Path(sys.argv[1])), random.Random(7), 0, 0
for life in range(40):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        for version in range(reached + 1, reached + 1000):
            state = State({"w": torch.full((1 << 14,), float(version))})
            save_state(shelf, state, component="c0", version=version, incarnation=life, config="", keep=2)
            os.write(writing, b".")
        os._exit(1)
    os.close(writing)
    for _ in range(chance.randrange(3)):
        os.read(reading, 1)
    select.select([], [], [], chance.uniform(0.0, 0.004))  # somewhere within the next one
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    os.close(reading)
    halves += any(path.name.startswith(".") for path in shelf.folder.iterdir()) if shelf.folder.is_dir() else 0
    shelf.sweep()
    there = shelf.versions()
    assert there == shelf.sound("c0"), there
    assert len(there) <= 3 and (not reached or there[0] >= reached), there
    reached = there[0] if there else 0
    if there:
        assert load_state(shelf, reached, "c0")[1].tensors["w"].eq(reached).all()
print(halves, reached)
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_ones_and_never_goes_back(c0: Shelf) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(c0.folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    halves, reached = map(int, done.stdout.split())
    assert halves > 0, "some were killed while they wrote"
    assert reached > 10
