"""A probe that could tell nothing in a run is refused by its key; of all others some component tells something."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from mach.recipes import RECIPES
from workers.instruments import NEEDS, check_probes
from workers.plan import make_plan
from workers.resume import config_of
from workers.rundir import RunDir
from workers.simulate import simulate
from workers.timing import timing_of

BASE = ("n_components=3", "train.steps=40", "train.batch_size=16", "evaluate.every_steps=1000", "probes.every_steps=5")


def config(*settings: str, on: tuple[str, ...] = ()) -> Config:
    return load("digits", (*BASE, *settings, *(f"probes.{name}=true" for name in on)), RECIPES)


@pytest.mark.parametrize(
    "settings",
    [
        *((f"recipe={recipe}", "graph=chain") for recipe in RECIPES),
        ("n_components=1",),
        ("loss.late=0",),
        ("recipe=mach-hop", "loss.late=0", "loss.activation=0"),
        ("recipe=mach-hop", "method.gradient_reach=none"),
        ("recipe=ddg", "method.targets=embedding"),
        ("recipe=ddg", "method.heads=every"),
    ],
    ids=" ".join,
)
def test_what_is_told_in_a_run_is_what_is_not_refused(tmp_path: Path, settings: tuple[str, ...]) -> None:
    """On a slow bus, so that every gradient that can be late is."""
    probed = config(*settings, on=tuple(NEEDS))
    outcome = simulate(probed, timing_of("9ms", "0ms", "5ms", (), probed.n_components), tmp_path / "run")
    told = {name.partition("/")[0] for row in outcome.status.components for name in row.probes}
    assert {name for name, (_, lack) in NEEDS.items() if not lack(probed)} == told & NEEDS.keys()


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        (("recipe=dgl",), "cka", "needs children's embeddings, and with method.targets=none there are none; leave it"),
        (("recipe=ddg",), "r2", "method.targets=none"),
        (("recipe=dgl",), "fresh", "gradient_reach=none and method.targets=none there are none"),
        (("recipe=mach-stream",), "weight_gap", "gradient_reach=none and method.momentum_head=chain there are none"),
        (("recipe=takd",), "agreement", "with loss.late=0 those of targets"),
        (("recipe=dni",), "fresh", "with method.guess=true they teach the guess alone"),
        (("recipe=ddg",), "agreement", "with method.heads=last those that gradients come to have none"),
        (("n_components=1",), "salience", "with n_components=1 nobody has a child"),
        (("recipe=ddg", "method.targets=embedding"), "reliance", "with method.heads=last nobody who has children"),
    ],
)
def test_what_a_refused_probe_needs_is_said_by_its_key(settings: tuple[str, ...], name: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_probes(config(*settings, on=(name,)))
    assert str(refused.value).startswith(f"probes.{name}: needs ")
    assert said in str(refused.value)
    check_probes(config(*settings))


def test_a_launch_is_refused_and_so_is_a_resume_that_puts_one_on(tmp_path: Path) -> None:
    words = ("--components", "2", "--set", "recipe=dgl", "--set", "probes.r2=true", "--runs", str(tmp_path))
    for more in ((), ("--dry-run",)):
        found = CliRunner().invoke(cli, ["launch", "--gpus", "cpu", *words, *more])
        assert found.exit_code == 2
        assert found.output.splitlines()[-1].startswith("mach: probes.r2: needs ")
    assert not list(tmp_path.iterdir())
    run = RunDir(tmp_path / "r")
    plan = make_plan(config("recipe=dgl"), run="r", directory=run.path, sockets=tmp_path)
    with pytest.raises(ConfigError, match=r"probes\.r2: needs "):
        config_of(plan, None, ("probes.r2=true",))
    earlier = make_plan(config("recipe=dgl", on=("r2",)), run="r", directory=run.path, sockets=tmp_path)
    assert config_of(earlier, None, ()) == earlier.config, "what went on before goes on"
