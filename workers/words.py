"""Words of the command line into a configuration, and a run's name. Knows no option's spelling, no torch and no run."""

import math
from datetime import datetime
from pathlib import Path

from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from mach.recipes import RECIPES


def configured(
    config_name: str,
    components: int | None,
    seed: int | None,
    settings: tuple[str, ...],
    steps: int | None,
    minutes: float | None,
    max_restarts: int | None = None,
) -> Config:
    """The configuration that the options describe; options win over `--set`, which wins over the file."""
    options = {"n_components": components, "seed": seed, "supervise.max_restarts": max_restarts}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return load(config_name, (*settings, *given, *lengths(steps, minutes, settings)), RECIPES)


def lengths(steps: int | None, minutes: float | None, settings: tuple[str, ...]) -> list[str]:
    """--steps and --minutes as settings, beside others that may not be at odds with them."""
    if steps is not None and minutes is not None:
        raise ConfigError("--steps and --minutes: give one of them")
    option, other = ("--steps", "train.minutes") if steps is not None else ("--minutes", "train.steps")
    said = (text.partition("=") for text in settings)
    told = [f"{key}={value}" for key, _, value in said if key.strip() == other and value.strip() != "null"]
    if told and (steps is not None or minutes is not None):
        raise ConfigError(f"{option} and --set {told[0]}: give one of them")
    if steps is not None:
        return [f"train.steps={steps}", "train.minutes=null"]
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes {minutes}: give a finite number above 0")
    return [] if minutes is None else [f"train.minutes={minutes}"]


def own_name(config: Config, config_name: str, runs: Path) -> str:
    """A fresh name for a run that was given none.

    Raises:
        ConfigError: it is over several machines, which know it by its name.
    """
    if config.bus.hosts:
        raise ConfigError("bus.hosts: the machines of a run know it by its name; give all of them the same --name")
    return fresh_name(config_name, runs)


def fresh_name(config_name: str, runs: Path) -> str:
    """Configuration and time; with a number behind it where that is taken."""
    base = f"{Path(config_name).stem.lstrip('.-') or 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [base, *(f"{base}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (runs / name).exists())
