"""Components of one launch have the same data, or are told that they have not."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.errors import DataError
from conftest import Launched
from mach.data import Dataset
from workers.common import check_common

ODD = """
import numpy as np, torch
from mach.data import Dataset
def make(data):
    x = torch.tensor(np.random.default_rng().standard_normal((600, 5)), dtype=torch.float32)
    y = (x[:, 0] > 0).long()
    return Dataset(x[:500], y[:500], x[500:], y[500:], classes=2)
"""


def drawn(seed: int) -> Dataset:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    return Dataset(rows[:30], torch.arange(30) % 3, rows[30:], torch.arange(10) % 3, classes=3)


def test_all_have_what_the_first_had_and_a_later_life_too(tmp_path: Path) -> None:
    for name in ("c1", "c0", "c2", "c1"):
        check_common(tmp_path, name, drawn(1))
    with pytest.raises(DataError, match=r"data\.source: c2 has loaded other data than c1, so that"):
        check_common(tmp_path, "c2", drawn(2))
    check_common(tmp_path, "c0", drawn(1))
    assert [path.name for path in tmp_path.iterdir()] == ["data.digest"]


def test_each_says_in_its_log_what_it_has(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_common(tmp_path, "c1", drawn(1))
    assert capfd.readouterr().out == (
        "[c1 - step 0] 30 samples to train on, 10 to test on, each float32 [3], 3 classes\n"
    )


def test_of_many_that_begin_at_once_one_is_the_first(tmp_path: Path) -> None:
    together, said = threading.Barrier(8), list[str]()

    def begin(index: int) -> None:
        together.wait()
        try:
            check_common(tmp_path, f"c{index}", drawn(index % 2))
        except DataError as error:
            said.append(str(error))

    threads = [threading.Thread(target=begin, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4
    assert len({text.split()[-1] for text in said}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("leaks")
def test_a_launch_whose_source_draws_by_itself_is_refused(
    launch: Callable[..., Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    run = launch("--gpus", "cpu", "--steps", "100000", "--set", "n_components=2", "--set", "data.source=odd:make")
    assert run.end() == 2, run.output
    assert "has loaded other data than c" in run.output
