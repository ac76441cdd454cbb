"""What a component says about itself: one `Report`, made in one place, sent to the supervisor as its progress
heartbeat, appended to `metrics/<component>.jsonl`, and shown by `status` and the live screen.

Knows no model and no torch. Rates are per second, times in seconds unless a name ends in `_ms`.
"""

from typing import Literal

import msgspec

State = Literal["starting", "training", "waiting", "stalled", "restarting", "stopping", "stopped", "failed", "finished"]
"""`waiting`: done with its own steps or in lock-step, waits for a peer (the reason says which). `stalled`: alive
without progress. `restarting`: its next life is due. `stopping`: it was told to leave; if it says so itself, in
lock-step, it has saved the step at which all stop. The last three are final."""
SAVING = "writes its checkpoint"
"""The reason of one that is `waiting` for its disk: whoever told it to leave gives it the time."""


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of the records below."""


class Losses(Record):
    """Means over the newest steps: those since the report before. None while no such step was taken, or where it is not
    a finite number, which JSON has not.
    """

    target: float | None = None
    """Cross-entropy of the labels, with the child's target where one was at hand, else with the student."""
    student: float | None = None
    """Cross-entropy of the labels with the student standing in."""
    distill: float | None = None
    """Distance between the student's imitation and the child's target."""
    trend: float | None = None
    """Relative change of `target` over the last ten reports against the ten before; negative is better."""
    not_finite: list[str] = msgspec.field(default_factory=list)
    """Which of these are not a finite number (NaN, as of training that has diverged), and None for that."""


class Accuracies(Record):
    """Shares of the test set answered rightly, 0 to 1."""

    student: float | None = None
    """With the student standing in for every child."""
    child: float | None = None
    """With the true children's answers, asked over the bus. None without children, or before the first answer."""
    step: int | None = None
    """The step at which `student` was measured; in stream wiring component 0's then, of every component."""
    student_bits: float | None = None
    """Cross-entropy on the test set, in bits a label (of bytes: bits a byte), with the student; None, as the others in
    bits, where it is not a finite number."""
    child_bits: float | None = None
    """The same, with the true children's answers; in stream wiring they have those of their own true children."""
    full: float | None = None
    """In stream wiring, of what the deepest component says: the whole network; where a component has several children,
    down the first of each. None where that way leads to a stub, whose answers are noise; so is `student` then, where
    the last alone has a head."""
    full_bits: float | None = None
    """The same, in bits."""


class Spread(Record):
    """A distribution: quantiles over the last 1,024 values, the maximum over the whole life."""

    count: int = 0
    """How many values there were, over the whole life."""
    p50: float | None = None
    """Median, in versions."""
    p99: float | None = None
    """Ninety-ninth percentile, in versions."""
    max: float | None = None
    """The largest, in versions."""
    p50_ms: float | None = None
    """Median, in milliseconds."""
    p99_ms: float | None = None
    """Ninety-ninth percentile, in milliseconds."""
    max_ms: float | None = None
    """The largest, in milliseconds."""


class Staleness(Record):
    """At the moment of use. `p50`, `p99`, `max` in versions (of the answering component), `*_ms` in milliseconds."""

    target: Spread = msgspec.field(default_factory=Spread)
    """Of children's targets: newest version heard minus the one that answered; time since the activation left."""
    gradient: Spread = msgspec.field(default_factory=Spread)
    """Of parents' late gradients: own version minus the one that answered; time since the answer left."""
    policies: dict[str, int] = msgspec.field(default_factory=dict)
    """What policies did in this life, by name: gradients that `bound` refused or `clip` changed, and so on
    (`mach/staleness.py`, `Staleness.counts`)."""


class Window(Record):
    """Places in the windows of all edges to children."""

    size: int = 0
    """Places, of all edges together."""
    in_use: int = 0
    """Places taken by questions that are not answered yet."""


class Messages(Record):
    """Counts since the process started."""

    sent: dict[str, int] = msgspec.field(default_factory=dict)
    """By kind: activation, target, gradient."""
    received: dict[str, int] = msgspec.field(default_factory=dict)
    """By kind, as above."""
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
    """By reason."""
    faults: dict[str, int] = msgspec.field(default_factory=dict)
    """Of a stub: faults that fired, by kind."""


class Peer(Record):
    """One edge, as seen from this component."""

    role: Literal["child", "parent"]
    """What the other end is to this component."""
    state: str
    """knocking, open, silent or closed."""
    heard_s: float | None = None
    """Seconds since it was last heard."""


class Checkpoint(Record):
    """The newest state on disk that a later life would go on from."""

    step: int | None = None
    """The step after which it was taken; None before the first."""
    age_s: float | None = None
    """Seconds since it was written."""
    trouble: str = ""
    """Why no newer one can be written; empty again after the next that was."""
    fallback: str = ""
    """That newer ones were damaged when this life began, and what it began from instead; empty: none was."""


def older(checkpoint: Checkpoint, by_s: float | None) -> Checkpoint:
    """The same one, some seconds later; None: nobody knows how many."""
    age_s = None if checkpoint.age_s is None or by_s is None else round(checkpoint.age_s + by_s, 3)
    return msgspec.structs.replace(checkpoint, age_s=age_s)


class Report(Record):
    """All of it."""

    component: str
    """Its name."""
    kind: Literal["trainer", "stub"]
    """`trainer`, or `stub`: a scripted neighbour without a model."""
    incarnation: int
    """Which life it is in, from 1."""
    pid: int | None
    """Number of its process; None while it has none."""
    device: str
    """What it trains on: `cpu`, or the number of a CUDA device."""
    state: State
    """What it does; `stopped`, `failed` and `finished` are final."""
    reason: str = ""
    """Why it is in this state, for people."""
    elapsed_s: float = 0.0
    """Since the process's first report."""
    bound: int | None = None
    """In lock-step, while the run is being stopped: the step that it will reach in any case. Not in `metrics`."""
    step: int = 0
    """Optimiser steps taken: its version, which goes on in the next life; so do `samples` and `child_steps`."""
    samples: int = 0
    """Training samples seen, in all its lives."""
    rate: float | None = None
    """Steps per second: since the report before, 0 where none ended since, as of steps that take longer than that, and
    None before the first of its life; of a component that has finished or stopped, over all its steps."""
    step_ms_p99: float | None = None
    """p99 of the time from one step's end to the next one's, over the last 1,024 of this life."""
    loss: Losses = msgspec.field(default_factory=Losses)
    """Its losses."""
    accuracy: Accuracies = msgspec.field(default_factory=Accuracies)
    """Its newest examination."""
    child_steps: int = 0
    """Steps trained on a child's answer."""
    child_share: float | None = None
    """`child_steps` over all steps: about 1/8 where only every 8th answer says a target (`method.targets_every`)."""
    staleness: Staleness = msgspec.field(default_factory=Staleness)
    """How old what it used was."""
    probes: dict[str, float] = msgspec.field(default_factory=dict)
    """The newest of every probe that is on and had something to tell, by `probe/part` (`mach/probes.py`)."""
    probed: dict[str, int] = msgspec.field(default_factory=dict)
    """The step whose weights that was measured at, by probe; of `bytes` and `idle`, which are always new, none."""
    checkpoint: Checkpoint = msgspec.field(default_factory=Checkpoint)
    """Its newest state on disk."""
    window: Window = msgspec.field(default_factory=Window)
    """Its questions under way."""
    messages: Messages = msgspec.field(default_factory=Messages)
    """What it sent, received and dropped."""
    peers: dict[str, list[Peer]] = msgspec.field(default_factory=dict)
    """Its edges, by the other end's name."""
