"""What a component's process writes down: steps in, a `Report` out, to `metrics/<component>.jsonl` and TensorBoard.

Knows no model: losses are numbers here, ages are ages. Laws: a disk that is full or gone costs the record, never
the training: the trouble is printed once, and every later report tries again. Nothing is written by halves, so a
file that could be read before a full disk can be read after it. Losses are read off their device once a report,
not once a step.
"""

import dataclasses
import errno
import io
import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bus.mailbox import Counts, EdgeView, Mailbox
from mach import probes
from mach.evaluate import Accuracy
from mach.learner import Step
from mach.messages import Age
from workers.plan import Plan, made_up
from workers.report import Accuracies, Checkpoint, Losses, Messages, Peer, Report, Spread, Staleness, State, Window
from workers.rundir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

RECENT = 1024
"""Values that quantiles are taken over."""
TREND = 10
"""Reports on either side of the comparison that makes the trend."""
BARS = 16
"""Buckets of a histogram."""
NO_SCALARS = {"component", "kind", "incarnation", "pid", "device", "state", "reason", "peers", "step", "probed"}
"""Fields of a report that TensorBoard does not draw."""
STDERR = 2


class Tally:
    """A distribution of ages: quantiles over the last RECENT, the maximum over all."""

    def __init__(self) -> None:
        self.count = 0
        self.versions: deque[int] = deque(maxlen=RECENT)
        self.millis: deque[float] = deque(maxlen=RECENT)
        self.max_versions = 0
        self.max_millis = 0.0

    def add(self, ages: Sequence[Age]) -> None:
        """Take note of some more."""
        self.count += len(ages)
        for age in ages:
            millis = 1000.0 * age.seconds
            self.versions.append(age.versions)
            self.millis.append(millis)
            self.max_versions = max(self.max_versions, age.versions)
            self.max_millis = max(self.max_millis, millis)

    def spread(self) -> Spread:
        """The record of it; without values, of None."""
        if not self.count:
            return Spread()
        versions, millis = sorted(self.versions), sorted(self.millis)
        return Spread(
            count=self.count,
            p50=quantile(versions, 0.50),
            p99=quantile(versions, 0.99),
            max=self.max_versions,
            p50_ms=round(quantile(millis, 0.50), 3),
            p99_ms=round(quantile(millis, 0.99), 3),
            max_ms=round(self.max_millis, 3),
        )


class Journal:
    """One component's record of itself. Times are seconds of the mailbox's clock."""

    def __init__(self, plan: Plan, name: str, *, incarnation: int) -> None:
        self.process = plan.process(name)
        self._made_up = made_up(plan, self.process)
        self.incarnation = incarnation
        self.run = RunDir(Path(plan.directory))
        self.every_s = plan.config.report.every_ms / 1000
        self.thin = plan.config.report.thin
        self.settings = plan.config.probes
        self.steps = self.samples = self.child_steps = self._before = self._samples_before = 0
        self._on_child = False  # whether any of the batches was that are gathered for one step
        self.target, self.gradient = Tally(), Tally()
        self._losses: dict[str, list[Tensor]] = {}
        self._probes: dict[str, float] = {}
        self._probed: dict[str, int] = {}
        self._trend: deque[float] = deque(maxlen=2 * TREND)
        self._since: float | None = None  # the newest report
        self._written = (-math.inf, ("", ""))  # the newest that was written down: when, and what it did and why
        self._measured: tuple[float, int] | None = None  # when the rate was, and the steps then
        self._rate: float | None = None
        self._stepped = (0.0, 0.0)  # when the first and the newest step ended
        self._step_ms: deque[float] = deque(maxlen=RECENT)
        self._noted_at: float | None = None
        self._began = math.inf
        self._latest = Losses()
        self._born: float | None = None
        self._events: Events | None = None
        self._troubles: set[str] = set()

    def begin(self, now: float) -> None:
        """The first step begins."""
        self._began = self._noted_at = now

    def go_on(self, steps: int, samples: int, child_steps: int) -> None:
        """Count on from an earlier life; rates are of this one."""
        self.steps = self._before = steps
        self.samples = self._samples_before = samples
        self.child_steps = child_steps

    def note(self, step: Step, now: float) -> None:
        """Take note of one step; losses stay on their device until the next report."""
        self._born = now if self._born is None else self._born
        self._stepped = (self._stepped[0] if self.steps > self._before else now, now)
        self._on_child |= step.on_child
        if step.updated:
            if self._noted_at is not None:
                self._step_ms.append(1000.0 * (now - self._noted_at))
            self._noted_at = now
            self.steps += 1
            self.child_steps += self._on_child
            self._on_child = False
        self.samples += step.samples
        self.target.add(step.target_ages)
        self.gradient.add(step.gradient_ages)
        self._probes |= step.probes
        self._probed |= {name.partition("/")[0]: step.version - step.updated for name in step.probes}
        for name, value in step.losses.items():
            self._losses.setdefault(name, []).append(value)

    def due(self, now: float) -> bool:
        """Whether it is time for a report."""
        return self._since is None or now - self._since >= self.every_s

    def report(
        self,
        now: float,
        mailbox: Mailbox,
        accuracy: Accuracy | None,
        state: State,
        reason: str = "",
        dropped: Mapping[str, int] | None = None,
        checkpoint: Checkpoint | None = None,
        policies: Mapping[str, int] | None = None,
        waited_s: float = 0.0,
    ) -> Report:
        """Make the report, and write it down if it is wanted; `dropped`, by reason, are drops that the mailbox does not
        know.

        `policies`: what they did, by name. `waited_s`: of this life's training, with nothing to train on.
        """
        self._born = now if self._born is None else self._born
        edges = mailbox.edges()
        report = Report(
            component=self.process.name,
            kind=self.process.kind,
            incarnation=self.incarnation,
            pid=os.getpid(),
            device=self.process.device,
            state=state,
            reason=reason,
            elapsed_s=round(now - self._born, 3),
            step=self.steps,
            samples=self.samples,
            rate=self._new_rate(now, state),
            step_ms_p99=round(quantile(sorted(self._step_ms), 0.99), 3) if self._step_ms else None,
            loss=self._new_losses(),
            accuracy=accuracies(accuracy, self._made_up),
            child_steps=self.child_steps,
            child_share=self.child_steps / self.steps if self.steps else None,
            staleness=Staleness(
                target=self.target.spread(), gradient=self.gradient.spread(), policies=dict(policies or {})
            ),
            probes=self._probes | self._always(mailbox.counts, waited_s),
            probed=dict(self._probed),
            checkpoint=checkpoint or Checkpoint(),
            window=window(edges),
            messages=messages(mailbox.counts, dropped or {}),
            peers=peers(edges),
        )
        if self._wanted(report, now):
            self._write(report, first=self._since is None)
        self._since = now
        return report

    def close(self) -> None:
        """The end. Every report is on disk already: nothing is buffered, no thread is left."""
        self._events = None

    def _new_rate(self, now: float, state: State) -> float | None:
        """Steps per second since the last report, none before the first; at the end, over all steps of this life. One
        or two steps, or a wait, of a few milliseconds say nothing: they count into the next report.
        """
        first, newest = self._stepped
        if state in ("finished", "stopped") and newest > first:
            self._rate = round((self.steps - self._before - 1) / (newest - first), 2)
        elif self._measured is None or now - self._measured[0] >= self.every_s:
            if self._measured is not None and self.steps > self._before:
                self._rate = round((self.steps - self._measured[1]) / (now - self._measured[0]), 2)
            self._measured = (now, self.steps)
        return self._rate

    def _always(self, counts: Counts, waited_s: float) -> dict[str, float]:
        """Probes that cost no pass: bytes a sample to every peer, and the idle share up to the newest step."""
        found: dict[str, float] = {}
        if self.settings.bytes:
            rates = probes.bytes_per_sample(counts.bytes, self.samples - self._samples_before)
            found |= {f"bytes/{peer}": rate for peer, rate in rates.items()}
        if self.settings.idle and self._noted_at is not None and self._noted_at > self._began:
            found["idle"] = probes.idle_share(waited_s, self._noted_at - self._began)
        return found

    def _new_losses(self) -> Losses:
        """Means over the steps since the last report; those of the last steps, once there are no more."""
        means = {name: mean(values) for name, values in self._losses.items()}
        self._losses = {}
        if "target" in means:
            self._trend.append(means["target"])
            self._latest = Losses(
                target=means["target"],
                student=means.get("student"),
                distill=means.get("distill", self._latest.distill),
                trend=change(list(self._trend)),
            )
            told = msgspec.structs.asdict(self._latest)
            self._latest.not_finite = [
                name for name, value in told.items() if isinstance(value, float) and not math.isfinite(value)
            ]
        return self._latest

    def _wanted(self, report: Report, now: float) -> bool:
        """Whether to write it down: the older a life, the fewer are, but for the first of a state that is to last."""
        (at, before), doing = self._written, (report.state, report.reason)
        lasts = doing != before and report.state not in ("training", "waiting")
        wanted = lasts or now - at >= self.thin * report.elapsed_s
        self._written = (now, doing) if wanted else self._written
        return wanted

    def _write(self, report: Report, *, first: bool) -> None:
        self._attempt(
            "metrics", lambda: append(self.run.metrics(report.component), msgspec.json.encode(report) + b"\n")
        )
        if not first:  # TensorBoard's import waits until the first step is known
            self._attempt("TensorBoard events", lambda: self._draw(report))

    def _draw(self, report: Report) -> None:
        if self._events is None:
            self._events = Events(self.run.tensorboard(report.component), self.incarnation)
        values: dict[str, Collection[float]] = {}
        for kind, tally in (("target", self.target), ("gradient", self.gradient)):
            if tally.count:
                values[f"staleness/{kind}/versions"] = tally.versions
                values[f"staleness/{kind}/ms"] = tally.millis
        self._events.write(report.step, dict(scalars(msgspec.to_builtins(report))), values)

    def _attempt(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
            self._troubles.discard(what)
        except OSError as error:
            if what not in self._troubles:
                sentence = f"{what} cannot be written ({error}); training goes on without them\n"
                with suppress(OSError):  # the log may lie on the same full disk
                    os.write(STDERR, sentence.encode())  # no buffer, which would fail again at the exit
            self._troubles.add(what)


class Events:
    """TensorBoard's event file of one life of a component: one event a report, written at once.

    TensorBoard's own writer is not used: its thread takes one scalar at a time (6 ms a report) and ends in a
    traceback when the disk is full.
    """

    def __init__(self, folder: Path, incarnation: int) -> None:
        # lays the file out: tensorboard/summary/writer/event_file_writer.py
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{incarnation}"
        self.path = folder / name

    def write(self, step: int, scalars: Mapping[str, float], values: Mapping[str, Collection[float]]) -> None:
        """Scalars, and histograms of `values`, at `step`. Raises OSError if nothing could be written."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        bars = [Summary.Value(tag=tag, histo=histogram(some)) for tag, some in values.items()]
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        now = time.time()
        head, body = io.BytesIO(), io.BytesIO()
        RecordWriter(head).write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        event = Event(wall_time=now, step=step, summary=Summary(value=points + bars))
        RecordWriter(body).write(event.SerializeToString())
        self.path.parent.mkdir(exist_ok=True)
        append(self.path, body.getvalue(), head.getvalue())


def histogram(values: Collection[float]) -> Any:
    """TensorBoard's `HistogramProto` of some values, at least one."""
    import numpy as np
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    array = np.sort(np.fromiter(values, dtype=np.float64, count=len(values)))
    low, high = array[0], array[-1]
    limits = np.linspace(low, high if high > low else low + 1.0, BARS + 1)[1:]
    return HistogramProto(
        min=low,
        max=high,
        num=array.size,
        sum=array.sum(),
        sum_squares=array @ array,
        bucket_limit=limits.tolist(),
        bucket=np.diff(np.searchsorted(array, limits, side="right"), prepend=0).tolist(),
    )


def append(path: Path, content: bytes, head: bytes = b"") -> None:
    """Add to the end of a file, after `head` if it is empty; all of it or nothing. Raises OSError for nothing."""
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        content = content if end else head + content
        if file.write(content) < len(content):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def mean(values: Sequence["Tensor"]) -> float:
    """Mean of 0-d tensors, at least one; one synchronisation with their device."""
    import torch

    return torch.stack(list(values)).mean(dtype=torch.float64).item()


def change(values: Sequence[float]) -> float | None:
    """Relative change of the newer TREND values against the older TREND; None while there are fewer."""
    if len(values) < 2 * TREND:
        return None
    before, after = math.fsum(values[:TREND]), math.fsum(values[TREND:])
    return after / before - 1.0 if before else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of sorted values: the smallest with at least `share` of all at or below it."""
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


def scalars(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a report, named by its path: `loss/target`."""
    for name, value in tree.items():
        if not path and name in NO_SCALARS:
            continue
        if isinstance(value, dict):
            yield from scalars(value, f"{path}{name}/")
        elif isinstance(value, int | float):
            yield f"{path}{name}", float(value)


def accuracies(accuracy: Accuracy | None, made_up: Collection[str]) -> Accuracies:
    """The record of an examination, without what a stub has made up."""
    found = {} if accuracy is None else dataclasses.asdict(accuracy)
    return Accuracies(**{name: value for name, value in found.items() if name not in made_up})


def window(edges: Mapping[str, list[EdgeView]]) -> Window:
    """Places in the windows of all edges to children, together."""
    asks = [edge for ends in edges.values() for edge in ends if edge.role == "child"]
    return Window(size=sum(edge.window for edge in asks), in_use=sum(edge.in_flight for edge in asks))


def messages(counts: Counts, own: Mapping[str, int]) -> Messages:
    """A copy of the counts as they are now; `own` are drops that the mailbox does not know."""
    dropped = Counter(counts.dropped) + Counter(own)
    return Messages(
        sent=dict(counts.sent),
        received=dict(counts.received),
        dropped=dict(dropped),
        faults={kind: count for kind, count in counts.faults.items() if count},
    )


def peers(edges: Mapping[str, list[EdgeView]]) -> dict[str, list[Peer]]:
    """Every edge, by peer."""
    return {
        peer: [Peer(role=edge.role, state=edge.state, heard_s=edge.heard_s) for edge in ends]
        for peer, ends in edges.items()
    }
