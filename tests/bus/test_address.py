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


BOOT, SPACE, HOST = address._here()


@pytest.mark.parametrize(
    ("place", "swept"),
    [
        ((BOOT, SPACE, HOST), True),
        ((BOOT, "1", HOST), False),  # a container on this host
        ((BOOT, "1", "box"), False),
        (("before", SPACE, HOST), True),  # nobody has outlived a restart of the host
        (("before", "1", HOST), True),
        (("other", SPACE, "box"), False),  # another host, whose processes nobody sees from here
        (("other", SPACE, f"{HOST} box"), False),
        (None, True),  # an older version did not say
        (("", ""), True),
    ],
)
def test_nobody_is_taken_for_dead_whose_process_could_not_be_seen(place: tuple[str, ...] | None, swept: bool) -> None:
    directory = address.make_directory()
    (directory / "owner").write_text(f"{os.getpid()} 1")
    if place is None:
        (directory / "place").unlink()
    else:
        (directory / "place").write_text(" ".join(place))
    assert address.sweep() == ([directory] if swept else [])


def test_an_owner_tells_where_it_lives_beside_what_older_versions_read() -> None:
    directory = address.make_directory()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    there = [boot_id, str(os.stat("/proc/self/ns/pid").st_ino), os.uname().nodename]
    assert (directory / "place").read_text().split(" ", 2) == there
    assert (directory / "owner").read_text() == f"{os.getpid()} {address.started(os.getpid())}"
    assert address.sweep() == []


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
