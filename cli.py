"""The commands. `mach --help` is the documentation; every command has examples in its help.

Loads neither torch nor ZeroMQ: its processes do. What the commands do lies in `workers/`; here their words are read.

Exit codes: of `launch` and `resume`, `workers/verdict.py`; of `status` and `chaos`, in their help; of the others, and
of all when nothing can be printed any more, `workers/output.py`.
"""

import importlib.metadata
import signal
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from configs.errors import ConfigError, NoSuchRun, RunError
from configs.load import dump
from workers import chaos as faults
from workers import commands, foreground, health, output, screen, tally, victims
from workers.finding import every_run, find_component, find_run
from workers.options import (
    ANEW,
    ANY_RUNS,
    BACKGROUND,
    CONFIGURATION,
    CONFIGURED,
    RUN,
    RUNS,
    TIMED,
    TIMING,
    Documented,
    Group,
    Recipe,
    Whole,
    options,
)
from workers.rows import rows_of
from workers.scratch import interruptible
from workers.status import read
from workers.timing import timing_of
from workers.vacant import is_vacant
from workers.verdict import exits_help
from workers.words import configured, fresh_name, lengths, own_name


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(importlib.metadata.version("mach-train"), prog_name="mach")
def cli() -> None:
    """Train a deep network as components that never wait for each other.

    A reader that leaves, as in mach logs | head, ends a command with exit code 0, but a run that goes on in it, or
    chaos, is stopped, 130. Output that cannot be written costs a run lines, stops chaos, ends the others with 1.

    \b
    Examples:
      mach launch --components 4       train the embedded default, scikit-learn's digits
      mach status                      the newest run, from any terminal
      mach launch --help               everything that a launch can do
      eval "$(_MACH_COMPLETE=bash_source mach)"    bash completes names of commands, runs and configurations
    """


@cli.command(epilog="\b\n" + exits_help())
@options(CONFIGURATION)
@click.option("--gpus", metavar="0,1,…|cpu", help="Devices to deal, round-robin; default: all there are, else the CPU.")
@click.option("--name", help="Name of the run; default: configuration and time.")
@RUNS
@click.option("--lockstep", is_flag=True, help="In skip wiring: every step waits for its messages; slow and exact.")
@click.option("--max-restarts", type=Whole(min=0), help="Most restarts of one component after failures; default 100.")
@options(BACKGROUND)
@click.option("--dry-run", is_flag=True, help="Try out data and networks, print configuration and plan, start nothing.")
@click.pass_context
def launch(ctx: click.Context, /, *, runs: Path, name: str | None, detach: bool, dry_run: bool, **words: Any) -> None:
    """Train: one process a component, until every component has done its steps.

    Ctrl-C stops cleanly, a second Ctrl-C at once. So does a reader of the output that leaves: --detach needs none. A
    component that fails is started anew, alone.

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
    config = configured(**{key: words[key] for key in (*CONFIGURED, "max_restarts")})
    other = None if name is not None else partial(own_name, config, words["config_name"], runs)
    name = name if name is not None else own_name(config, words["config_name"], runs)
    commands.check_name(runs, name)
    devices = commands.choose_devices(words["gpus"])
    if dry_run:
        click.echo(dump(config) + "\n" + commands.describe(config, runs, name, devices, lockstep=words["lockstep"]))
        return
    if devices == ("cpu",) and words["gpus"] is None:
        click.echo("no CUDA device: training on the CPU", err=True)
    if detach:
        ctx.exit(commands.detach(config, runs, name, words["gpus"], lockstep=words["lockstep"], other=other))
    ctx.exit(commands.train(config, runs, name, devices, lockstep=words["lockstep"], other=other, begun=words["tell"]))


@cli.command(epilog="\b\n" + exits_help())
@RUN
@RUNS
@options(ANEW)
@options(BACKGROUND)
@click.pass_context
def resume(ctx: click.Context, /, *, run: str | None, runs: Path, file: str | None, **words: Any) -> None:
    """Go on with a run, the newest by default, that was stopped, failed, or shall train longer.

    Every component goes on from its newest checkpoint that is whole; in lock-step all from the newest common one.
    Nothing is left to do: exit code 0.

    \b
    Examples:
      mach resume
      mach resume my-run --steps 4000
      mach resume my-run --set optimiser.lr=1e-4
      mach resume my-run --gpus 0,1
      mach resume my-run --detach
    """
    settings = (*words["settings"], *lengths(words["steps"], words["minutes"], words["settings"]))
    found = commands.resumable(runs, run)
    ctx.exit(commands.resume(found, file, settings, words["gpus"], detach=words["detach"], begun=words["tell"]))


@cli.command(name="simulate", epilog=output.TRAINED_HELP)
@options(CONFIGURATION)
@options(TIMING)
@click.option("--lockstep", is_flag=True, help="In skip wiring: every step waits for its messages.")
@click.option("--target", type=float, help="Accuracy, 0 to 1, or bits, whose time is printed; default: several.")
@click.option(
    "--json", "as_json", is_flag=True, help="All of it as JSON: status, curves, staleness by version, digest."
)
@click.pass_context
def simulated(ctx: click.Context, /, **words: Any) -> None:
    """Train in one process and in virtual time: as a launch, exact, and the same on every run.

    Learners, mailboxes and examinations are those of a launch; messages take as long as you say, and nobody waits
    for the clock. Prints the table of mach status, and the virtual time to accuracies. Leaves no run behind.

    \b
    Examples:
      mach simulate --components 64
      mach simulate --latency 50ms --jitter 10ms --compute 5ms,c2=50ms
      mach simulate --latency 8steps --straggler c1=10x --steps 300 --json
    """
    ctx.with_resource(interruptible())
    from workers import show

    config = configured(**{key: words.pop(key) for key in CONFIGURED})
    timing = timing_of(**{key: words.pop(key) for key in TIMED}, n_components=config.n_components)
    ctx.exit(show.simulation(config, timing, **words))


@cli.command(cls=Documented, fields=partial(screen.fields_help, tally.RECORDS), epilog=output.TRAINED_HELP)
@click.argument("rows", nargs=-1, required=True, metavar="RECIPE|FILE...", type=Recipe())
@options(CONFIGURATION)
@click.option("--seeds", type=Whole(min=1), default=1, show_default=True, help="How many, from --seed on.")
@click.option("--simulate", "virtual", is_flag=True, help="In virtual time; without, in real processes.")
@options(TIMING)
@click.option("--gpus", metavar="0,1,…|cpu", help="Devices of real processes; default: all there are, else the CPU.")
@click.option("--target", type=float, help="Accuracy, 0 to 1, or bits; default: the end of one alone, its worst seed.")
@click.option("--json", "as_json", is_flag=True, help="All of it, by row and by seed; documented below.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw the curves, with matplotlib.")
@RUNS
@click.pass_context
def compare(ctx: click.Context, /, rows: tuple[str, ...], *, runs: Path, gpus: str | None, **words: Any) -> None:
    """Train recipes side by side, on the same data, sizes, seeds and steps, and beside the honest controls.

    A YAML file (.yaml, .yml, or with a / in it) is a row of its own, called as the file: a configuration whose data,
    model, train, optimiser, evaluate, seed and n_components are those of --config, and whose method is your own. What
    --config or --set say of method, staleness and loss, recipes and controls have, too: the footnote names it.

    Controls are plain loops in one process: backpropagation of the same depth, without and with a loss at every
    component's head; one component alone; one alone with encoder and student trained on the labels; one as large as
    all; as many independent ones, averaged. The graph is a chain, unless --set graph says otherwise.
    Runs of real processes are left in runs/compare-….

    \b
    Examples:
      mach compare mach --components 3 --steps 300 --simulate
      mach compare mach-stream dgl ddg backprop --config bytes-lm --simulate --json
      mach compare my.yaml dgl backprop --config base.yaml --seeds 3 --simulate
      mach compare mach ddg --seeds 3 --simulate --latency 8steps --straggler c1=10x --png curves.png
    """
    ctx.with_resource(interruptible())
    from workers import show
    from workers.compare import Real, Virtual

    found = rows_of(rows, {key: words.pop(key) for key in CONFIGURED}, words.pop("seeds"))
    virtual, times = words.pop("virtual"), {key: words.pop(key) for key in TIMED}
    if not virtual and (said := [key for key in TIMED if ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE]):
        raise ConfigError(f"--{said[0].rstrip('s')}: only virtual time goes as told; add --simulate, or leave it out")
    if virtual:
        runner: Virtual | Real = Virtual(timing_of(**times, n_components=found.first.n_components))
        show.comparison(found, runner, None, **words)
    else:
        commands.warm()
        runner = Real(commands.choose_devices(gpus))
        show.comparison(found, runner, runs / fresh_name("compare", runs), **words)


@cli.command(cls=Documented, fields=screen.fields_help)
@RUN
@RUNS
@click.option("--watch", is_flag=True, help="Again every second until the run ends; JSON one object a line.")
@click.option("--json", "as_json", is_flag=True, help="The same fields as JSON; documented below.")
@click.pass_context
def status(ctx: click.Context, run: str | None, runs: Path, watch: bool, as_json: bool) -> None:
    """Show a run, the newest by default, from its files alone: also after a crash or over ssh. Staleness: p50/p99/max.

    Exit code: 0 healthy or finished, 1 degraded (a component failed, stalls, is cut off or never heard, cannot save or
    made no step), 2 failed, 3 no such run, or one that was refused before its first step: a launch takes its place.

    \b
    Examples:
      mach status
      mach status digits-20260101-120000 --watch
      mach status --json
    """
    found = find_run(runs, run)
    code = health.exit_code_of(foreground.shown(found, watch=watch, as_json=as_json))
    ctx.exit(NoSuchRun.exit_code if is_vacant(found) else code)


@cli.command(epilog=output.DONE_HELP.replace("0 done, 1", "0 done, 1 what was learnt could not be saved, or"))
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


@cli.command(epilog=output.DONE_HELP)
@RUN
@click.argument("component", required=False)
@RUNS
def restart(run: str | None, component: str | None, runs: Path) -> None:
    """Start one component of a running run, the newest by default, anew: it saves, leaves, and goes on in a process of
    its own. A hung one is killed. The others neither stop nor restart.

    \b
    Examples:
      mach restart my-run c2
      mach restart c2
    """
    click.echo(commands.restart(*find_component(runs, run, component)))


@cli.command(epilog=output.DONE_HELP)
@RUN
@click.argument("component", required=False)
@RUNS
@click.option("-c", "--component", "only", metavar="C", help="Only this component, c2, or one life of it, c2.1.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends, also with lives yet to come.")
def logs(run: str | None, component: str | None, runs: Path, only: str | None, follow: bool) -> None:
    """Print what the processes of a run, the newest by default, have printed, each line after the life that printed it:
    c2.1, then c2.2.

    \b
    Examples:
      mach logs
      mach logs c2
      mach logs my-run c2
      mach logs -c c2.1 -f
    """
    found, component = find_component(runs, run, component)
    for line in commands.log_lines(found, component or only, follow=follow):
        click.echo(line)


@cli.command(name="runs", epilog=output.DONE_HELP)
@RUNS
def list_runs(runs: Path) -> None:
    """List the runs, newest first.

    \b
    Examples:
      mach runs
      mach runs --runs elsewhere
    """
    found = []
    for run in every_run(runs) if runs.exists() else (find_run(runs, None),):  # which is refused
        try:
            found.append(read(run))
        except RunError as error:
            click.echo(f"mach: {error}", err=True)
    screen.console().print(screen.run_lines(found))


@cli.command()
@ANY_RUNS
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


@cli.command()
@RUN
@RUNS
@click.option("--kill", metavar="N/min", help="SIGKILLs, as in 20/min, 1/s or 6/h, over all components together.")
@click.option(
    "--stop", metavar="N/min", help="SIGSTOPs, each with a SIGCONT after --stop-seconds, at the end at the latest."
)
@click.option("--slow", multiple=True, metavar="C=Nx", help="Make a component so many times slower; repeatable.")
@click.option("--seconds", type=Whole(1, 86400), default=60, show_default=True)
@click.option("--stop-seconds", type=Whole(1, 3600), default=3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same faults.")
@click.option("--json", "as_json", is_flag=True, help="What was done and what came back, as JSON.")
@click.pass_context
def chaos(ctx: click.Context, /, run: str | None, runs: Path, kill: str | None, stop: str | None, **words: Any) -> None:
    """Hurt a running run, the newest by default, and see it go on: kill, stop and slow its components.

    Only processes of the run are hit. Ctrl-C ends it and continues whoever is stopped. Exit code: 0 everybody came
    back, 1 somebody did not, 2 the run is not running, 3 no such run, 130 interrupted.

    \b
    Examples:
      mach chaos --kill 20/min
      mach chaos my-run --kill 6/min --stop 4/min --slow c1=3x --seconds 30 --seed 7
      mach chaos --stop 2/min --stop-seconds 20 --json
    """
    kills, stops = faults.rate_of("--kill", kill), faults.rate_of("--stop", stop)
    if not (kills or stops or words["slow"]):
        raise ConfigError("there is nothing to do: give --kill 20/min, --stop 4/min or --slow c1=3x")
    found = find_run(runs, run)
    slow = faults.slowness_of(words["slow"], [row.component for row in victims.running(found).components])
    length = {"seconds": words["seconds"], "stop_s": words["stop_seconds"]}
    spec = faults.Spec(seed=words["seed"], kill=kills, stop=stops, slow=slow, **length)

    def told(fired: faults.Fired) -> None:
        if not words["as_json"] and fired.kind != "slow":
            click.echo(f"{fired.at_s:7.2f} s  {fired.kind}  {fired.component}  pid {fired.pid}")

    with output.seen():
        account = victims.wreak(found, spec, told)
    if words["as_json"]:
        click.echo(msgspec.json.format(msgspec.json.encode(account)).decode())
    else:
        click.echo("\n".join(victims.story(account)))
    ctx.exit(130 if account.interrupted else 1 if account.lost else 0)


@cli.group()
def keys() -> None:
    """Keys for runs whose sockets others could reach: of one machine, or of several (bus.hosts), which have one folder.

    \b
    Examples:
      mach keys new mykeys
      mach launch --set bus.transport=tcp --set bus.host=0.0.0.0 --set bus.keys=mykeys
    """


@keys.command(epilog=output.DONE_HELP.replace(" 3 no such run,", ""))
@click.argument("directory", type=click.Path(path_type=Path))
def new(directory: Path) -> None:
    """Make a key pair in DIRECTORY. Whoever can read it can talk to the runs that use it.

    \b
    Examples:
      mach keys new mykeys
    """
    click.echo(commands.new_keys(directory))


def main() -> int:
    """Run the command line of this process; its exit code."""
    return output.run(cli)
