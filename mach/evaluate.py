"""How good a component is: alone, and with its true children. Messages in, messages out, as in training.

An `Exam` computes the accuracy with the student at once. Where there are children it then asks them about the
test set, part by part through the ordinary windows, while training goes on; a part whose answer never came is
asked again. These questions owe no gradient, and their ids lie in a range of their own. All of it is in evaluation
mode, as the network that ships, and changes nothing of the component.

Shapes: N samples of the test set, B batch, K classes. Of a sequence every place counts: labels [B, T].
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mach.component import Component
from mach.data.dataset import Dataset
from mach.losses import cross_entropy
from mach.messages import Activation, Target
from mach.onto import onto
from mach.sound import fits

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
    """The component's version when `student` was measured; in stream wiring component 0's, of every component."""
    student_bits: float | None = None
    """Cross-entropy in bits a label, which for bytes is bits a byte; as `student`."""
    child_bits: float | None = None
    """As `child`."""
    full: float | None = None
    """In stream wiring, of the deepest component's answer to the whole chain of activations: the deep network's own.
    Where no component but the last has a loss, `student` is the same."""
    full_bits: float | None = None
    """As `full`."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a part of the test set came to."""

    right: int = 0
    bits: float = 0.0
    """Sum over its labels."""

    def __add__(self, other: "Score") -> "Score":
        return Score(self.right + other.right, self.bits + other.bits)


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
        self.count = dataset.test_labels.numel()
        first = len(dataset.train_labels)
        indices = torch.arange(first, first + len(dataset.test_labels))
        self.indices = torch.split(indices, batch_size)  # parts of [B]
        self.result: Accuracy | None = None
        """The newest; its `child` is that of the last complete examination."""
        self._ids = itertools.count(EXAM_IDS)
        self._asked: dict[int, tuple[str, int]] = {}
        """(child, part) of the questions of this examination, by id: a part asked again gets a new one."""
        self._asked_at: dict[tuple[str, int], float] = {}
        self._open: dict[str, list[int]] = {}
        self._answers: dict[int, dict[str, Tensor]] = {}
        self._score = Score()

    @property
    def done(self) -> bool:
        """Whether nothing is left to be asked or answered."""
        return not any(self._open.values())

    def begin(self, version: int, *, ask: bool = True, pulse: Callable[[], None] = lambda: None) -> None:
        """Measure with the student now and, if `ask`, start over with the children; else go on with what runs.

        `pulse` is called after every part of the test set: progress, for whoever watches.
        """
        alone = Score()
        for x, y in zip(self.inputs, self.labels, strict=True):
            alone += self._judge(x, y, {})
            pulse()
        before = self.result
        self.result = Accuracy(
            alone.right / self.count,
            None if before is None else before.child,
            version,
            alone.bits / self.count,
            None if before is None else before.child_bits,
        )
        if not ask:
            return
        self._asked = {}
        self._score = Score()
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

    def keep(self, child: str, target: Target) -> list[tuple[str, Target]]:
        """Take an answer; a part is judged when every child has answered it. Nothing is owed to anybody for it."""
        asked, part = self._asked.pop(target.id, ("", -1))
        if asked != child or part not in self._open[child]:
            return []  # of an earlier examination, or answered twice
        if not fits(target.embedding, self.component.target_shape(child, self.inputs[part])):
            return []  # of another network than ours expects, or one that diverged: as good as no answer
        self._open[child].remove(part)
        answers = self._answers[part]
        answers[child] = onto(self.labels[part].device, target.embedding, next(self.component.parameters()).dtype)
        if len(answers) == len(self.children):
            self._score += self._judge(self.inputs[part], self.labels[part], answers)
            del self._answers[part]
        if self.done and self.result is not None:
            self.result = replace(
                self.result, child=self._score.right / self.count, child_bits=self._score.bits / self.count
            )
        return []

    def _next(self, child: str, now: float) -> int | None:
        for part in self._open.get(child, ()):
            asked_at = self._asked_at.get((child, part))
            if asked_at is None or now - asked_at > self.retry_s:
                return part
        return None

    def _judge(self, x: Tensor, y: Tensor, targets: dict[str, Tensor]) -> Score:
        """Of a part; students stand in for children without a target."""
        with torch.no_grad(), self.component.evaluating():
            a = self.component.activation(x)
            e = self.component.embed(a, {**self.component.imitate(a), **targets})
            return score(self.component.classify(e), y)


def score(z: Tensor, y: Tensor) -> Score:
    """Of logits z [B, K] for labels y [B]; read off their device at once."""
    nats, right = torch.stack([cross_entropy(z, y).double(), (z.argmax(dim=-1) == y).sum().double()]).tolist()
    return Score(int(right), nats * y.numel() / math.log(2))
