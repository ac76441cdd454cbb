"""Where processes of a run meet is made again when it is removed; where that cannot be, it is said, once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import forkserver
from workers.desk import NAME, Desk
from workers.quarters import Quarters


@pytest.fixture
def quarters(directory: Path) -> Iterator[Quarters]:
    desk = Desk(directory)
    quarters = Quarters(directory, desk, "r")
    yield quarters
    quarters.close()
    desk.close()


def test_a_directory_that_is_removed_is_made_again_with_its_desk_and_said_once(
    directory: Path, quarters: Quarters, leaks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    quarters.look()
    assert capsys.readouterr().out == ""
    shutil.rmtree(directory)
    for _ in range(2):
        quarters.look()
    assert (directory / NAME).is_socket()
    assert quarters.trouble == ""
    assert capsys.readouterr().out == (
        f"mach: {directory}, the directory of sockets, was removed, as by a clean-up of temporary files, and is made "
        "again; training goes on\n"
    )


def test_a_directory_that_cannot_be_made_again_is_told_of_with_what_mends_it(
    directory: Path, quarters: Quarters, capsys: pytest.CaptureFixture[str]
) -> None:
    quarters.look()
    shutil.rmtree(directory.parent)
    directory.parent.write_text("in the way")
    for _ in range(2):
        quarters.look()
    assert quarters.trouble.startswith(f"{directory}, the directory of sockets, is gone and cannot be made again (")
    assert quarters.trouble.endswith("nothing can be restarted; mach stop r, then mach resume r, mends it")
    assert capsys.readouterr().out == f"mach: {quarters.trouble}\n"
    directory.parent.unlink()
    quarters.look()
    assert (quarters.trouble, (directory / NAME).is_socket()) == ("", True)
    assert "is made again" in capsys.readouterr().out


def test_a_desk_whose_door_was_removed_has_another(directory: Path, quarters: Quarters) -> None:
    (directory / NAME).unlink()
    quarters.look()
    assert (directory / NAME).is_socket()


def test_who_starts_components_is_replaced_when_it_cannot_be_asked_any_more(
    quarters: Quarters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not ended: its components would end with it."""
    warmed: list[None] = []
    monkeypatch.setattr(forkserver, "warm", lambda: warmed.append(None))
    monkeypatch.setattr("multiprocessing.forkserver._forkserver._forkserver_address", str(tmp_path / "listener"))
    quarters.look()
    assert warmed == [None]
    (tmp_path / "listener").write_text("")
    quarters.look()
    assert warmed == [None]
