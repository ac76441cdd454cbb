"""The command line: every command's manual, every mistake one clear sentence and exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from conftest import mach
from fakes import status
from mach.recipes import RECIPES
from workers.rundir import RunDir
from workers.status import ComponentStatus, write
from workers.verdict import EXITS
from workers.words import fresh_name, lengths

COMMANDS = ("launch", "status", "stop", "chaos", "restart", "logs", "runs", "doctor", "simulate", "compare")


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, words)
    return result.exit_code, result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_in_its_help(command: str) -> None:
    code, output = invoke(command, "--help")
    assert code == 0
    assert "Examples:" in output
    assert f"mach {command}" in output


@pytest.mark.parametrize("command", ["stop", "restart", "logs", "runs", "keys new", "status", "doctor", "chaos"])
def test_the_exit_codes_of_every_command_that_asks_or_shows_stand_in_its_help(command: str) -> None:
    told = " ".join(invoke(*command.split(), "--help")[1].split())
    assert "Exit code" in told
    assert ("3 no such run" in told) == (command not in ("keys new", "doctor"))


def test_what_is_no_command_though_some_look_for_it_is_told_where_it_is() -> None:
    for word, way in (("help", "mach --help is the manual"), ("export", "mach.export.load")):
        code, output = invoke(word)
        assert code == 2
        assert way in output


def test_the_help_of_mach_lists_the_commands_and_its_version_is_known() -> None:
    assert all(command in invoke("--help")[1] for command in COMMANDS)
    assert invoke("--version")[0] == 0


def test_the_exit_codes_of_launch_stand_in_its_help() -> None:
    _, output = invoke("launch", "--help")
    assert all(f"{code} " in output and meaning.split(";")[0][:40] in output for code, meaning in EXITS.items())


def test_no_length_beside_another_is_none() -> None:
    assert lengths(5, None, ("train.minutes=null",)) == ["train.steps=5", "train.minutes=null"]
    assert lengths(None, None, ("train.minutes=1", "train.steps=2")) == []


def test_status_documents_its_json() -> None:
    _, output = invoke("status", "--help")
    assert "ComponentStatus" in output
    assert "child_share: number | null" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--gpus", "7"), "--gpus 7: there is no"),
        (("--set", "optimizer.lr=1"), "did you mean 'optimiser'?"),
        (("--set", "optimiser.lr=fast"), "optimiser.lr"),
        (("--set", "optimiser"), "key=value"),
        (("--config", "digit"), "did you mean 'digits'?"),
        (("--steps", "5", "--minutes", "1"), "--steps and --minutes"),
        (("--steps", "5", "--set", "train.minutes=1"), "--steps and --set train.minutes=1: give one of them"),
        (("--minutes", "5", "--set", "train.steps=1"), "--minutes and --set train.steps=1: give one of them"),
        (("--name", "a/b"), "one directory"),
        (("--minutes", "nan"), "mach: --minutes nan: give a finite number above 0"),
        (("--minutes", "inf"), "mach: --minutes inf: give"),
        (("--set", "graph=moebius"), "'moebius'; valid: chain, ring, kgraph, or"),
        (("--set", "optimiser.lr=nan"), "optimiser.lr: expected a finite number, got nan"),
        (("--set", "optimiser.lr=.nan"), "optimiser.lr: expected a finite number"),
        (("--set", "data.noise=.inf"), "data.noise: expected a finite number"),
        (("--set", "components.2.stub.drop=2"), "components.2.stub.drop: expected a number <= 1.0"),
        (("--set", "components.9.stub.drop=1"), "components.9"),
        (("--set", "components.two.stub.drop=0.1"), ": components.two: expected the number of a component, got 'two'"),
        (("--lockstep", "--minutes", "1"), "lock-step"),
    ],
)
def test_a_wrong_launch_is_one_sentence_and_exit_code_2(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    code, output = invoke("launch", "--dry-run", "--runs", str(tmp_path / "runs"), *words)
    assert code == 2
    assert sentence in output
    assert len(output.strip().splitlines()) == 1
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--latency", "8"), "--latency 8: is no duration"),
        (("--compute", "5ms,c9=1ms"), "no component 'c9'"),
        (("--straggler", "c1"), "--straggler c1: write who"),
        (("--compute", "0ms"), "a step takes time"),
        (("--set", "optimizer.lr=1"), "did you mean 'optimiser'?"),
    ],
)
def test_a_wrong_simulation_is_one_sentence_and_exit_code_2(words: tuple[str, ...], sentence: str) -> None:
    code, output = invoke("simulate", *words)
    assert code == 2
    assert sentence in output
    assert len(output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mach", "--latency", "5ms"), "--latency: only virtual time"),
        (("dgll",), "recipe: 'dgll' is none of mach, mach-stream"),
        (("mach", "dgll", "--simulate"), "; did you mean 'dgl'?"),
        (("mach", "--simulate", "--set", "recipe=dgl"), "--set recipe=dgl: recipes that are compared stand before"),
        (("dgl", "--simulate", "--set", "recipe=dgl"), "--set recipe=dgl: recipes"),  # the controls have another
        (("mach", "--straggler", "c1=2x"), "--straggler: only virtual time"),
        (("mach", "--simulate", "--minutes", "1"), "train.minutes"),
        (("mach", "--simulate", "--set", "components.1.stub.drop=1"), "stub"),
    ],
)
def test_a_wrong_comparison_is_one_sentence_and_exit_code_2(words: tuple[str, ...], sentence: str) -> None:
    code, output = invoke("compare", *words)
    assert code == 2
    assert sentence in output
    assert len(output.strip().splitlines()) == 1


def test_a_shell_completes_the_names_of_recipes_and_who_names_none_is_told_them() -> None:
    words = {"_MACH_COMPLETE": "bash_complete", "COMP_WORDS": "mach compare ma", "COMP_CWORD": "2"}
    found = CliRunner().invoke(cli, (), prog_name="mach", env=words).output.split()
    assert found == [f"plain,{name}" for name in RECIPES if name.startswith("ma")]
    code, output = invoke("compare")
    assert code == 2
    told = f"Missing argument 'RECIPE|FILE...'. Recipes: {', '.join(RECIPES)}; or a YAML file of a method of your own."
    assert told in " ".join(output.split())


def completed(line: str, cwd: Path) -> list[str]:
    """What bash is offered for the last word, by a process that would say what it loaded."""
    words = {"_MACH_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code = (
        "import atexit, sys; atexit.register(lambda: print(*{'torch', 'zmq'} & set(sys.modules), file=sys.stderr))\n"
        "from mach.__main__ import main; main()"
    )
    env = os.environ | words | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.stderr.strip() == ""
    return [word.partition(",")[2] for word in done.stdout.split()]


def test_a_shell_completes_the_names_of_configurations_and_runs_and_loads_no_torch_for_it(tmp_path: Path) -> None:
    for place, name in (("runs", "first"), ("runs", "second"), ("elsewhere", "third")):
        run = RunDir(tmp_path / place / name)
        run.make()
        write(run, status("finished"))
    (tmp_path / "afile").write_text("")
    assert completed("mach launch --config bytes", tmp_path) == ["bytes-lm"]
    assert completed("mach resume --config mni", tmp_path) == ["mnist1d"]
    assert completed("mach launch --config ./mine", tmp_path) == ["./mine"], "the shell's own files"
    assert completed("mach compare ./mine", tmp_path) == ["./mine"]
    for command in ("status", "resume", "logs", "stop", "restart", "chaos"):
        assert completed(f"mach {command} fi", tmp_path) == ["first"]
    assert completed("mach status --runs elsewhere t", tmp_path) == ["third"]
    assert completed("mach status --runs afile t", tmp_path) == []


def test_words_in_place_of_a_number_are_told_what_is_needed() -> None:
    code, output = invoke("launch", "--components", "two")
    assert code == 2
    assert "'two' is not a valid integer." in output


def test_a_method_of_ones_own_is_a_row_and_so_are_its_fields_in_the_help(tmp_path: Path) -> None:
    small = "n_components: 2\ntrain: {steps: 4, batch_size: 16}\n"
    (tmp_path / "base.yaml").write_text(small)
    (tmp_path / "my.yaml").write_text(f"recipe: dgl\nmethod: {{update_every: 2}}\n{small}")
    code, output = invoke(
        "compare", str(tmp_path / "my.yaml"), "dgl", "--config", str(tmp_path / "base.yaml"), "--simulate"
    )
    assert code == 0, output
    assert [line.split()[0] for line in output.splitlines() if line.startswith(("my ", "dgl "))] == ["my", "dgl"]
    code, output = invoke("compare", "--help")
    assert "by_seed: [SeedOf]  Its values, seed by seed." in " ".join(output.split(" "))
    assert "Exit code: 0 done" in output


def test_a_comparison_prints_json_by_recipe(tmp_path: Path) -> None:
    words = ("--components", "2", "--steps", "8", "--set", "train.batch_size=16", "--simulate", "--json")
    done = mach("compare", "mach", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"loss_bits", "loss_bits_student", "staleness_p50"} <= set(found["mach"])
    assert set(found["gap_closed"]) == {"mach"}
    assert "control independent (skip), seed 0" in done.stderr


def test_a_missing_data_file_is_one_sentence_naming_it_and_where_to_get_it(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    words = ("--config", "fashion-mnist", "--components", "2", "--set", f"data.path={folder}")
    done = mach("launch", "--gpus", "cpu", "--runs", str(tmp_path / "runs"), *words)
    assert done.returncode == 2
    assert "train-images-idx3-ubyte" in done.stderr
    assert "dataset-fashion-mnist" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_a_dry_run_prints_configuration_and_plan_and_makes_nothing(tmp_path: Path) -> None:
    code, output = invoke("launch", "--dry-run", "--components", "3", "--runs", str(tmp_path / "runs"))
    assert code == 0
    assert "n_components: 3" in output
    assert "c2  trainer  device cpu  socket" in output
    assert "asks c0  answers c1  83,210 parameters" in output
    assert "# data: 1,438 samples to train on, 359 to test on, each float32 [64], 10 classes" in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["status", "stop", "logs", "restart"])
def test_a_run_that_is_not_there_is_exit_code_3(tmp_path: Path, command: str) -> None:
    words = ("nothing", "c0") if command == "restart" else ("nothing",)
    code, output = invoke(command, *words, "--runs", str(tmp_path))
    assert code == 3
    assert "nothing" in output


def test_to_go_on_with_a_run_that_is_not_there_cannot_be_done(tmp_path: Path) -> None:
    """Of a run that goes on, 3 is that some component failed for good."""
    for words in (("nothing",), ()):
        code, output = invoke("resume", *words, "--runs", str(tmp_path))
        assert code == 2
        assert "mach: there is no run" in output


@pytest.mark.parametrize(
    "words",
    [
        *(("launch", "--dry-run"), ("launch", "--dry-run", "--name", "q"), ("launch", "--detach"), ("resume",)),
        *(
            ("status",),
            ("runs",),
            ("logs",),
            ("stop",),
            ("restart", "c1"),
            ("chaos", "--kill", "1/s"),
            ("compare", "mach"),
        ),
    ],
)
def test_a_file_in_place_of_the_runs_is_one_sentence_and_exit_code_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "afile").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for runs in ("afile", "afile/below", "dangling"):
        code, output = invoke(*words, "--runs", str(tmp_path / runs))
        sentence = f"mach: {tmp_path / runs.partition('/')[0]} is no directory; name another one with --runs\n"
        assert (code, output) == (2, sentence)


def test_a_place_where_nothing_can_be_written_is_one_sentence_and_exit_code_2() -> None:
    launch = ("launch", "--gpus", "cpu")
    for words in ((*launch, "--detach"), (*launch, "--dry-run"), ("compare", "mach", "--steps", "1", "--gpus", "cpu")):
        done = mach(*words, "--runs", "/proc/x")
        assert done.returncode == 2
        assert (
            done.stderr.splitlines()[-1] == "mach: /proc/x: No such file or directory; choose another place with --runs"
        )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_ends_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    run, place = RunDir(tmp_path / "runs" / "r"), tmp_path / "t"
    run.make()
    place.mkdir()
    running = status("finished")
    row = {"kind": "trainer", "incarnation": 1, "pid": 0, "device": "cpu", "state": "finished"}
    running.components = [ComponentStatus(component="c0", **row)]  # type: ignore[arg-type]
    write(run, running)
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("TMPDIR", str(place))
    for words in (("status",), ("runs",)):
        done = mach(*words, "--runs", str(tmp_path / "runs"))
        assert (done.returncode, done.stderr) == (0, ""), words
        assert "finished" in done.stdout
    assert not list(place.iterdir()), "no traceback"


@pytest.mark.parametrize("words", [("status",), ("launch", "--dry-run")])
def test_a_working_directory_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    said = "mach: the working directory is gone (No such file or directory); cd to one that is there\n"
    assert invoke(*words) == (2, said)


def test_a_name_that_nobody_chose_is_one_whatever_the_file_is_called(tmp_path: Path) -> None:
    for file, begins in (("-x.yaml", "x-2"), (".y.yaml", "y-2"), ("--", "run-2"), ("digits", "digits-2")):
        assert fresh_name(file, tmp_path).startswith(begins)


@pytest.mark.parametrize("name", ["", " ", ".hidden", "a/b", "-x", "a\nb", "a\x1b[2J"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    code, output = invoke("launch", "--dry-run", "--name", name, "--runs", str(tmp_path))
    assert code == 2
    assert f"--name {name!r}: give the name of one directory" in output


def test_a_name_that_a_foreign_directory_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    code, output = invoke("launch", "--dry-run", "--name", "taken", "--runs", str(tmp_path))
    assert code == 2
    assert "taken" in output


def test_runs_says_that_there_is_no_such_place_as_status_does(tmp_path: Path) -> None:
    place = tmp_path / "none"
    said = f"mach: there is no run in {place}/; start one with mach launch, or name another place with --runs\n"
    assert invoke("runs", "--runs", str(place)) == invoke("status", "--runs", str(place)) == (3, said)


def test_runs_lists_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    code, output = invoke("runs", "--runs", str(tmp_path))
    assert code == 0
    assert "run" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--kill", "20"), "--kill '20': give a number of times per s, min or h"),
        (("--stop", "4/day"), "--stop '4/day'"),
        (("--kill", "1000/s"), "at most 10/s"),
        ((), "there is nothing to do"),
    ],
)
def test_wrong_chaos_is_one_sentence_and_exit_code_2(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    code, output = invoke("chaos", "--runs", str(tmp_path), *words)
    assert code == 2
    assert sentence in output
    assert len(output.strip().splitlines()) == 1


def test_chaos_without_a_run_is_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    code, output = invoke("chaos", "--runs", str(tmp_path), "--kill", "1/s")
    assert code == 3
    assert len(output.strip().splitlines()) == 1


def test_what_a_network_of_ones_own_raises_in_a_simulation_is_told_with_whose_step_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crowded.py").write_text(
        "import torch\n\nfrom mach.networks import FAMILIES\n\ndef make(place):\n    made = FAMILIES['mlp'](place)\n"
        "    made.encoder.register_forward_pre_hook(few)\n    return made\n\n"
        "def few(encoder, given):\n    if len(given[0]) > 32 and torch.is_grad_enabled():  # in a step alone\n"
        "        raise ValueError('too many')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, output = invoke("simulate", "--components", "2", "--steps", "4", "--set", "model.family=crowded:make")
    (log,) = tmp_path.glob("mach-*.traceback")
    assert (code, output.startswith("mach: c0: ValueError: too many; the traceback is in")) == (2, True), output
    assert "unless it comes from a network or data of your own" in output
    assert "in few" in log.read_text()


def test_a_simulation_in_which_somebody_made_no_step_is_no_success_and_a_comparison_goes_on() -> None:
    words = ("--components", "2", "--steps", "1", "--set", "recipe=dgl")
    assert invoke("simulate", *words)[0] == 3
    code, output = invoke("compare", "dgl", "--simulate", *words[:4])
    assert (code, "dgl-0: c1: ended without a step" in output, "control alone" in output) == (0, True, True), output


@pytest.mark.parametrize("target", ["2", "0", "-1", "nan"])
@pytest.mark.parametrize("words", [("simulate",), ("compare", "mach", "--simulate")], ids=" ".join)
def test_a_target_that_cannot_be_reached_is_refused(words: tuple[str, ...], target: str) -> None:
    code, output = invoke(*words, "--components", "2", "--steps", "2", "--target", target)
    assert code == 2
    assert "an accuracy, more than 0 and at most 1" in " ".join(output.split())


@pytest.mark.parametrize("words", [("simulate",), ("compare", "mach", "--simulate")], ids=" ".join)
def test_a_simulation_that_diverges_has_failed_and_says_what_to_lower(words: tuple[str, ...]) -> None:
    ruin = ("--set", "optimiser.name=sgd", "--set", "optimiser.lr=1e30")
    code, output = invoke(*words, "--components", "2", "--steps", "3", *ruin)
    assert code == 1
    assert "mach: c0: training has diverged: " in output
    assert "optimiser.lr=SMALLER" in output
    code, output = invoke(words[0], "--help")
    assert "0 done, 1 training failed, as when it diverges" in " ".join(output.split())
