"""The part that a stub plays: what a component at its place would say, with noise for numbers.

    asks      as the wiring wants it: x, or an activation that the child takes in, with labels and context
    answers   what the method wants of a target: an embedding or a receipt, with logits where those are targets; in
              stream wiring the gradient of the activation, too, unless the question is an examination's, whose answer
              always holds logits
    pays      a gradient for every target that is no receipt, unless the method has none of those

Everything is drawn from one seeded generator, in the order of the calls. Knows no script, no time and no mailbox. What
a stub cannot play is weights: it never shows any (`method.momentum_head`), and copies of its own stay as they were.

Shapes: B batch, E embedding, K classes; of sequences [B, T, E], an embedding for every place.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.tree import Config, Method
from mach.assemble import questions_of, target_width
from mach.data import Dataset
from mach.messages import Activation, Gradient, Target

POOL = 16
"""Different answers that a stub gives in turn."""
GRADIENT = 1e-3
"""Size of a gradient entry, times the batch: about that of a mean loss."""


@dataclass(slots=True, eq=False)
class Part:
    """Of one stub."""

    questions: Mapping[str, Activation]
    """By child; ids and versions are the stub's to fill in."""
    method: Method
    width: int
    """E: numbers of a target."""
    classes: int
    """K."""
    labels: tuple[int, ...] | None
    """In stream wiring their shape, without the batch: there is an embedding for each. None in skip wiring."""
    generator: torch.Generator
    pools: dict[tuple[torch.Size, float], deque[Tensor]] = field(default_factory=dict)

    def answer(self, asked: Activation, version: int) -> Target:
        """To a parent's activation."""
        exam, method = not asked.owes, self.method
        rows = self._rows(asked.inputs)
        wanted = method.targets != "none" and (exam or method.targeted(asked.id))
        stream = self.labels is not None
        e = self.noise(torch.Size((*rows, self.width) if wanted else (0,)))
        g = z = None
        if stream and not exam and method.gradient_reach != "none" and asked.inputs.is_floating_point():
            g = self._gradient(asked.inputs.shape).to(asked.inputs.dtype)
        if (stream and exam) or (wanted and method.targets == "logits"):
            z = self.noise(torch.Size((*rows, self.classes)))
        return Target(asked.id, version, e, g, z)

    def gradient(self, target: Target) -> Gradient | None:
        """Of a child's target; None where a parent owes none (law 3): of a receipt, and where heads look down the chain
        (`mach/below.py`).
        """
        if not target.embedding.numel() or self.method.momentum_head == "chain":
            return None
        return Gradient(target.id, target.version, self._gradient(target.embedding.shape))

    def noise(self, shape: torch.Size, scale: float = 1.0) -> Tensor:
        """Of a small pool, made once: a stub's own work should not slow its neighbours down."""
        pool = self.pools.setdefault((shape, scale), deque())
        if len(pool) < POOL:
            pool.append(scale * torch.randn(shape, generator=self.generator))
        pool.rotate()
        return pool[0]

    def _gradient(self, shape: torch.Size) -> Tensor:
        return self.noise(shape, GRADIENT / max(1, shape[:-1].numel()))

    def _rows(self, inputs: Tensor) -> torch.Size:
        """What there is an embedding for."""
        if self.labels is not None:
            return torch.Size((*inputs.shape[:1], *self.labels))
        return inputs.shape[:1] if inputs.is_floating_point() else inputs.shape


def part_of(config: Config, index: int, dataset: Dataset, seed: int) -> Part:
    """That of component `index` of a run.

    Raises:
        ConfigError: as `learner_of`, of a component that stands between it and the data.
    """
    generator = torch.Generator().manual_seed(seed)
    return Part(
        questions_of(config, index, dataset, generator),
        config.method,
        target_width(config, dataset),
        dataset.classes,
        tuple(dataset.train_labels.shape[1:]) if config.wiring == "stream" else None,
        generator,
    )
