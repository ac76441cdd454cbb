"""Every command and example in the README works as printed."""

import os
import re
import runpy
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bus import hosts
from bus.rules import Fate
from bus.wire import Reason
from cli import cli
from configs.load import load
from conftest import Launched, mach
from mach.recipes import RECIPES
from workers import tryout
from workers.simulate import simulate
from workers.timing import timing_of

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every `mach` command in the README."""
    lines = [part for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each[:1] == ["mach"]]


def named(*names: str) -> list[list[str]]:
    """Of these commands, as the README writes them."""
    return [words for words in commands() if words[0] in names]


LAUNCHES = named("launch")
(KEYS,) = named("keys")
AFTERWARDS = named("status", "logs", "stop", "runs", "doctor", "resume")
LIVE = named("restart", "chaos")
IN_VIRTUAL_TIME = named("simulate", "compare")
SHORT = ("--components", "2", "--steps", "6", "--set", "evaluate.every_steps=6")


def test_the_readme_leads_with_set_up_training_and_tests() -> None:
    first, second = blocks("bash")[:2]
    assert first.strip() == 'pip install -e ".[dev]" && mach launch --components 4'
    assert second.strip() == "pytest"
    assert len(LAUNCHES) >= 5
    assert len(LAUNCHES) + 1 + len(AFTERWARDS) + len(LIVE) + len(IN_VIRTUAL_TIME) == len(commands())
    assert {words[0] for words in commands()} == set(cli.commands)
    assert KEYS == ["keys", "new", "mykeys"]


@pytest.mark.parametrize(("code", "done"), [(0, "resume"), (1, "resume"), (2, "resume"), (3, "launch")])
def test_the_batch_script_of_the_readme_launches_what_there_is_not_and_else_goes_on(
    tmp_path: Path, code: int, done: str
) -> None:
    (script,) = blocks("sh")
    command = tmp_path / "mach"
    command.write_text(f'#!/bin/sh\n[ "$1" = status ] && exit {code}\necho "$@"\n')
    command.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True, env=path).stdout
    (line,) = said.splitlines()
    assert line.split()[0] == done
    words = [*line.split(), "--dry-run", "--runs", str(tmp_path)] if done == "launch" else [done, "--help"]
    assert CliRunner().invoke(cli, words).exit_code == 0


def test_the_readme_explains_every_reason_for_which_something_is_dropped() -> None:
    (table,) = re.findall(r"^\| dropped \|.*?\n\n", README, flags=re.MULTILINE | re.DOTALL)
    told = {name for row in table.strip().splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    assert told == {*Fate, *Reason, "unfit"}


@pytest.mark.parametrize("words", LAUNCHES, ids=" ".join)
def test_every_launch_in_the_readme_is_a_plan(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of each, with the keys that the README makes; devices and data that may not be here are left out, and
    of several machines this is the first.
    """
    monkeypatch.setattr(hosts, "_is_ours", lambda host: host == "10.0.0.1")
    monkeypatch.setattr(hosts, "_try_out", lambda bus, index: None)
    monkeypatch.setattr(tryout, "check", lambda plan: tryout.Found())
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, KEYS).exit_code == 0
    if "--gpus" in words:
        words = [*words[: words.index("--gpus")], *words[words.index("--gpus") + 2 :]]
    result = CliRunner().invoke(cli, [*words, "--dry-run", "--runs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "# plan of run" in result.output


def test_the_commands_of_the_readme_work_on_a_run_that_has_ended(launch: Callable[..., Launched]) -> None:
    run = launch("--components", "2", "--steps", "30", "--set", "report.every_ms=100")
    assert run.end() == 0, run.output
    for words in AFTERWARDS:
        done = mach(*words, "--runs", str(run.runs))
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert done.stdout


def test_the_commands_of_the_readme_work_on_a_run_that_goes_on(launch: Callable[..., Launched]) -> None:
    fast = ("report.every_ms=100", "checkpoint.every_s=0.5")
    settings = [word for each in fast for word in ("--set", each)]
    run = launch("--components", "3", "--steps", "100000", *settings)
    run.until(lambda status: all(row["checkpoint"]["step"] for row in status["components"]))
    for words in LIVE:
        done = mach(*words, *(("--seconds", "3") if words[0] == "chaos" else ()), "--runs", str(run.runs))
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert done.stdout
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.output


@pytest.mark.parametrize("words", IN_VIRTUAL_TIME, ids=" ".join)
def test_the_commands_of_the_readme_work_in_virtual_time(words: list[str]) -> None:
    result = CliRunner().invoke(cli, [*words, *SHORT])
    assert result.exit_code == 0, result.output
    assert "c1" in result.output or "backprop" in result.output


def test_the_example_of_the_readme_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(blocks("python")[0])
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_trained_network_is_used_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load("digits", ("n_components=3", "train.steps=4", "train.batch_size=8"), RECIPES)
    (tmp_path / "runs").mkdir()
    simulate(config, timing_of("1ms", "0", "5ms", [], 3), tmp_path / "runs" / "s1")
    monkeypatch.chdir(tmp_path)
    snippet = blocks("python")[1]
    both = re.findall(r"load\(.*?\)", snippet)
    assert len(both) == 2
    (tmp_path / "snippet.py").write_text(f"{snippet}\n{both[1]}(x)\n")
    runpy.run_path(str(tmp_path / "snippet.py"))
    assert re.fullmatch(r"tensor\(\[(\d, ){4}\d\]\)\n", capsys.readouterr().out)


def test_the_misspelt_key_of_the_readme_is_answered_as_printed(tmp_path: Path) -> None:
    command, answer = re.findall(r"^\$ mach (launch --set .*)\n(mach: .*)$", README, flags=re.MULTILINE)[0]
    done = mach(*shlex.split(command), "--runs", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == answer
