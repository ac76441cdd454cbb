"""What commands have in common: options that several of them take, and how an error of ours ends one.

Knows no command. Loads neither torch nor ZeroMQ.
"""

import os
import tempfile
import traceback
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from configs.errors import ConfigError, MachError
from configs.load import recipe, shipped
from mach.recipes import RECIPES
from workers.background import tell_begun
from workers.complete import config_names, run_names
from workers.output import interrupted
from workers.process import sentence
from workers.rows import is_file
from workers.rundir import USUAL, ground
from workers.scarce import remedy

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Place(click.Path):
    """Where runs lie, or will: refused, before anything is done, where a file is in the way."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        runs = Path(os.fsdecode(super().convert(value, param, ctx)))
        if ctx is None or not ctx.resilient_parsing:  # a shell that completes is told no mistakes
            ground(runs)
        return runs


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "integer"  # what is wanted in place of 'two'; click says "integer range"


class Recipe(click.types.StringParamType):
    """The name of a recipe, of which a wrong one is the same error as after --set recipe; or a file, not yet read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name."""
        if not is_file(str(value)):
            recipe(value, RECIPES)
        return str(value)

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        """What there is to choose from."""
        return f"Recipes: {', '.join(RECIPES)}; or a YAML file of a method of your own."

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names that begin so, else files, for a shell that completes (`_MACH_COMPLETE`)."""
        names = [CompletionItem(name) for name in RECIPES if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


def runs_option(kind: click.Path) -> Decorator:
    """--runs."""
    return click.option("--runs", type=kind, default=USUAL, show_default=True, help="Where runs lie.")


def setting(told: str) -> Decorator:
    """--set."""
    return click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=told)


RUNS = runs_option(Place())
ANY_RUNS = runs_option(click.Path(path_type=Path))
"""For `mach doctor`, which looks itself."""
RUN = click.argument("run", required=False, shell_complete=run_names)
BACKGROUND = (
    click.option("--detach", is_flag=True, help="Leave the run in the background."),
    click.option(
        "--tell",
        type=int,
        hidden=True,
        callback=lambda ctx, param, tell: None if tell is None else partial(tell_begun, tell),
        help="Of a launcher that --detach started: where to say that it has begun.",
    ),
)
CONFIGURATION = (
    click.option(
        "--config",
        "config_name",
        default="digits",
        show_default=True,
        metavar="FILE|NAME",
        shell_complete=config_names,
        help="YAML file, - for standard input, or one of: " + ", ".join(shipped()) + ".",
    ),
    click.option("--components", type=Whole(min=1), help="How many components."),
    click.option("--seed", type=int, help="Seed of weights and data order."),
    setting("Override one key of the configuration; repeatable."),
    click.option("--steps", type=Whole(min=1), help="Optimiser steps of every component."),
    click.option("--minutes", type=float, help="Train for this long instead."),
)
CONFIGURED = ("config_name", "components", "seed", "settings", "steps", "minutes")
"""Options that say what is trained: the arguments of `configured`."""
ANEW = (
    click.option(
        "--config",
        "file",
        metavar="FILE|NAME",
        shell_complete=config_names,
        help="Compare with this one; default: as it was trained.",
    ),
    click.option("--gpus", metavar="0,1,…|cpu", help="Devices to deal anew; default: those it had."),
    setting("What shall be different from now on; repeatable."),
    click.option("--steps", type=Whole(min=1), help="Optimiser steps of every component, from the beginning."),
    click.option("--minutes", type=float, help="Train for this long, from the beginning."),
)
"""Options that say what is different when a run goes on."""
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


ELSEWHERE = {
    "help": "mach --help is the manual, and mach launch --help that of one command",
    "export": "mach.export.load in Python gives the network of a run",
}
"""Where to find what is no command, though some look for one."""


def stand() -> None:
    """Refuse to run nowhere: every path that is given from here would be wrong, and torch cannot be loaded."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(f"the working directory is gone ({error.strerror}); cd to one that is there") from error


class Documented(click.Command):
    """A command whose help ends with the fields of its JSON: written when it is asked for, since it reads sources."""

    def __init__(self, *args: Any, fields: Callable[[], str], **words: Any) -> None:
        super().__init__(*args, **words)
        self.fields = fields

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Below the options, and what else stands there."""
        super().format_epilog(ctx, formatter)
        told = "\b\n" + self.fields().replace("\n\n", "\n\n\b\n")
        click.Command(None, epilog=told).format_epilog(ctx, formatter)


def surprise(error: BaseException) -> str:
    """What to say of an error that is none of ours: what the system lacked, or where its traceback is."""
    told = sentence(error)
    if way := remedy(told):
        return f"{told}; {way}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="mach-", suffix=".traceback", delete=False) as file:
            traceback.print_exception(error, file=file)
        place = f"the traceback is in {file.name}"
    except OSError as lost:
        place = f"the traceback can be written nowhere ({lost.strerror}): MACH_DEBUG=1 shows it"
    return f"{told}; {place}: please report it, unless it comes from a network or data of your own"


class Group(click.Group):
    """Turns our errors into one sentence and their exit code; a surprise into one line and a file."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name."""
        if args[0] in ELSEWHERE and args[0] not in self.commands and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}; {ELSEWHERE[args[0]]}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            stand()
            return super().invoke(ctx)
        except MachError as error:
            click.echo(f"mach: {error}", err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if interrupted(error):  # of commands that train in this process; a launch stops its components itself
                raise click.Abort from None  # `output.run` says so
            if os.environ.get("MACH_DEBUG"):
                raise
            click.echo(f"mach: {surprise(error)}", err=True)
            ctx.exit(2)
