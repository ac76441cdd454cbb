"""Private directories: who may enter, what is published, what is left of the dead."""

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bus import address
from configs.errors import ConfigError, RunError
from conftest import DEADLINE_S


@pytest.fixture(autouse=True)
def _base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A base of our own, short enough for sockets: sweeping must not meet the directories of live runs."""
    tmp_path_factory.getbasetemp()  # not in there
    directory = address.make_directory()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    yield
    address.remove(directory)


def test_a_directory_is_private_short_and_claimed() -> None:
    directory = address.make_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (directory / "place").read_text() == f"{boot_id} {os.uname().nodename}"
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
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert address.base() == Path("/tmp")


def test_what_goes_when_the_user_logs_out_is_no_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert address.base() == Path(tempfile.gettempdir())


def locked(directory: Path) -> bool:
    """As systemd-tmpfiles looks before it removes what is old."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_a_directory_is_locked_while_its_keeper_lives() -> None:
    keep = "from bus import address; print(address.make_directory(), flush=True); input()"
    piped = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with piped([sys.executable, "-c", keep]) as keeper:
        directory = Path(keeper.stdout.readline().strip())
        assert locked(directory)
        keeper.kill()
        keeper.wait(DEADLINE_S)
        assert not locked(directory)


@pytest.mark.usefixtures("leaks")
def test_a_directory_that_is_claimed_twice_is_let_go_of_with_all_that_held_it() -> None:
    directory = address.make_directory()
    address.claim(directory)
    address.remove(directory)


@pytest.mark.usefixtures("leaks")
def test_a_file_system_without_locks_keeps_nobody_from_his_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    directory = address.make_directory()
    address.check_private(directory)
    assert address.sweep() == [], "nobody can tell whether it is in use"
    monkeypatch.undo()
    assert address.sweep() == [], "nor could its keeper have said so"
    address.remove(directory)


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


def left_by_the_dead() -> Path:
    make = "from bus import address; print(address.make_directory())"
    made = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    return Path(made.stdout.strip())


def test_sweep_removes_what_the_dead_left_and_nothing_else() -> None:
    dead, alive, unclaimed = left_by_the_dead(), address.make_directory(), left_by_the_dead()
    (unclaimed / "place").unlink()
    (address.base() / f"mach-{os.getuid()}-note").write_text("not a directory")
    assert dead.is_dir()
    assert address.sweep() == [dead]
    assert not dead.exists()
    assert alive.is_dir()
    assert unclaimed.is_dir()
    address.remove(dead)  # gone already is fine


BOOT, HOST = address.boot(), os.uname().nodename


@pytest.mark.parametrize(
    ("place", "swept"),
    [
        (f"{BOOT} {HOST}", True),
        (f"before {HOST}", False),  # of another host called like this one, or of before a restart of this one
        (f"- {HOST}", False),  # a sandbox
        (f"{BOOT} box", False),
        ("other box", False),
        (f"{BOOT} 4026531836 {HOST}", False),  # an older version's, which may have had no lock
        ("", False),
    ],
)
def test_only_where_locks_are_to_be_seen_anybody_is_taken_for_dead(place: str, swept: bool) -> None:
    directory = left_by_the_dead()
    (directory / "place").write_text(place)
    assert address.sweep() == ([directory] if swept else [])


@pytest.mark.parametrize("elsewhere", [f"- - {HOST}", f"before 4026531836 {HOST}", f"before {HOST}", f"- {HOST}"])
def test_nobody_who_lives_is_taken_for_dead_whatever_his_host_is_called(elsewhere: str) -> None:
    directory = address.make_directory()
    (directory / "place").write_text(elsewhere)
    assert address.sweep() == []


def test_whoever_lives_in_another_container_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = address.make_directory()
    monkeypatch.setattr(address, "started", lambda pid: "")  # no process is to be seen
    assert address.sweep() == []
    assert directory.is_dir()


def test_whoever_is_stopped_while_it_sweeps_leaves_what_is_swept_later(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = left_by_the_dead()
    for name in ("c0.at", "desk.sock"):
        (directory / name).write_text("")
    (directory / "c0-1-c1-child.lane").symlink_to("nowhere")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # as if it had ended just before
        address.sweep()
    assert [path.name for path in directory.iterdir()] == ["place"]
    assert address.sweep() == [directory]
    assert not directory.exists()
