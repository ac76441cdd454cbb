"""What may still be taken of memory, by what control groups say of themselves."""

from pathlib import Path

import psutil
import pytest

from bus.headroom import OWN, ROOT, Headroom, headroom, tasks

MB = 1 << 20


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 MB are free on the machine."""
    memory = psutil.virtual_memory()._replace(available=1000 * MB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def first(folder: Path, limit: int, used: int, files: int) -> None:
    """A control group of the first version; sizes in MB."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit * MB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used * MB}\n")
    stat = f"cache 7\ninactive_file 5\ntotal_inactive_file {(files - 1) * MB}\ntotal_active_file {MB}\n"
    (folder / "memory.stat").write_text(stat)


def second(folder: Path, limit: int | None, used: int, files: int) -> None:
    """The same of the second version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text("max\n" if limit is None else f"{limit * MB}\n")
    (folder / "memory.current").write_text(f"{used * MB}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {(files - 1) * MB}\nactive_file {MB}\n")


def left(tmp_path: Path, own: str) -> Headroom:
    (tmp_path / "own").write_text(own)
    return headroom(tmp_path, tmp_path / "own")


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert headroom(tmp_path, tmp_path / "nothing") == Headroom(1000 * MB, None)
    assert left(tmp_path, "4:memory:/a\n0::/b\n") == Headroom(1000 * MB, None)


def test_a_group_leaves_its_limit_less_what_is_used_and_cannot_be_given_up(tmp_path: Path) -> None:
    second(tmp_path / "a/b", limit=512, used=400, files=100)
    assert left(tmp_path, "0::/a/b\n") == Headroom(212 * MB, 512 * MB)


def test_the_tightest_group_around_us_counts(tmp_path: Path) -> None:
    second(tmp_path / "a/b", limit=None, used=10, files=5)
    second(tmp_path / "a", limit=300, used=200, files=50)
    second(tmp_path / "other", limit=1, used=1, files=1)
    assert left(tmp_path, "0::/a/b\n") == Headroom(150 * MB, 300 * MB)


def test_groups_of_the_first_version_are_found_beside_other_controllers(tmp_path: Path) -> None:
    first(tmp_path / "memory/a", limit=64, used=60, files=10)
    assert left(tmp_path, "5:cpu,cpuacct:/a\n4:hugetlb,memory:/a\n0::/\n") == Headroom(14 * MB, 64 * MB)


def test_a_container_that_is_told_a_path_of_its_host_finds_its_own_limit(tmp_path: Path) -> None:
    first(tmp_path / "memory", limit=128, used=100, files=10)
    assert left(tmp_path, "4:memory:/docker/0d7e\n") == Headroom(38 * MB, 128 * MB)
    second(tmp_path, limit=100, used=90, files=10)
    assert left(tmp_path, "0::/../../a\n") == Headroom(20 * MB, 100 * MB)


def test_more_than_the_limit_leaves_nothing(tmp_path: Path) -> None:
    second(tmp_path, limit=100, used=150, files=10)
    assert left(tmp_path, "0::/\n") == Headroom(0, 100 * MB)


def test_a_limit_above_what_the_machine_has_is_none(tmp_path: Path) -> None:
    first(tmp_path / "memory", limit=1 << 40, used=0, files=1)
    assert left(tmp_path, "4:memory:/\n") == Headroom(1000 * MB, None)


def test_whatever_this_machine_says_is_understood() -> None:
    assert headroom(ROOT, OWN).free > 0


def test_the_tightest_group_around_us_says_how_many_processes_there_may_be_more(tmp_path: Path) -> None:
    """Of either version; one without a limit says `max`."""
    (tmp_path / "own").write_text("8:pids:/a\n4:memory:/a\n0::/b/c\n")
    assert tasks(tmp_path, tmp_path / "own") is None
    for folder, most, taken in (("b/c", "max", 7), ("b", "90", 7), ("pids/a", "100", 20), ("memory/a", "9", 9)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "pids.max").write_text(f"{most}\n")
        (tmp_path / folder / "pids.current").write_text(f"{taken}\n")
    assert tasks(tmp_path, tmp_path / "own") == 80
    (tmp_path / "pids/a/pids.current").write_text("101\n")
    assert tasks(tmp_path, tmp_path / "own") == 0
