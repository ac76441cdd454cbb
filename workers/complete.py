"""Words that a shell is offered for one that is half written. Loads neither torch nor ZeroMQ: a shell waits for it.

eval "$(_MACH_COMPLETE=bash_source mach)"
"""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from configs.load import shipped
from workers.finding import every_run
from workers.rundir import USUAL


def config_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped configurations that begin so, else files."""
    names = [CompletionItem(name) for name in shipped() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def run_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Runs that begin so, newest first, of the place that the line so far names."""
    found = every_run(Path(ctx.params.get("runs") or USUAL))
    return [CompletionItem(run.name) for run in found if run.name.startswith(incomplete)]
