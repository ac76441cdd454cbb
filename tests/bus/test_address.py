"""Private directories: who may enter, what is published, what is left of the dead."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import address
from configs.errors import ConfigError, RunError


@pytest.fixture(autouse=True)
def _base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A base of our own, short enough for sockets: sweeping must not meet the directories of live runs."""
    directory = address.make_directory()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    yield
    address.remove(directory)


def test_a_directory_is_private_short_and_claimed() -> None:
    directory = address.make_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "owner").read_text().startswith(f"{os.getpid()} ")
    address.check_private(directory)
    assert len(os.fsencode(address.socket_path(directory, "c127", 999))) <= address.PATH_CAP


@pytest.mark.parametrize("mode", [0o750, 0o701])
def test_a_directory_that_others_can_enter_is_refused(mode: int) -> None:
    directory = address.make_directory()
    directory.chmod(mode)
    with pytest.raises(RunError, match="no private directory"):
        address.check_private(directory)


def test_a_directory_that_is_missing_or_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing"):
        address.check_private(tmp_path / "gone")
    link = tmp_path / "link"
    link.symlink_to(address.make_directory())
    with pytest.raises(RunError, match="no private directory"):
        address.check_private(link)


def test_a_socket_path_that_the_kernel_refuses_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="107 bytes"):
        address.socket_path(tmp_path / ("x" * 100), "c0", 1)


def test_a_long_name_of_a_socket_becomes_a_digest_of_it() -> None:
    deep = Path("/" + "x" * 80)
    long, other = address.socket_path(deep, "c" * 30, 1), address.socket_path(deep, "c" * 30, 2)
    assert long != other
    assert long.parent == deep
    assert len(os.fsencode(long)) <= address.PATH_CAP


def test_a_long_base_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 80)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert address.base() != deep


def test_publish_find_withdraw() -> None:
    directory = address.make_directory()
    assert address.endpoint_of(directory, "c0") is None
    assert address.mark_of(directory, "c0") is None
    address.publish(directory, "c0", "ipc://one")
    first = address.mark_of(directory, "c0")
    assert address.endpoint_of(directory, "c0") == "ipc://one"
    address.publish(directory, "c0", "ipc://two")
    assert address.mark_of(directory, "c0") != first
    address.withdraw(directory, "c0", "ipc://one")  # an earlier life's last act
    assert address.endpoint_of(directory, "c0") == "ipc://two"
    address.withdraw(directory, "c0", "ipc://two")
    assert address.endpoint_of(directory, "c0") is None


def test_a_life_is_announced_until_it_departs_and_a_later_one_stays() -> None:
    directory = address.make_directory()
    assert address.life_of(directory, "c0") == 0
    address.announce(directory, "c0", 1)
    address.announce(directory, "c0", 2)
    address.depart(directory, "c0", 1)  # an earlier life's last act
    assert address.life_of(directory, "c0") == 2
    address.depart(directory, "c0", 2)
    assert address.life_of(directory, "c0") == 0
    for spoilt in (b"", b"two", b"-1", b"\xff"):
        (directory / "c0.life").write_bytes(spoilt)
        assert address.life_of(directory, "c0") == 0


def test_sweep_removes_what_the_dead_left_and_nothing_else() -> None:
    make = "from bus import address; print(address.make_directory())"
    made = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    dead, alive = Path(made.stdout.strip()), address.make_directory()
    unclaimed = address.make_directory()
    (unclaimed / "owner").unlink()
    (address.base() / f"mach-{os.getuid()}-note").write_text("not a directory")
    assert dead.is_dir()
    assert address.sweep() == [dead]
    assert not dead.exists()
    assert alive.is_dir()
    assert unclaimed.is_dir()


def test_a_directory_whose_owners_number_was_given_to_another_process_is_swept() -> None:
    directory = address.make_directory()
    (directory / "owner").write_text(f"{os.getpid()} 1")
    assert address.sweep() == [directory]
    address.remove(directory)  # gone already is fine


def test_whoever_is_stopped_while_it_sweeps_leaves_what_is_swept_later(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = address.make_directory()
    (directory / "owner").write_text(f"{os.getpid()} 1")
    for name in ("c0.at", "desk.sock"):
        (directory / name).write_text("")
    (directory / "c0-1-c1-child.lane").symlink_to("nowhere")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # as if it had ended just before
        address.sweep()
    assert [path.name for path in directory.iterdir()] == ["owner"]
    assert address.sweep() == [directory]
    assert not directory.exists()
