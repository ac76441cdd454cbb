"""Where a run comes from is written down, and a resume from another folder is refused before anything happens."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError
from configs.tree import Data
from conftest import mach
from workers.origin import check_path, versions


def test_a_path_that_is_here_or_absolute_or_none_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    for path in ("good", None, "/nowhere", "~/nowhere"):
        check_path(Data(source="npy", path=path), "/there")


@pytest.mark.parametrize("source", ["npy", "idx", "bytes"])
def test_a_relative_path_of_files_that_is_not_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = rf"data.path: 'good' is relative to .* none in {tmp_path}; go to the folder .* --set data.path=PATH$"
    with pytest.raises(ConfigError, match=told):
        check_path(Data(source=source, path="good"), "")


def test_a_name_may_be_no_path_and_is_refused_only_where_it_was_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "good").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_path(Data(source="hf", path="owner/set"), str(tmp_path / "there"))
    with pytest.raises(ConfigError, match=f"go to {tmp_path}/there, where it lies, .*data.path={tmp_path}/there/good$"):
        check_path(Data(source="hf", path="good"), str(tmp_path / "there"))


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert list(found) == ["python", "mach", "torch", "numpy", "pyzmq"]
    assert (found["python"], found["numpy"]) == (platform.python_version(), np.__version__)

    def gone(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    assert versions()["torch"] == "not installed"


RUN = ("--gpus", "cpu", "--components", "2", "--name", "r", "--steps", "20", "--set", "train.batch_size=8")


def write(folder: Path, samples: int) -> None:
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        np.save(folder / f"{part}_inputs.npy", np.random.default_rng(samples).random((samples, 5), np.float32))
        np.save(folder / f"{part}_labels.npy", np.arange(samples) % 2)


def files(runs: Path) -> dict[str, bytes]:
    """Of a run, but logs and the lock."""
    found = (path for path in runs.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found if path.suffix != ".log" and path.name[:1] not in ".l"}


@pytest.mark.usefixtures("leaks")
def test_a_finished_run_stays_finished_whatever_its_resume_is_refused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away, runs = tmp_path / "home", tmp_path / "away", tmp_path / "runs"
    write(home / "good", 64)
    away.mkdir()
    monkeypatch.chdir(home)
    done = mach("launch", *RUN, "--runs", str(runs), "--set", "data.source=npy", "--set", "data.path=good")
    assert done.returncode == 0, done.stderr
    plan, before = json.loads((runs / "r" / "plan.json").read_text()), files(runs)
    assert (plan["folder"], plan["versions"]) == (str(home), versions())

    monkeypatch.chdir(away)
    resume = ("resume", "r", "--runs", str(runs), "--steps", "40")
    for more in ((), ("--detach",)):
        refused = mach(*resume, *more)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert "mach: data.path: 'good' is relative to the folder that commands are given in" in refused.stderr
        assert files(runs) == before
        assert not (runs / "r" / "logs" / "c0.2.log").exists(), "nothing was started"

    write(away / "good", 32)  # others of the same name: every component finds that out by itself
    refused = mach(*resume)
    assert refused.returncode == 2, refused.stderr
    assert "does not fit the configuration" in refused.stderr
    assert (runs / "r" / "logs" / "c0.2.log").exists()
    assert files(runs) == before, "and the run has finished, as before"
    assert mach("status", "r", "--runs", str(runs)).returncode == 0

    os.rename(home / "good", away / "better")
    done = mach(*resume, "--set", "data.path=better")
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / "r" / "plan.json").read_text())["folder"] == str(away)
