"""A keeper: when it writes, that no step waits for it, what a failing disk costs, which state it goes on from."""

import fcntl
import math
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from configs.errors import DataError
from configs.load import load
from mach.checkpoint import load_state, save_state
from mach.recipes import RECIPES
from mach.shelf import STATE, Shelf
from mach.state import State
from workers.keeper import SLOW_S, Keeper, terms
from workers.plan import Plan, make_plan

WORDS = ("n_components=2", "checkpoint.every_s=5")


def plan_at(path: Path, *settings: str, lockstep: bool = False, resume_at: int | None = None) -> Plan:
    config = load("digits", (*WORDS, *settings), RECIPES)
    plan = make_plan(config, run="run", directory=path, sockets=path, lockstep=lockstep)
    return Plan(**{name: getattr(plan, name) for name in plan.__struct_fields__} | {"resume_at": resume_at})


class Writer:
    """Writes like `save_state`, when it is let, or fails like a disk."""

    def __init__(self) -> None:
        self.may = Event()
        self.may.set()
        self.error: Exception | None = None
        self.fired = 0
        self.wrote: list[int] = []

    def __call__(self, *words: Any, **more: Any) -> None:
        assert self.may.wait(60)
        if self.error is not None:
            self.fired += 1
            raise self.error
        save_state(*words, **more)
        self.wrote.append(more["version"])


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def keepers(tmp_path: Path, writer: Writer) -> Iterator[Any]:
    made: list[Keeper] = []

    def make(*settings: str, path: Path = tmp_path, **more: Any) -> Keeper:
        made.append(Keeper(plan_at(path, *settings, **more), "c0", incarnation=1, write=writer))
        return made[-1]

    yield make
    writer.may.set()
    for keeper in made:
        keeper.close()


def state_of(number: float, size: int = 3) -> State:
    return State({"w": torch.full((size,), float(number))}, {"number": number})


def save(keeper: Keeper, version: int, state: State, now: float) -> None:
    """Have it written, and see it written."""
    keeper.keep(version, state, now)
    assert keeper.finish(now)


def went_on(keeper: Keeper, now: float = 0.0) -> list[float]:
    """What the keeper restores; empty for the beginning."""
    restored: list[float] = []

    def restore(state: State) -> None:
        assert state.tensors["w"].tolist() == [state.values["number"]] * 3
        restored.append(state.values["number"])

    keeper.go_on(restore, now)
    return restored


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_first_is_due_at_once_then_by_the_clock_or_by_steps(keepers: Any) -> None:
    keeper = keepers("checkpoint.every_steps=40")
    assert went_on(keeper) == []
    assert keeper.due(1, 100.0)
    save(keeper, 1, state_of(1), 100.0)
    assert [version for version in range(2, 90) if keeper.due(version, 104.0)] == [40, 80]
    assert keeper.due(7, 105.0)


def test_a_life_that_went_on_waits_for_its_first(keepers: Any) -> None:
    keeper = keepers()
    save(keeper, 9, state_of(9), 0.0)
    keeper.close()
    second = keepers()
    assert went_on(second, 50.0) == [9]
    assert not second.due(10, 54.0)
    assert second.due(10, 55.0)


@pytest.mark.parametrize(
    ("settings", "components", "expected"),
    [
        ((), 1, (None, 100, 2)),
        ((), 2, (None, 100, 3)),
        ((), 4, (None, 100, 4)),
        (("checkpoint.every_steps=3",), 4, (None, 3, 4)),
        (("checkpoint.every_steps=1",), 4, (None, 1, 5)),
        (("checkpoint.every_steps=2",), 8, (None, 2, 6)),
        (("checkpoint.keep=9",), 4, (None, 100, 11)),
    ],
)
def test_lockstep_counts_steps_and_keeps_more_since_not_all_have_the_newest(
    tmp_path: Path, settings: tuple[str, ...], components: int, expected: tuple[Any, ...]
) -> None:
    plan = plan_at(tmp_path, f"n_components={components}", *settings, lockstep=True)
    assert terms(plan) == expected


def fewest_in_common(count: int, every: int, kept: int, last: int, seed: int) -> int:
    """A chain in lock-step to its end, one step of somebody at a time: the fewest steps that all ever had alike, from
    the time on at which all had `kept`. Of those who may move, the first one does, or with a seed anybody.
    """
    chance, steps, shelves = random.Random(seed), [0] * count, [[] for _ in range(count)]
    fewest = kept
    while min(steps) < last:
        may = [
            i
            for i, step in enumerate(steps)
            if step < last and all(step <= near for near in steps[max(i - 1, 0) : i + 2])
        ]
        i = chance.choice(may) if seed else may[0]
        steps[i] += 1
        if steps[i] % every == 0 or steps[i] == last:
            shelves[i] = [*shelves[i], steps[i]][-kept:]
        if min(map(len, shelves)) == kept:
            fewest = min(fewest, len(set.intersection(*map(set, shelves))))
    return fewest


@pytest.mark.parametrize("every", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("components", [2, 3, 4, 8])
def test_lockstep_keeps_as_many_common_steps_as_others_keep_and_no_more_than_that_takes(
    tmp_path: Path, components: int, every: int
) -> None:
    plan = plan_at(tmp_path, f"n_components={components}", f"checkpoint.every_steps={every}", lockstep=True)
    keep, kept = plan.config.checkpoint.keep, terms(plan)[2]
    ends = range(every * (3 * kept), every * (3 * kept + 1))  # a run may end at any step
    runs = [(last, seed) for last in ends for seed in range(3)]
    assert min(fewest_in_common(components, every, kept, last, seed) for last, seed in runs) == keep
    assert min(fewest_in_common(components, every, kept - 1, last, seed) for last, seed in runs) < keep


def test_a_step_never_waits_for_the_disk_and_what_is_written_is_of_its_moment(
    keepers: Any, writer: Writer, tmp_path: Path
) -> None:
    keeper = keepers()
    writer.may.clear()
    state = state_of(1)
    keeper.keep(1, state, 0.0)  # returns while the writer waits
    state.tensors["w"].fill_(-1.0)
    assert not keeper.due(2, 1000.0)
    keeper.keep(2, state_of(2), 1000.0)
    assert keeper.record(1000.0).step is None
    writer.may.set()
    keeper.finish(1000.0)
    assert writer.wrote == [1]
    assert load_state(Shelf(tmp_path / "checkpoints" / "c0"), 1, "c0")[1].tensors["w"].tolist() == [1.0, 1.0, 1.0]
    saved = keeper.record(1003.0)
    assert (saved.step, saved.age_s, saved.trouble) == (1, 3.0, "")


def test_a_version_is_written_once_and_a_slow_disk_is_shown(keepers: Any, writer: Writer) -> None:
    keeper = keepers()
    writer.may.clear()
    keeper.keep(1, state_of(1), 0.0)
    assert not keeper.finish(5.0, wait_s=0.0)
    assert keeper.record(SLOW_S).trouble == ""
    assert "step 1 is being written for 31 s" in keeper.record(SLOW_S + 1.0).trouble
    writer.may.set()
    assert keeper.finish(50.0)
    save(keeper, 1, state_of(1), 60.0)
    assert keeper.record(60.0).trouble == ""
    assert writer.wrote == [1]


def test_a_disk_that_fails_is_said_once_and_recovers(
    keepers: Any, writer: Writer, capfd: pytest.CaptureFixture[str]
) -> None:
    keeper = keepers()
    save(keeper, 1, state_of(1), 0.0)
    writer.error = OSError(28, "No space left on device")
    for version in (2, 3, 4):
        assert keeper.due(version, 10.0 * version)
        save(keeper, version, state_of(version), 10.0 * version)
        saved = keeper.record(10.0 * version)
        assert saved.step == 1
        assert "No space left" in saved.trouble
        assert keeper.errno == 28
    assert not keeper.due(4, 42.0), "it is not tried at every step"
    writer.error = None
    save(keeper, 4, state_of(4), 45.0)
    assert writer.fired == 3
    assert writer.wrote == [1, 4]
    assert keeper.record(45.0).trouble == ""
    assert keeper.errno is None
    said = capfd.readouterr().out
    assert said.count("cannot be written") == 1
    assert said.count("written again") == 1


def test_an_error_of_ours_is_not_hidden(keepers: Any, writer: Writer) -> None:
    keeper = keepers()
    writer.error = AttributeError("a mistake")
    keeper.keep(1, state_of(1), 0.0)
    with pytest.raises(AttributeError, match="a mistake"):
        keeper.finish(0.0)


def test_a_damaged_one_is_named_the_older_used_and_the_damaged_goes(
    keepers: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    first = keepers()
    for version in (10, 20):
        save(first, version, state_of(version), 0.0)
    first.close()
    flip(first.shelf.path(20) / STATE)
    (first.shelf.draft(30)).mkdir()
    second = keepers()
    assert went_on(second) == [10]
    saved = second.record(0.0)
    assert saved.step == 10
    told = f"its checkpoint of step 20 is damaged ({first.shelf.path(20) / STATE}: is damaged, its checksum is wrong)"
    told += ", so it goes on from step 10; what it had learnt after that is lost"
    assert (saved.trouble, saved.fallback) == ("", told)
    assert str(first.shelf.path(20) / STATE) in capfd.readouterr().out
    assert not first.shelf.draft(30).exists()
    save(second, 15, state_of(15), 0.0)
    assert second.shelf.versions() == [15, 10]
    assert second.record(0.0).fallback == told, "it stays lost"


@pytest.mark.parametrize("number", [math.nan, math.inf, -1e13])
def test_one_whose_numbers_are_ruined_is_not_written_and_the_good_one_stays(keepers: Any, number: float) -> None:
    keeper = keepers()
    save(keeper, 1, state_of(1), 0.0)
    save(keeper, 2, State({"w": torch.tensor([1.0, number])}, {"number": 2}), 10.0)
    saved = keeper.record(10.0)
    assert saved.step == 1
    assert "w holds numbers that are not finite" in saved.trouble
    assert saved.trouble.startswith("training has diverged"), "no fault of the disk"
    assert saved.trouble.endswith("lower optimiser.lr")
    assert keeper.diverged
    assert keeper.shelf.versions() == [1]


def test_one_that_was_written_with_ruined_numbers_is_named_and_the_older_used(
    keepers: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = keepers()
    save(first, 10, state_of(10), 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("mach.checkpoint._judge", lambda *_: None)
        save(first, 20, state_of(math.nan), 0.0)
    first.close()
    assert first.shelf.versions() == [20, 10], "its checksums are right"
    second = keepers()
    assert went_on(second) == [10]
    assert "step 20" in second.record(0.0).fallback
    assert f"{first.shelf.path(20)}: w holds numbers that are not finite" in capfd.readouterr().out


def test_a_damaged_common_step_is_set_aside_so_that_the_next_resume_finds_another(keepers: Any) -> None:
    first = keepers()
    for version in (10, 20):
        save(first, version, state_of(version), 0.0)
    first.close()
    flip(first.shelf.path(20) / STATE)
    with pytest.raises(DataError, match="mach resume once more"):
        went_on(keepers(resume_at=20))
    assert first.shelf.versions() == [10]
    assert (first.shelf.folder / "20.damaged" / STATE).is_file()


def test_none_good_starts_from_the_beginning_and_says_so(keepers: Any, capfd: pytest.CaptureFixture[str]) -> None:
    first = keepers()
    for version in (10, 20):
        save(first, version, state_of(version), 0.0)
        flip(first.shelf.path(version) / STATE)
    first.close()
    second = keepers()
    assert went_on(second) == []
    assert second.record(0.0).step is None
    assert second.record(0.0).fallback.startswith("its checkpoints of steps 20, 10 are damaged (the newest: ")
    assert second.record(0.0).fallback.endswith("starts from the beginning; all that it had learnt is lost")
    said = capfd.readouterr().out
    assert f"{first.shelf.path(10) / STATE}" in said
    assert "starts from the beginning" in said


def test_one_that_is_whole_and_does_not_fit_is_refused(keepers: Any) -> None:
    first = keepers()
    save(first, 10, state_of(10), 0.0)
    first.close()

    def refuse(state: State) -> None:
        raise DataError("another network")

    with pytest.raises(DataError, match="does not fit the configuration: another network"):
        keepers().go_on(refuse, 0.0)


def test_a_checkpoint_names_the_configuration_it_was_made_under(
    keepers: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ("components.1.stub.latency_ms=2", "optimiser.lr=0.1")
    first = keepers(*settings)
    save(first, 10, state_of(10), 0.0)
    first.close()
    same = keepers(*settings)
    assert went_on(same) == [10]
    same.close()
    assert "another configuration" not in capfd.readouterr().out
    assert went_on(keepers("components.1.stub.latency_ms=2", "optimiser.lr=0.2")) == [10]
    assert "another configuration" in capfd.readouterr().out


def test_a_common_step_is_the_one_gone_on_from(keepers: Any) -> None:
    first = keepers()
    for version in (10, 20):
        save(first, version, state_of(version), 0.0)
    first.close()
    at_ten = keepers(resume_at=10)
    assert went_on(at_ten) == [10]
    at_ten.close()
    at_zero = keepers(resume_at=0)
    assert went_on(at_zero) == []
    at_zero.close()
    flip(first.shelf.path(10) / STATE)
    with pytest.raises(DataError, match="mach resume once more"):
        went_on(keepers(resume_at=10))


def test_newer_ones_than_the_common_step_are_given_up_and_take_nobodys_place(keepers: Any) -> None:
    first = keepers(lockstep=True)  # keeps three
    for version in (10, 20, 30):
        save(first, version, state_of(version), 0.0)
    first.close()
    second = keepers(lockstep=True, resume_at=20)
    assert went_on(second) == [20]
    assert second.shelf.versions() == [30, 20, 10], "nothing goes before there is something to go on from"
    save(second, 40, state_of(40), 0.0)
    assert second.shelf.versions() == [40, 20, 10]


def test_another_life_waits_until_the_earlier_one_writes_no_more(keepers: Any) -> None:
    first = keepers()
    went_on(first)
    with (first.shelf.folder / "lock").open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first.close()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_limit_on_files_is_survived(keepers: Any) -> None:
    """The system itself refuses, as with a quota: EFBIG in the middle of a write."""
    keeper = keepers()
    save(keeper, 1, state_of(1), 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        save(keeper, 2, state_of(2, size=1 << 18), 10.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in keeper.record(10.0).trouble
    assert sorted(os.listdir(keeper.shelf.folder)) == ["1"]
    save(keeper, 2, state_of(2, size=1 << 18), 20.0)
    assert keeper.record(20.0).trouble == ""
    assert keeper.shelf.sound("c0") == [2, 1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    at = tmp_path / "disk"
    at.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(at)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


def test_a_full_disk_is_survived_and_recovered_from(small_disk: Path, keepers: Any) -> None:
    keeper = keepers(path=small_disk)
    assert went_on(keeper) == []
    save(keeper, 1, state_of(1, size=1 << 16), 0.0)  # 256 KiB
    with (small_disk / "others").open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)) == 1 << 16:  # a disk that is nearly full writes less
            continue
    save(keeper, 2, state_of(2, size=1 << 16), 10.0)
    saved = keeper.record(10.0)
    assert "No space left" in saved.trouble
    assert saved.step == 1
    assert sorted(os.listdir(keeper.shelf.folder)) == ["1", "lock"]
    assert keeper.shelf.sound("c0") == [1]
    (small_disk / "others").unlink()
    save(keeper, 3, state_of(3, size=1 << 16), 20.0)
    assert keeper.record(20.0).trouble == ""
    assert keeper.shelf.sound("c0") == [3, 1]
    keeper.close()


def test_a_read_only_disk_is_survived_and_recovered_from(small_disk: Path, keepers: Any) -> None:
    keeper = keepers(path=small_disk)
    save(keeper, 1, state_of(1), 0.0)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        save(keeper, 2, state_of(2), 10.0)
        assert "Read-only" in keeper.record(10.0).trouble
        assert keeper.shelf.sound("c0") == [1]
        late = keepers(path=small_disk)  # and a life that begins there goes on
        assert went_on(late) == [1]
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    save(keeper, 3, state_of(3), 20.0)
    assert keeper.record(20.0).trouble == ""
    assert keeper.shelf.sound("c0") == [3, 1]
    late.close()
