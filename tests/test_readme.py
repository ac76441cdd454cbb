"""Every command and example in the README works as printed."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from conftest import Launched, mach

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every `mach` command in the README."""
    lines = [part for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each[:1] == ["mach"]]


LAUNCHES = [words for words in commands() if words[0] == "launch"]
(KEYS,) = [words for words in commands() if words[0] == "keys"]
OTHERS = [words for words in commands() if words[0] not in ("launch", "keys")]


def test_the_readme_leads_with_set_up_training_and_tests() -> None:
    first, second = blocks("bash")[:2]
    assert first.strip() == 'pip install -e ".[dev]" && mach launch --components 4'
    assert second.strip() == "pytest"
    assert len(LAUNCHES) >= 5
    assert {words[0] for words in OTHERS} == {"status", "logs", "stop", "runs", "doctor"}
    assert KEYS == ["keys", "new", "mykeys"]


@pytest.mark.parametrize("words", LAUNCHES, ids=" ".join)
def test_every_launch_in_the_readme_is_a_plan(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of each, with the keys that the README makes; devices that this machine lacks are left out."""
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, KEYS).exit_code == 0
    if "--gpus" in words:
        words = [*words[: words.index("--gpus")], *words[words.index("--gpus") + 2 :]]
    result = CliRunner().invoke(cli, [*words, "--dry-run", "--runs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "# plan of run" in result.output


def test_the_other_commands_of_the_readme_work_on_a_real_run(launch: Callable[..., Launched]) -> None:
    run = launch("--components", "2", "--steps", "30", "--set", "report.every_ms=100")
    assert run.end() == 0, run.output
    for words in OTHERS:
        done = mach(*words, "--runs", str(run.runs))
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert done.stdout


def test_the_example_of_the_readme_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(blocks("python")[0])
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_misspelt_key_of_the_readme_is_answered_as_printed(tmp_path: Path) -> None:
    command, answer = re.findall(r"^\$ mach (launch --set .*)\n(mach: .*)$", README, flags=re.MULTILINE)[0]
    done = mach(*shlex.split(command), "--runs", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == answer
