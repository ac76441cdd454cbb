"""What a component's process writes down: steps in, a `Report` out, to `metrics/<component>.jsonl` and TensorBoard.

Knows no model: losses are numbers here, ages are ages. A disk that is full or gone costs the record, never the
training: the trouble is printed once, and the next report tries again.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bus.mailbox import EdgeView, Mailbox
from mach.evaluate import Accuracy
from mach.learner import Step
from mach.messages import Age
from workers.plan import Plan
from workers.report import Accuracies, Losses, Messages, Peer, Report, Spread, Staleness, State, Window
from workers.rundir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

    from workers.board import Board

RECENT = 1024
"""Values that quantiles are taken over."""
TREND = 10
"""Reports on either side of the comparison that makes the trend."""


class Tally:
    """A distribution of ages: quantiles over the last RECENT, the maximum over all."""

    def __init__(self) -> None:
        self.count = 0
        self.recent: deque[Age] = deque(maxlen=RECENT)
        self.most = Age(0, 0.0)

    def add(self, ages: list[Age]) -> None:
        """Take note of some more."""
        self.count += len(ages)
        self.recent.extend(ages)
        for age in ages:
            self.most = Age(max(self.most.versions, age.versions), max(self.most.seconds, age.seconds))

    def spread(self) -> Spread:
        """The record of it; without values, of None."""
        if not self.count:
            return Spread()
        versions = sorted(age.versions for age in self.recent)
        millis = sorted(1000.0 * age.seconds for age in self.recent)
        return Spread(
            count=self.count,
            p50=quantile(versions, 0.50),
            p99=quantile(versions, 0.99),
            max=self.most.versions,
            p50_ms=round(quantile(millis, 0.50), 3),
            p99_ms=round(quantile(millis, 0.99), 3),
            max_ms=round(1000.0 * self.most.seconds, 3),
        )


def quantile(ordered: list[float] | list[int], share: float) -> float:
    """The nearest-rank quantile of sorted values: the smallest with at least `share` of all at or below it."""
    rank = max(0, -int(-share * len(ordered) // 1) - 1)
    return ordered[rank]


class Journal:
    """One component's record of itself. Times are seconds of the mailbox's clock."""

    def __init__(self, plan: Plan, name: str, *, incarnation: int) -> None:
        self.process = plan.process(name)
        self.incarnation = incarnation
        self.run = RunDir(Path(plan.directory))
        self.every_s = plan.config.report.every_ms / 1000
        self.steps = self.samples = self.child_steps = 0
        self.target, self.gradient = Tally(), Tally()
        self._losses: dict[str, list[Tensor]] = {}
        self._trend: deque[float] = deque(maxlen=2 * TREND)
        self._since: tuple[float, int] | None = None
        self._rate: float | None = None
        self._latest = Losses()
        self._born: float | None = None
        self._board: Board | None = None
        self._reports = 0
        self._troubles: set[str] = set()

    def note(self, step: Step, now: float) -> None:
        """Take note of one step; losses stay on their device until the next report."""
        self.steps += 1
        self.samples += step.samples
        self.child_steps += step.on_child
        self.target.add(step.target_ages)
        self.gradient.add(step.gradient_ages)
        for name, value in step.losses.items():
            self._losses.setdefault(name, []).append(value)

    def due(self, now: float) -> bool:
        """Whether it is time for a report."""
        return self._since is None or now - self._since[0] >= self.every_s

    def report(self, now: float, mailbox: Mailbox, accuracy: Accuracy | None, state: State, reason: str = "") -> Report:
        """Make the report and write it down."""
        self._born = now if self._born is None else self._born
        edges = [edge for edges in mailbox.edges().values() for edge in edges]
        counts = mailbox.counts
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
            rate=self._new_rate(now),
            loss=self._new_losses(),
            accuracy=accuracies(accuracy),
            child_steps=self.child_steps,
            child_share=self.child_steps / self.steps if self.steps else None,
            staleness=Staleness(target=self.target.spread(), gradient=self.gradient.spread()),
            window=window(edges),
            messages=Messages(
                sent=dict(counts.sent),
                received=dict(counts.received),
                dropped={reason: count for reason, count in counts.dropped.items() if count},
                faults=dict(counts.faults),
            ),
            peers=peers(mailbox.edges()),
        )
        self._since = (now, self.steps)
        self._reports += 1
        self._write(report)
        return report

    def close(self) -> None:
        """Flush what TensorBoard still holds."""
        if self._board is not None:
            self._attempt("TensorBoard events", self._board.close)

    def _new_rate(self, now: float) -> float | None:
        """Steps per second since the last report; that of the last steps, once there are no more."""
        if self._since is not None and now > self._since[0] and self.steps > self._since[1]:
            self._rate = round((self.steps - self._since[1]) / (now - self._since[0]), 2)
        return self._rate

    def _new_losses(self) -> Losses:
        """Means over the steps since the last report; those of the last steps, once there are no more."""
        means = {name: float(sum(values)) / len(values) for name, values in self._losses.items()}
        self._losses = {}
        if "target" in means:
            self._trend.append(means["target"])
            self._latest = Losses(
                target=means["target"],
                student=means.get("student"),
                distill=means.get("distill", self._latest.distill),
                trend=self._change(),
            )
        return self._latest

    def _change(self) -> float | None:
        """Relative change of the newer half of the remembered target losses against the older half."""
        if len(self._trend) < 2 * TREND:
            return None
        values = list(self._trend)
        before, after = sum(values[:TREND]), sum(values[TREND:])
        return after / before - 1.0 if before else None

    def _write(self, report: Report) -> None:
        self._attempt("metrics", lambda: self._append(report))
        if self._reports > 1:  # not before the first step is out of the door
            self._attempt("TensorBoard events", lambda: self._draw(report))

    def _append(self, report: Report) -> None:
        with self.run.metrics(self.process.name).open("ab") as lines:
            lines.write(msgspec.json.encode(report) + b"\n")

    def _draw(self, report: Report) -> None:
        if self._board is None:
            from workers.board import Board

            self._board = Board(self.run.tensorboard(self.process.name))
        self._board.write(report, self.target.recent, self.gradient.recent)

    def _attempt(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
            self._troubles.discard(what)
        except OSError as error:
            if what not in self._troubles:
                print(f"{what} cannot be written ({error}); training goes on without", file=sys.stderr)
            self._troubles.add(what)


def accuracies(accuracy: Accuracy | None) -> Accuracies:
    """The record of an examination."""
    if accuracy is None:
        return Accuracies()
    return Accuracies(student=accuracy.student, child=accuracy.child, step=accuracy.step)


def window(edges: list[EdgeView]) -> Window:
    """Places in the windows of all edges to children, together."""
    asks = [edge for edge in edges if edge.role == "child"]
    return Window(size=sum(edge.window for edge in asks), in_use=sum(edge.in_flight for edge in asks))


def peers(edges: Mapping[str, list[EdgeView]]) -> dict[str, list[Peer]]:
    """Every edge, by peer."""
    return {
        peer: [Peer(role=edge.role, state=edge.state, heard_s=edge.heard_s) for edge in ends]
        for peer, ends in edges.items()
    }
