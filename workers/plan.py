"""Configuration → `Plan`: who runs where and talks to whom, written down before anything starts.

A pure value: what `--dry-run` prints, what a run directory keeps, what every process is a function of.
Knows no socket and no torch; devices are strings that the caller has already found to exist.
"""

import itertools
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from bus import hosts
from configs.errors import ConfigError
from configs.tree import Bus, Config
from mach.graph import Adjacency, children_of, name_of, parents_of, path_to
from workers.machines import Site, run_id

FOREVER_MS = 10**9
"""The time-out of an edge in lock-step: there an answer is waited for, however late."""


class ProcessPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the run."""

    name: str
    index: int
    kind: Literal["trainer", "stub"]
    device: str
    """`cpu`, or the number of the one CUDA device that the process will see."""
    children: tuple[str, ...]
    """Whom it asks."""
    parents: tuple[str, ...]
    """Whom it answers."""
    incarnation: int = 1
    """Of its first life in this launch; a resumed run counts on from where it was."""
    below: str = ""
    """The highest stub above it in stream wiring; empty: none."""
    elsewhere: str = ""
    """The machine that it runs on, as of `bus.hosts`, where that is another one; empty: this one starts it."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    run: str
    """Its name."""
    run_id: str
    """Sixteen hex digits that every message carries: runs never mix."""
    directory: str
    """The run directory, absolute."""
    sockets: str
    """The private directory of sockets and published endpoints."""
    lockstep: bool
    config: Config
    processes: tuple[ProcessPlan, ...]
    resumed: bool = False
    """Whether the run directory is there already, with what earlier lives of the run left."""
    resume_at: int | None = None
    """The step whose checkpoint everybody goes on from, 0 for the beginning; None: each from its own newest."""
    site: Site | None = None
    """Which part of a run over several machines this is; None: it is the whole run."""
    before_s: float = 0.0
    """How long earlier launches of the run have lasted together, as far as is known."""
    folder: str = ""
    """Where the command of the newest launch or resume was given: relative paths start there. Empty until then."""
    versions: dict[str, str] = {}
    """Of mach, Python and the packages that trained it then (`workers/origin.py`)."""

    def life(self, incarnation: int) -> int:
        """The number that a life of a component here has to its neighbours."""
        return incarnation if self.site is None else self.site.epoch + incarnation

    @property
    def here(self) -> tuple[ProcessPlan, ...]:
        """Those that this launch starts: all, unless the run is over several machines."""
        return tuple(process for process in self.processes if not process.elsewhere)

    @property
    def elsewhere(self) -> dict[str, str]:
        """By component on another machine: which."""
        return {process.name: process.elsewhere for process in self.processes if process.elsewhere}

    @property
    def together(self) -> str:
        """Why nobody can go on once somebody is gone for good; empty where the others do."""
        if self.lockstep:
            return "in lock-step"
        stream, method = self.config.wiring == "stream", self.config.method
        if stream and method.gradient_reach == "full":
            return "with gradients end to end"
        return "with guessed gradients" if stream and method.guess else ""

    def process(self, name: str) -> ProcessPlan:
        """The process called `name`."""
        return next(process for process in self.processes if process.name == name)


def make_plan(
    config: Config,
    *,
    run: str,
    directory: Path,
    sockets: Path,
    devices: tuple[str, ...] = ("cpu",),
    lockstep: bool = False,
    site: Site | None = None,
) -> Plan:
    """Deal components to `devices` round-robin and edges by the graph. Without a `site` all are started by this launch,
    whatever `bus.hosts` says.

    Raises:
        ConfigError: overrides of a component that is not there, nobody to train, an illegal graph, a stub or a time
            limit in lock-step, machines that are not one a component.
    """
    children = children_of(config.graph, config.n_components)
    parents = parents_of(children)
    check_settings(config, lockstep=lockstep)
    check_lessons(config, children)
    if config.wiring == "stream":
        check_stream(config, children, lockstep=lockstep)
    check_components(config, lockstep=lockstep)
    away = elsewhere(config, site, lockstep=lockstep)
    dealt = dealt_to(devices, away)
    return Plan(
        run=run,
        run_id=secrets.token_hex(8) if site is None else run_id(config, site.known_as),
        directory=str(directory.absolute()),
        sockets=str(sockets),
        lockstep=lockstep,
        config=config,
        site=site,
        processes=tuple(
            ProcessPlan(
                name=name_of(i),
                index=i,
                kind="stub" if is_stub(config, i) else "trainer",
                device="cpu" if is_stub(config, i) else dealt[i],
                children=tuple(map(name_of, children[i])),
                parents=tuple(map(name_of, parents[i])),
                below=stub_above(config, i, children),
                elsewhere=away[i],
            )
            for i in range(config.n_components)
        ),
    )


def dealt_to(devices: tuple[str, ...], away: Sequence[str]) -> list[str]:
    """A device a component, round-robin among those that are here; of the others nobody knows here."""
    ours = itertools.cycle(devices)
    return ["elsewhere" if host else next(ours) for host in away]


def elsewhere(config: Config, site: Site | None, *, lockstep: bool) -> list[str]:
    """By component the machine that it is on, where that is not this one.

    Raises:
        ConfigError: a run cannot be over these machines.
    """
    machines = config.bus.hosts
    if site is None:
        return [""] * config.n_components
    if len(machines) != config.n_components:
        counts = f"{len(machines)} machines, and there are {config.n_components} components"
        raise ConfigError(f"bus.hosts: names {counts}; name one for each")
    if lockstep:
        raise ConfigError("--lockstep: is for components of one machine; leave it out, or bus.hosts")
    idle = set(machines) - {host for index, host in enumerate(machines) if not is_stub(config, index)}
    if idle:
        raise ConfigError(f"bus.hosts: on {min(idle)} there would be stubs alone; put one that trains on each machine")
    return ["" if host == site.here else host for host in machines]


def check_components(config: Config, *, lockstep: bool) -> None:
    """Raise a ConfigError for overrides of nobody, and for stubs where there can be none."""
    for index, override in config.components.items():
        if not 0 <= index < config.n_components:
            raise ConfigError(
                f"components.{index}: there is no such component; this run has 0 to {config.n_components - 1}"
            )
        if lockstep and override.stub is not None:
            raise ConfigError(
                f"components.{index}.stub: a stub cannot keep lock-step; leave out --lockstep or the stub"
            )
    if all(is_stub(config, index) for index in range(config.n_components)):
        raise ConfigError("components: all are stubs, so that nothing would be trained; leave one without a stub")


def stub_above(config: Config, index: int, children: Adjacency) -> str:
    """The highest stub on an activation's way to component `index`; empty: none, as always in skip wiring."""
    way = path_to(index, children) if config.wiring == "stream" else ()
    return next((name_of(above) for above in way if is_stub(config, above)), "")


def check_stream(config: Config, children: Adjacency, *, lockstep: bool) -> None:
    """Raise a ConfigError for what stream wiring cannot be combined with."""
    for index in range(config.n_components):
        path_to(index, children)
    if lockstep:
        raise ConfigError(
            "--lockstep: keeps the components of skip wiring in step; leave it out: in stream wiring recipe=backprop "
            "takes one batch forward through everybody and back before the next"
        )


def check_settings(config: Config, *, lockstep: bool) -> None:
    """Raise a ConfigError for settings that exclude each other."""
    if lockstep and config.train.minutes is not None:
        raise ConfigError("train.minutes: in lock-step everybody takes the same steps; use train.steps (--steps)")
    if config.bus.activation == "indices" and config.data.noise > 0.0:
        raise ConfigError(
            f"bus.activation=indices: with data.noise={config.data.noise:g} every sample is drawn anew, so no index "
            "tells which it is; set data.noise=0, or bus.activation=inputs"
        )
    policies = config.staleness.policies
    twice = next((each for each in policies if policies.count(each) > 1), None)
    if twice is not None:
        raise ConfigError(f"staleness.policies: {twice} stands there more than once; name each policy once")
    if config.wiring == "stream" and config.method.gradient_reach == "full":
        if "accumulate" in policies:
            raise ConfigError(
                "staleness.policies: accumulate gathers late gradients beside own ones, and end to end a step is of "
                "one answered batch; set method.update_every in its place"
            )
        if "clip" in policies and config.method.heads == "last":
            raise ConfigError(
                "staleness.policies: clip measures late gradients by those of the own loss, and by method.heads=last "
                "only the last component has one; leave it out, or set method.heads=every"
            )
    check_head(config)
    if config.method.targets_every > 1 and config.wiring == "skip":
        raise ConfigError(
            "method.targets_every: is of stream wiring; in skip wiring every answer is a target; set it to 1"
        )
    depth = config.method.depth
    if depth > 0 and lockstep:
        raise ConfigError("method.depth: an answer from further down comes later, and lock-step waits; leave out one")
    if depth > 0 and config.wiring == "stream":
        raise ConfigError(
            "method.depth: is of skip wiring; in stream wiring a batch has one answer: at once (gradient_reach=hop), "
            "or when all further down have answered; set method.gradient_reach=full for that"
        )
    if depth >= config.bus.window:
        raise ConfigError(
            f"method.depth: {depth} levels need a window of {depth + 1} or more, or questions would wait for each "
            f"other's places; set bus.window={depth + 1}"
        )


def check_lessons(config: Config, children: Adjacency) -> None:
    """Raise a ConfigError where a component would have nothing to learn from, and so never take a step, or learn
    nothing about labels; and for answers that nobody has.
    """
    method, skip = config.method, config.wiring == "skip"
    if not any(children):
        return
    if skip and method.targets == "none":
        raise ConfigError(
            "method.targets: none leaves nothing to say to a parent in skip wiring, where every answer is a target; "
            "set method.targets=embedding, or wiring=stream with graph=chain"
        )
    if method.heads == "every" or (method.gradient_reach == "full" and not skip):
        return
    if skip:
        raise ConfigError(
            "method.heads: last is for stream wiring; in skip wiring everybody's head is its own, and learns from "
            "labels alone; set method.heads=every"
        )
    between = any(children[child] for own in children for child in own)  # who has a parent and children
    if method.gradient_reach == "none" or (between and not method.guess):
        raise ConfigError(
            f"method.heads: last leaves components with children no loss of their own, and by method.gradient_reach="
            f"{method.gradient_reach} no gradient of the last one's comes to all of them; set "
            "method.gradient_reach=full, or method.heads=every"
        )
    if between and method.targets != "none":
        raise ConfigError(
            f"method.targets: {method.targets} is what components with a loss of their own can answer at once, and by "
            "method.heads=last those between have none; set method.targets=none, or method.heads=every"
        )


def check_head(config: Config) -> None:
    """Raise a ConfigError for a head that looks down where there is nothing to look at."""
    method, head = config.method, config.method.momentum_head
    if head != "chain" and method.reach > 0:
        raise ConfigError(
            "method.reach: is for heads that look down the chain, as by recipe=mach-stream; set "
            "method.momentum_head=chain, or reach=0"
        )
    if head == "none":
        return
    if config.wiring == "skip" or method.heads == "last":
        raise ConfigError(
            f"method.momentum_head: {head} is for components of stream wiring that each have a loss of their own, as "
            f"by recipe={'mach-stream' if head == 'chain' else 'dgl'}; set wiring=stream and method.heads=every, or "
            "leave it out"
        )
    if config.bus.codec.target == "int8":
        raise ConfigError(
            "bus.codec.target: int8 would give all weights that travel up for method.momentum_head one scale; set "
            "bf16 or none"
        )
    if head == "layer":
        return
    if any(len(children) > 1 for children in children_of(config.graph, config.n_components)):
        raise ConfigError(
            "method.momentum_head: chain looks down one way, and on this graph a component has several children; "
            "set graph=chain"
        )
    if method.targets != "embedding" or config.model.join in ("sum", "mean"):
        raise ConfigError(
            "method.momentum_head: chain leaves a component's own joiner and head to its student, which needs the "
            "child's embedding and no more, and logits that do not run up; set method.targets=embedding and "
            "model.join=concat, or momentum_head=layer"
        )
    if config.staleness.late == "stash" and method.gradient_reach == "none":
        raise ConfigError(
            "staleness.late: stash keeps weights for gradients that come late, and here none does; set "
            "staleness.late=recompute"
        )


def is_stub(config: Config, index: int) -> bool:
    """Whether component `index` is a scripted neighbour without a model."""
    return index in config.components and config.components[index].stub is not None


def unscripted(config: Config) -> dict[str, str]:
    """By stub whose script has it end, of itself or with a crash: the settings without which it does not."""
    found: dict[str, list[str]] = {}
    for index, override in sorted(config.components.items()):
        for key in ("silent_at", "crash_at"):
            if override.stub is not None and getattr(override.stub, key) is not None:
                found.setdefault(name_of(index), []).append(f"--set components.{index}.stub.{key}=null")
    return {name: " ".join(settings) for name, settings in found.items()}


def unanswered(plan: Plan, process: ProcessPlan, silent: Collection[str]) -> bool:
    """Whether an examination by `process` can have no end, since a stub among `silent` is asked: a child, or in stream
    wiring one further down, where those between pass questions on. A stub that speaks answers by itself.
    """
    below = [plan.process(child) for child in process.children]
    on = plan.config.wiring == "stream"
    return any(
        child.name in silent or (on and child.kind == "trainer" and unanswered(plan, child, silent)) for child in below
    )


def made_up(plan: Plan, process: ProcessPlan) -> tuple[str, ...]:
    """Fields of a component's accuracy that a stub's noise decides: in stream wiring what the deepest one says, down
    the first of each one's children, which is everybody's word where the last alone has a head.
    """
    if plan.config.wiring != "stream" or not process.children:
        return ()
    child = plan.process(process.children[0])
    if child.kind != "stub":
        return made_up(plan, child)
    full = ("full", "full_bits")
    return full if plan.config.method.heads == "every" else ("student", "student_bits", *full)


def endpoints_of(plan: Plan, process: ProcessPlan) -> dict[str, str]:
    """In a run over several machines, where a component listens, under its own name, and where its neighbours on other
    machines do.
    """
    bus, near = plan.config.bus, {*process.children, *process.parents}
    if plan.site is None:
        return {}
    away = {each.name: each.index for each in plan.processes if each.elsewhere and each.name in near}
    own = {process.name: hosts.endpoint(bus, process.index, bind=True)}
    return own | {name: hosts.endpoint(bus, index) for name, index in away.items()}


def bus_of(plan: Plan) -> Bus:
    """The bus's settings in this run."""
    bus = plan.config.bus
    return msgspec.structs.replace(bus, timeout_ms=FOREVER_MS) if plan.lockstep else bus
