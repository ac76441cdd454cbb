"""What `mach resume` goes on with: the recorded configuration or what the user allows of another, and a new plan.

Knows no process and no torch. Laws: a run goes on under the configuration it had; what is to be different must be
said with --set, and what would make it another run is refused. Nothing of an earlier life is written here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from configs.errors import ConfigError, DataError, RunError
from configs.load import check_keys, convert, load, merge, parse_setting
from configs.tree import Config
from mach.shelf import Shelf, damage, fallback, read_manifest
from workers.devices import CPU, check_here, find_devices
from workers.instruments import check_probes
from workers.machines import FIXED, site_of
from workers.plan import Plan, make_plan
from workers.rundir import RunDir
from workers.status import Status


def recorded_plan(run: RunDir) -> Plan:
    """The plan of the newest launch or resume; its directory is where it lies now.

    Raises:
        RunError: it is gone or damaged.
    """
    try:
        plan = msgspec.json.decode(run.plan.read_bytes(), type=Plan)
    except OSError as error:
        raise RunError(f"{run.plan}: cannot be read ({error.strerror}); is {run.path} a run of mach launch?") from error
    except msgspec.ValidationError as error:
        raise RunError(f"{run.plan}: is no plan of this version ({error}); {anew(run)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        earlier = run.earlier_plan(run.earlier_plans())
        way = f"cp {earlier} {run.plan}, then mach resume {run.called}" if earlier.exists() else anew(run)
        raise RunError(f"{run.plan}: is damaged ({error}); {way}") from error
    return msgspec.structs.replace(plan, run=run.name, directory=str(run.path.absolute()))


def anew(run: RunDir) -> str:
    """What to do with a run that no plan can be read of."""
    return f"launch another run under its configuration: mach launch --config {run.config}"


def config_of(plan: Plan, file: str | None, settings: Sequence[str]) -> Config:
    """The configuration to go on with: the recorded one, or that in `file`, under `settings` as of --set.

    Raises:
        ConfigError: `file`, or the run's own config.yaml, differs in keys that no setting names; or a setting changes
            what makes the run what it is, or has a probe on that could tell nothing.
    """
    own = RunDir(Path(plan.directory)).config
    if file is not None:
        wanted = load(file, settings)
    else:
        wanted = overlaid(load(str(own)) if own.exists() else plan.config, settings)
    allowed = {key for text in settings for key in leaves(parse_setting(text))}
    changes = difference(plan.config, wanted)
    unasked = {key: change for key, change in changes.items() if not within(key, allowed)}
    if unasked:
        raise ConfigError(
            f"{file or own}: is not what run {plan.run!r} was trained under; "
            f"to go on under another configuration, say so with --set KEY=VALUE:\n" + table(unasked)
        )
    fixed = {key: change for key, change in changes.items() if within(key, FIXED)}
    if fixed:
        raise ConfigError(f"that would be another run than {plan.run!r}; launch a new one instead:\n" + table(fixed))
    if wanted.probes != plan.config.probes:
        check_probes(wanted)
    return wanted


def overlaid(config: Config, settings: Iterable[str]) -> Config:
    """`settings` as of --set over `config`."""
    merged = msgspec.to_builtins(config)
    for text in settings:
        layer = parse_setting(text)
        check_keys(layer, "--set " + text)
        merged = merge(merged, layer)
        convert(merged, "--set " + text)
    return convert(merged, "--set")


def difference(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Keys that differ, with both values; None where a key is not there."""
    before, after = dict(flat(msgspec.to_builtins(old))), dict(flat(msgspec.to_builtins(new)))
    keys = sorted(before.keys() | after.keys())
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def flat(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree by its dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def leaves(layer: Mapping[Any, Any]) -> list[str]:
    """The dotted keys that a setting names."""
    return [key for key, _ in flat(layer)]


def within(key: str, keys: Iterable[str]) -> bool:
    """Whether `key` is one of `keys`, or lies below one of them, or above."""
    return any((key + ".").startswith(other + ".") or (other + ".").startswith(key + ".") for other in keys)


def table(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """One line a key: what it was, what it would be."""
    width = max(map(len, changes))
    return "\n".join(f"  {key:{width}}  {old!r} → {new!r}" for key, (old, new) in changes.items())


def has_finished(status: Status, old: Config, new: Config) -> bool:
    """Whether a run has done all that it should, and no more is asked for."""
    if new.train.minutes is None:
        more = old.train.minutes is not None or new.train.steps > old.train.steps
    else:
        more = old.train.minutes is None or new.train.minutes > old.train.minutes
    return status.state == "finished" and status.exit_code == 0 and not more


def check_length(old: Plan, config: Config) -> None:
    """Refuse another length than the run was to have that all its components have done already: nothing would be
    trained, and a run that was not at its end would be finished.

    Raises:
        ConfigError: so it is.
    """
    if length_of(config) == length_of(old.config):
        return
    run = RunDir(Path(old.directory))
    names = [process.name for process in old.here if process.kind == "trainer"]
    if config.train.minutes is not None:
        least = min((trained_s(run, name) for name in names), default=0.0) / 60
        asked, enough, done = f"--minutes {config.train.minutes:g}", least >= config.train.minutes, f"{least:,.2f}"
    else:
        sound = [common_step(run, old)] if old.lockstep else [newest(run, name) for name in names]
        asked, enough, done = f"--steps {config.train.steps}", min(sound) >= config.train.steps, f"{min(sound):,}"
    if enough:
        raise ConfigError(
            f"{asked}: counts from the beginning, and {done} are done by all components of run {old.run!r}; "
            f"give more than that, or leave it out to go on to {length_of(old.config)}"
        )


def newest(run: RunDir, component: str) -> int:
    """The step of the newest checkpoint of a component that is whole; 0, the beginning, if there is none."""
    return Shelf(run.checkpoints(component)).newest(component)[0]


def trained_s(run: RunDir, component: str) -> float:
    """How long a component had trained, in all its lives, when it wrote that checkpoint."""
    if not (step := newest(run, component)):
        return 0.0
    manifest = read_manifest(Shelf(run.checkpoints(component)).path(step))
    return float(manifest.values.get("life", {}).get("seconds", 0.0))


def length_of(config: Config) -> str:
    """How long a run is to be, for people."""
    return f"{config.train.steps:,} steps" if config.train.minutes is None else f"{config.train.minutes:g} minutes"


def resumed_plan(old: Plan, config: Config, status: Status | None, sockets: Path, devices: tuple[str, ...]) -> Plan:
    """Another life of the run: new run id and sockets, incarnations and seconds that count on, a common step in
    lock-step.
    """
    run = RunDir(Path(old.directory))
    plan = make_plan(
        config,
        run=old.run,
        directory=run.path,
        sockets=sockets,
        devices=devices,
        lockstep=old.lockstep,
        site=site_of(config.bus, old.run if old.site is None else old.site.known_as),
    )
    lived = {process.name: process.incarnation for process in old.processes}
    for row in status.components if status is not None else ():
        lived[row.component] = max(lived.get(row.component, 0), row.incarnation)
    processes = tuple(
        msgspec.structs.replace(process, incarnation=1 + max(lived.get(process.name, 0), written_by(run, process.name)))
        for process in plan.processes
    )
    at = common_step(run, plan) if old.lockstep else None
    before_s = old.before_s if status is None else status.before_s + status.elapsed_s
    return msgspec.structs.replace(plan, processes=processes, resumed=True, resume_at=at, before_s=before_s)


def same_devices(plan: Plan) -> str:
    """The devices of a plan, as --gpus names them.

    Raises:
        ConfigError: one of them is not here.
    """
    had = tuple(dict.fromkeys(process.device for process in plan.here if process.kind == "trainer")) or CPU
    if had != CPU:
        check_here(had, find_devices())
    return ",".join(had)


def written_by(run: RunDir, component: str) -> int:
    """The newest incarnation that wrote a checkpoint; 0 if none can be read."""
    shelf = Shelf(run.checkpoints(component))
    found = [0]
    for version in shelf.versions():
        try:
            found.append(read_manifest(shelf.path(version)).incarnation)
        except DataError:
            continue  # damaged: the component's log will name it
    return max(found)


def common_step(run: RunDir, plan: Plan) -> int:
    """Lock-step: the newest step whose checkpoint is whole in every component; 0, the beginning, if there is none."""
    sound = [
        set(Shelf(run.checkpoints(process.name)).sound(process.name))
        for process in plan.processes
        if process.kind == "trainer"
    ]
    return max(set.intersection(*sound), default=0) if sound else 0


def where(run: RunDir, plan: Plan) -> str:
    """For people: from which steps the components go on, and below that a line for each that has damaged ones."""
    shelves = {each.name: Shelf(run.checkpoints(each.name)) for each in plan.here if each.kind == "trainer"}
    if plan.resume_at is not None:
        at = f"from step {plan.resume_at}, the newest that all have" if plan.resume_at else "from the beginning"
        newer = {name: shelf.damaged(name, plan.resume_at) for name, shelf in shelves.items()}
        lost = [f"{name}: {damage(damaged)}" for name, damaged in newer.items() if damaged]
        return "\n".join([f"run {plan.run} goes on in lock-step {at}", *lost])
    found = {name: shelf.newest(name) for name, shelf in shelves.items()}
    steps = [f"{name} from {f'step {step}' if step else 'the beginning'}" for name, (step, _) in found.items()]
    lost = [f"{name}: {fallback(damaged, step)}" for name, (step, damaged) in found.items() if damaged]
    return "\n".join([f"run {plan.run} goes on: {', '.join(steps)}", *lost])
