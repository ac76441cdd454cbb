"""How good a component is: alone, and with its true children. Messages in, messages out, as in training.

An `Exam` computes the accuracy with the student at once. Where there are children it then asks them about the
test set, part by part through the ordinary windows, while training goes on; a part whose answer never came is
asked again. These questions owe no gradient, and their ids lie in a range of their own.

Shapes: N samples of the test set, B batch, K classes.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mach.component import Component
from mach.data.dataset import Dataset
from mach.messages import Activation, Target

EXAM_IDS = 1 << 48
"""Ids from here up are an examination's: a data source would need centuries to count this far."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of the test set answered rightly, 0 to 1."""

    student: float
    """With students standing in for all children."""
    child: float | None
    """With the children's true answers; None without children, or while they have not answered all parts."""
    step: int
    """The component's version when `student` was measured."""


class Exam:
    """Examinations of one component, one after the other."""

    def __init__(
        self, component: Component, dataset: Dataset, children: Sequence[str], batch_size: int, retry_s: float
    ) -> None:
        self.component = component
        self.children = tuple(children)
        self.retry_s = retry_s
        self.inputs = torch.split(dataset.test_inputs, batch_size)  # parts of [B, ...]
        self.labels = torch.split(dataset.test_labels, batch_size)  # parts of [B]
        self.samples = len(dataset.test_labels)
        first = len(dataset.train_labels)
        self.indices = torch.split(torch.arange(first, first + self.samples), batch_size)  # parts of [B]
        self.result: Accuracy | None = None
        """The newest; its `child` is that of the last complete examination."""
        self._ids = itertools.count(EXAM_IDS)
        self._asked: dict[int, tuple[str, int]] = {}
        """(child, part) of the questions of this examination, by id: a part asked again gets a new one."""
        self._asked_at: dict[tuple[str, int], float] = {}
        self._open: dict[str, list[int]] = {}
        self._answers: dict[int, dict[str, Tensor]] = {}
        self._right = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to be asked or answered."""
        return not any(self._open.values())

    def begin(self, version: int, *, ask: bool = True, pulse: Callable[[], None] = lambda: None) -> None:
        """Measure with the student now and, if `ask`, start over with the children; else go on with what runs.

        `pulse` is called after every part of the test set: progress, for whoever watches.
        """
        right = 0
        for x, y in zip(self.inputs, self.labels, strict=True):
            right += self._count(x, y, {})
            pulse()
        student = right / self.samples
        self.result = Accuracy(student, None if self.result is None else self.result.child, version)
        if not ask:
            return
        self._asked = {}
        self._right = 0
        self._answers = {part: {} for part in range(len(self.inputs))} if self.children else {}
        self._open = {child: list(self._answers) for child in self.children}
        self._asked_at = {}

    def has(self, child: str, now: float) -> bool:
        """Whether there is something to ask `child` now."""
        return self._next(child, now) is not None

    def ask(self, child: str, now: float) -> Activation | None:
        """The next part for `child`: never asked, or so long ago that no answer will come."""
        part = self._next(child, now)
        if part is None:
            return None
        self._asked_at[child, part] = now
        version = self.result.step if self.result is not None else 0
        id = next(self._ids)
        self._asked[id] = (child, part)
        return Activation(id, version, self.inputs[part], owes=False, indices=self.indices[part])

    def owns(self, target: Target) -> bool:
        """Whether a target answers an examination, this one or an earlier."""
        return target.id >= EXAM_IDS

    def keep(self, child: str, target: Target) -> None:
        """Take an answer; a part is judged when every child has answered it."""
        asked, part = self._asked.pop(target.id, ("", -1))
        if asked != child or part not in self._open[child]:
            return  # of an earlier examination, or answered twice
        if target.embedding.shape != self.component.target_shape(child, self.inputs[part]):
            return  # of another network than ours expects: as good as no answer
        self._open[child].remove(part)
        answers = self._answers[part]
        answers[child] = target.embedding.to(self.labels[part].device)
        if len(answers) == len(self.children):
            self._right += self._count(self.inputs[part], self.labels[part], answers)
            del self._answers[part]
        if self.done and self.result is not None:
            self.result = Accuracy(self.result.student, self._right / self.samples, self.result.step)

    def _next(self, child: str, now: float) -> int | None:
        for part in self._open.get(child, ()):
            asked_at = self._asked_at.get((child, part))
            if asked_at is None or now - asked_at > self.retry_s:
                return part
        return None

    def _count(self, x: Tensor, y: Tensor, targets: dict[str, Tensor]) -> int:
        """How many of a part are classified rightly; students stand in for children without a target."""
        with torch.no_grad():
            a = self.component.activation(x)
            e = self.component.embed(a, {**self.component.imitate(a), **targets})
            return int((self.component.classify(e).argmax(dim=1) == y).sum())
