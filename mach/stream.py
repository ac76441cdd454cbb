"""Batches that a parent sends: checked, in order, each trained on once. The receiving half of `stream` wiring.

Nothing that comes in can harm: a batch whose tensors are not what this place must get is refused, and counted by the
learner. Bounded: when a component falls behind, the newest batches are kept. What fits can also be made, of noise, for
who asks without having a model. Knows no network.

Shapes: B batch; the rest as `Incoming` says.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from mach.messages import Activation, Batch
from mach.sound import finite, fits, whole


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a batch for this component looks like, without the batch's dimension."""

    activation: tuple[int, ...]
    labels: tuple[int, ...]
    """() for one label a sample, (T,) for one at every place of a sequence."""
    classes: int
    """Labels are 0 … classes − 1."""
    context: tuple[int, ...] | None = None
    """Of x, where it must come along."""
    symbols: int = 0
    """X are symbols 0 … symbols − 1; 0: quantities."""

    def fits(self, asked: Activation) -> bool:
        """Whether every tensor is there, of its shape and kind, and may be used."""
        a, y, x = asked.inputs, asked.labels, asked.context
        return (
            _shaped(a, len(a) if a.dim() else 0, self.activation)
            and fits(a, a.shape)
            and y is not None
            and _shaped(y, len(a), self.labels)
            and whole(y, self.classes)
            and self._fits_context(x, len(a), ours=asked.indices is not None)
        )

    def noise(self, rows: int, generator: torch.Generator) -> Activation:
        """One that fits, of noise, with the id and the version 0."""
        a = torch.randn(rows, *self.activation, generator=generator)
        y = torch.randint(self.classes, (rows, *self.labels), generator=generator)
        x = None if self.context is None else samples((rows, *self.context), self.symbols, generator)
        return Activation(0, 0, a, y, context=x)

    def _fits_context(self, x: Tensor | None, rows: int, *, ours: bool) -> bool:
        """`ours`: it is of our own data, which were judged when they were loaded."""
        if self.context is None:
            return True
        if x is None or not _shaped(x, rows, self.context):
            return False
        if ours:
            return True
        if self.symbols:
            return whole(x, self.symbols)
        return x.is_floating_point() and finite(x.float())  # what networks get is float32


class Stream:
    """Batches of one parent, waiting to be trained on."""

    def __init__(self, incoming: Incoming | None, capacity: int) -> None:
        """`incoming`: None for the component that draws the data itself. `capacity`: most batches that wait."""
        self.incoming = incoming
        self.capacity = capacity
        self.came = 0
        """Batches that were admitted so far."""
        self._waiting: deque[Batch] = deque()

    @property
    def draws(self) -> bool:
        """Whether this component draws its batches itself."""
        return self.incoming is None

    @property
    def waiting(self) -> int:
        """How many batches wait."""
        return len(self._waiting)

    def admit(self, parent: str, asked: Activation) -> str | None:
        """Put a batch in the line. Why something was given up: `unfit` (this one), `forgotten` (the oldest)."""
        if self.incoming is None or not self.incoming.fits(asked) or asked.labels is None:
            return "unfit"
        context = asked.context if self.incoming.context is not None else None
        self.came += 1
        self._waiting.append(Batch(asked.id, asked.inputs, asked.labels.long(), asked.indices, context, parent))
        if len(self._waiting) > self.capacity:
            self._waiting.popleft()
            return "forgotten"
        return None

    def next(self) -> Batch | None:
        """The oldest that waits; None: nothing to train on."""
        return self._waiting.popleft() if self._waiting else None


def samples(shape: tuple[int, ...], symbols: int, generator: torch.Generator) -> Tensor:
    """X of noise: of symbols 0 … symbols − 1, or with none of quantities."""
    if symbols:
        return torch.randint(symbols, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _shaped(tensor: Tensor, rows: int, shape: tuple[int, ...]) -> bool:
    return rows > 0 and tensor.shape == torch.Size((rows, *shape))
