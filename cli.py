"""The commands. `mach --help` is the documentation; every command has examples in its help.

Loads neither torch nor ZeroMQ: both belong to the processes that it starts. What the commands do lies in
`workers/`; here they are named, their words are read, and their exit codes are decided.

    exit code   launch, resume                      status               others
    0           every component finished            healthy, finished    done
    1           some component failed               degraded             –
    2           it cannot be run as asked           failed               cannot be done
    3           –                                   no such run          no such run
    130         stopped                             –                    interrupted
"""

import importlib.metadata
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from configs.errors import ConfigError, MachError, RunError
from configs.load import dump, shipped
from configs.tree import Config
from mach.recipes import RECIPES
from workers import commands, screen
from workers.status import every_run, exit_code_of, find_run, read
from workers.timing import timing_of
from workers.words import configured, fresh_name, lengths

RUNS = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs lie."
)
RUN = click.argument("run", required=False)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
CONFIGURATION = (
    click.option(
        "--config",
        "config_name",
        default="digits",
        show_default=True,
        metavar="FILE|NAME",
        help="YAML file, or one of: " + ", ".join(shipped()) + ".",
    ),
    click.option("--components", type=click.IntRange(min=1), help="How many components."),
    click.option("--seed", type=int, help="Seed of weights and data order."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one key of the configuration; repeatable.",
    ),
    click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps of every component."),
    click.option("--minutes", type=float, help="Train for this long instead."),
)
CONFIGURED = ("config_name", "components", "seed", "settings", "steps", "minutes")
"""Options that say what is trained: the arguments of `configured`."""
TIMING = (
    click.option("--latency", default="1ms", show_default=True, help="Of every message, each way: 50ms, or 8steps."),
    click.option("--jitter", default="0ms", show_default=True, help="Uniform extra latency, up to this."),
    click.option("--compute", default="5ms", show_default=True, metavar="T[,C=T]", help="Time of a step: 5ms,c2=50ms."),
    click.option("--straggler", "stragglers", multiple=True, metavar="C=Nx", help="Who is slower: c1=10x; repeatable."),
)
TIMED = ("latency", "jitter", "compute", "stragglers")
"""Options that say how long things take in virtual time: the arguments of `timing_of`."""


def options(these: tuple[Decorator, ...]) -> Decorator:
    """All of these options on one command, in their order."""
    return lambda command: reduce(lambda wrapped, option: option(wrapped), reversed(these), command)


class Group(click.Group):
    """Turns our errors into one sentence and their exit code; a surprise into one line and a file."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MachError as error:
            click.echo(f"mach: {error}", err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("MACH_DEBUG"):
                raise
            with tempfile.NamedTemporaryFile("w", prefix="mach-", suffix=".traceback", delete=False) as file:
                traceback.print_exc(file=file)
            click.echo(
                f"mach: {type(error).__name__}: {error}; the traceback is in {file.name}, please report it", err=True
            )
            ctx.exit(2)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(importlib.metadata.version("mach-train"), prog_name="mach")
def cli() -> None:
    """Train a deep network as components that never wait for each other.

    \b
    Examples:
      mach launch --components 4       train the embedded default, scikit-learn's digits
      mach status                      the newest run, from any terminal
      mach launch --help               everything that a launch can do
    """


@cli.command()
@options(CONFIGURATION)
@click.option("--gpus", metavar="0,1,…|cpu", help="Devices to deal, round-robin; default: all there are, else the CPU.")
@click.option("--name", help="Name of the run; default: configuration and time.")
@RUNS
@click.option("--lockstep", is_flag=True, help="Every step waits for its messages: slow, exact, for comparison.")
@click.option("--detach", is_flag=True, help="Leave the run in the background.")
@click.option("--dry-run", is_flag=True, help="Print the configuration and the plan; start nothing.")
@click.pass_context
def launch(ctx: click.Context, /, *, runs: Path, name: str | None, detach: bool, dry_run: bool, **words: Any) -> None:
    """Train: one process a component, until every component has done its steps.

    Ctrl-C stops cleanly, a second Ctrl-C at once. Exit code 0 only if every component finished.

    \b
    Examples:
      mach launch --components 4
      mach launch --components 4 --gpus 0,1,2,3
      mach launch --config fashion-mnist --minutes 10
      mach launch --set optimiser.lr=3e-4 --set bus.window=4
      mach launch --set components.1.stub.crash_at=20
      mach launch --dry-run
    """
    if not dry_run and not detach:
        commands.warm()
    config = configured(**{key: words[key] for key in CONFIGURED})
    name = name or fresh_name(words["config_name"], runs)
    commands.check_name(runs, name)
    devices = commands.choose_devices(words["gpus"])
    if dry_run:
        click.echo(dump(config) + "\n" + commands.describe(config, runs, name, devices, lockstep=words["lockstep"]))
        return
    if devices == ("cpu",) and words["gpus"] is None:
        click.echo("no CUDA device: training on the CPU", err=True)
    if detach:
        ctx.exit(commands.detach(config, runs, name, words["gpus"], lockstep=words["lockstep"]))
    ctx.exit(commands.train(config, runs, name, devices, lockstep=words["lockstep"]))


@cli.command()
@RUN
@RUNS
@click.option("--config", "file", metavar="FILE|NAME", help="Compare with this one; default: as it was trained.")
@click.option("--gpus", metavar="0,1,…|cpu", help="Devices to deal anew; default: all there are, else the CPU.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="What shall be different from now on; repeatable."
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps of every component, from the beginning.")
@click.option("--minutes", type=float, help="Train for this long, from the beginning.")
@click.pass_context
def resume(ctx: click.Context, /, *, run: str | None, runs: Path, file: str | None, **words: Any) -> None:
    """Go on with a run, the newest by default, that was stopped, failed, or shall train longer.

    Every component goes on from its newest checkpoint that is whole; in lock-step all from the newest common one.
    Exit codes as of launch; 0 also if nothing is left to do.

    \b
    Examples:
      mach resume
      mach resume my-run --steps 4000
      mach resume my-run --set optimiser.lr=1e-4
      mach resume my-run --gpus 0,1
    """
    settings = (*words["settings"], *lengths(words["steps"], words["minutes"]))
    ctx.exit(commands.resume(commands.resumable(runs, run), file, settings, words["gpus"]))


@cli.command(name="simulate")
@options(CONFIGURATION)
@options(TIMING)
@click.option("--lockstep", is_flag=True, help="Every step waits for its messages.")
@click.option("--target", type=float, help="Accuracy, 0 to 1, or bits, whose time is printed; default: several.")
@click.option(
    "--json", "as_json", is_flag=True, help="All of it as JSON: status, curves, staleness by version, digest."
)
def simulated(**words: Any) -> None:
    """Train in one process and in virtual time: as a launch, exact, and the same on every run.

    Learners, mailboxes and examinations are those of a launch; messages take as long as you say, and nobody waits
    for the clock. Prints the table of mach status, and the virtual time to accuracies. Leaves no run behind.

    \b
    Examples:
      mach simulate --components 64
      mach simulate --latency 50ms --jitter 10ms --compute 5ms,c2=50ms
      mach simulate --latency 8steps --straggler c1=10x --steps 300 --json
    """
    from workers import show

    config = configured(**{key: words.pop(key) for key in CONFIGURED})
    timing = timing_of(**{key: words.pop(key) for key in TIMED}, n_components=config.n_components)
    show.simulation(config, timing, **words)


@cli.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...", type=click.Choice(list(RECIPES)))
@options(CONFIGURATION)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="How many, from --seed on.")
@click.option("--simulate", "virtual", is_flag=True, help="In virtual time; without, in real processes.")
@options(TIMING)
@click.option("--gpus", metavar="0,1,…|cpu", help="Devices of real processes; default: all there are, else the CPU.")
@click.option("--target", type=float, help="Accuracy, 0 to 1, or bits; default: what one alone ends with.")
@click.option("--json", "as_json", is_flag=True, help="By recipe loss_bits, loss_bits_student, …; gap_closed.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw the curves, with matplotlib.")
@RUNS
@click.pass_context
def compare(ctx: click.Context, /, recipes: tuple[str, ...], *, runs: Path, gpus: str | None, **words: Any) -> None:
    """Train recipes side by side, on the same data, sizes, seeds and steps, and beside the honest controls.

    Controls are plain loops in one process: backpropagation of the same depth; one component alone; one alone with
    encoder and student trained on the labels; one as large as all; as many independent ones, averaged. The graph is a
    chain, unless --set graph says otherwise.

    \b
    Examples:
      mach compare mach --components 3 --steps 300 --simulate
      mach compare mach-stream dgl ddg backprop --config bytes-lm --simulate --json
      mach compare mach ddg --seeds 3 --simulate --latency 8steps --straggler c1=10x --png curves.png
    """
    from workers import show
    from workers.compare import Real, Virtual

    given = {key: words.pop(key) for key in CONFIGURED}
    first = configured(**given)
    virtual, times = words.pop("virtual"), {key: words.pop(key) for key in TIMED}
    if not virtual and (said := [key for key in TIMED if ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE]):
        raise ConfigError(f"--{said[0].rstrip('s')}: only virtual time goes as told; add --simulate, or leave it out")

    def recipe(name: str, seed: int) -> Config:
        settings = (f"recipe={name}", "graph=chain", *given["settings"])
        return configured(**given | {"settings": settings, "seed": first.seed + seed})

    if virtual:
        runner: Virtual | Real = Virtual(timing_of(**times, n_components=first.n_components))
        show.comparison(recipes, recipe, runner, None, **words)
    else:
        commands.warm()
        runner = Real(commands.choose_devices(gpus))
        show.comparison(recipes, recipe, runner, runs / fresh_name("compare", runs), **words)


@cli.command(epilog="\b\n" + screen.fields_help())
@RUN
@RUNS
@click.option("--watch", is_flag=True, help="Show it again every second until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="The same fields as JSON; documented below.")
@click.pass_context
def status(ctx: click.Context, run: str | None, runs: Path, watch: bool, as_json: bool) -> None:
    """Show a run, the newest by default, from its files alone: also after a crash, also over ssh.

    Exit code: 0 healthy or finished, 1 degraded, 2 failed, 3 no such run. Staleness stands as p50/p99/max.

    \b
    Examples:
      mach status
      mach status digits-20260101-120000 --watch
      mach status --json
    """
    found = find_run(runs, run)
    now = read(found)
    if watch and not as_json:
        now = commands.watch(found)
    elif as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(now)).decode())
    else:
        terminal = screen.console()
        terminal.print(screen.tables(now, terminal.width))
    ctx.exit(exit_code_of(now))


@cli.command()
@RUN
@RUNS
@click.option("--now", is_flag=True, help="Do not wait for weights to be saved.")
def stop(run: str | None, runs: Path, now: bool) -> None:
    """Stop a run, the newest by default. Stopping one that has ended is no error.

    \b
    Examples:
      mach stop
      mach stop my-run --now
    """
    click.echo(commands.stop(find_run(runs, run), signal.SIGQUIT if now else signal.SIGTERM))


@cli.command()
@RUN
@RUNS
@click.option("-c", "--component", "only", metavar="C", help="Only this component, as in c2.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
def logs(run: str | None, runs: Path, only: str | None, follow: bool) -> None:
    """Print what the processes of a run have printed, each line after its component's name.

    \b
    Examples:
      mach logs
      mach logs -c c2 -f
    """
    for line in commands.log_lines(find_run(runs, run), only, follow=follow):
        click.echo(line)


@cli.command(name="runs")
@RUNS
def list_runs(runs: Path) -> None:
    """List the runs, newest first.

    \b
    Examples:
      mach runs
      mach runs --runs elsewhere
    """
    found = []
    for run in every_run(runs):
        try:
            found.append(read(run))
        except RunError as error:
            click.echo(f"mach: {error}", err=True)
    screen.console().print(screen.run_lines(found))


@cli.command()
@RUNS
@click.pass_context
def doctor(ctx: click.Context, runs: Path) -> None:
    """Check what this machine can do, down to a round trip over the bus. Exit code 2 if something fails.

    \b
    Examples:
      mach doctor
    """
    from workers import doctor as checks

    found = checks.run(runs)
    for check in found:
        click.echo(f"{check.verdict:4}  {check.name:16} {check.text}")
    ctx.exit(2 if any(check.verdict == "fail" for check in found) else 0)


@cli.group()
def keys() -> None:
    """Keys for runs whose sockets others could reach.

    \b
    Examples:
      mach keys new mykeys
      mach launch --set bus.transport=tcp --set bus.host=0.0.0.0 --set bus.keys=mykeys
    """


@keys.command()
@click.argument("directory", type=click.Path(path_type=Path))
def new(directory: Path) -> None:
    """Make a key pair in DIRECTORY. Whoever can read it can talk to the runs that use it.

    \b
    Examples:
      mach keys new mykeys
    """
    from bus import curve
    from bus import keys as files

    files.save(directory, curve.new_keys())
    click.echo(f"{directory}: new keys; use them with --set bus.transport=tcp --set bus.keys={directory}")
