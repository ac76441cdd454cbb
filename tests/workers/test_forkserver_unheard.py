"""The process that starts components is asked where it listens; one that nobody finds any more is left alone."""

import multiprocessing
import os
from multiprocessing import forkserver as theirs
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from bus import address
from workers import forkserver


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A forkserver that listens, and is kept alive by a pipe; none is started beside it."""
    server: Any = theirs._forkserver
    (tmp_path / "listener").write_text("")
    alive, kept = os.pipe()
    monkeypatch.setattr(server, "_forkserver_address", str(tmp_path / "listener"))
    monkeypatch.setattr(server, "_forkserver_alive_fd", kept)
    monkeypatch.setattr(server, "_forkserver_pid", os.getpid())
    monkeypatch.setattr(theirs, "ensure_running", lambda: None)
    monkeypatch.setattr(resource_tracker, "ensure_running", lambda: None)
    monkeypatch.setattr(forkserver, "_unheard", [])
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(tmp_path))
    yield server
    os.close(alive)
    os.close(kept)


def test_one_that_listens_is_asked_again(server: Any) -> None:
    forkserver.warm()
    assert server._forkserver_pid == os.getpid()
    assert not forkserver._unheard


def test_one_that_cannot_be_asked_is_neither_asked_nor_ended(server: Any) -> None:
    """Its components would end with it."""
    kept = server._forkserver_alive_fd
    Path(server._forkserver_address).unlink()
    assert forkserver.unheard()
    forkserver.warm()
    assert (server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid) == (None, None, None)
    assert forkserver._unheard == [kept]
    os.fstat(kept)  # it is open
    assert not forkserver.unheard()


def test_where_the_temporary_directory_is_gone_the_next_one_listens_in_another(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = multiprocessing.current_process()._config
    monkeypatch.setitem(config, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr("atexit.register", lambda *_: None)
    forkserver.warm()
    made = Path(config["tempdir"])
    assert made.is_dir()
    assert made.parent == address.base()
    address.remove(made)


def test_one_that_listens_where_there_is_no_file_is_asked_again(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An abstract address, as some builds of Python 3.11 choose."""
    monkeypatch.setattr(server, "_forkserver_address", "\0listener")
    assert not forkserver.unheard()
