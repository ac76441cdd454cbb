"""A component: one network with a loss of its own (method.md, "One component"). Knows no neighbour but by name.

    a = encoder(x)           activation; identity in skip wiring
    s = student(a)           stands in for a child
    e = joiner(a, d or s)    embedding, what a parent gets
    z = head(e)              logits

Shapes: B batch, T time, D features of an activation, E embedding, K classes. Written for samples with one label,
[B, D] → [B, E] → [B, K]; where every place of a sequence has one, [B, T, D] → [B, T, E] → [B, T, K].
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Component(nn.Module):
    """Encoder, joiner, head, and one student per child.

    Args:
        encoder: x → a, [B, ...] → [B, D].
        joiner: [B, D + E·children] → [B, E]: activation and targets, concatenated in the order of `students`.
        head: [B, E] → [B, K].
        students: by child, a → an imitation of that child's embedding, [B, E].
        tokens: whether x are whole numbers that stand for symbols, and no quantities.
        residual: whether the mean of the targets is added to what the joiner gives: f([a, d]) + d.
        guess: where a recipe wants one, a model of the gradient of the activation (`mach/networks/guess.py`).
    """

    def __init__(
        self,
        encoder: nn.Module,
        joiner: nn.Module,
        head: nn.Module,
        students: Mapping[str, nn.Module],
        *,
        tokens: bool = False,
        residual: bool = False,
        guess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.joiner = joiner
        self.head = head
        self.students = nn.ModuleDict(dict(students))
        self.tokens = tokens
        self.residual = residual
        self.guess = guess

    @property
    def children_names(self) -> tuple[str, ...]:
        """The children, in the order in which the joiner takes their targets."""
        return tuple(self.students)

    def takes(self, x: Tensor) -> bool:
        """Whether x are numbers of the encoder's kind."""
        return x.is_floating_point() != self.tokens

    def activation(self, *come: Tensor) -> Tensor:
        """X [B, ...], or a parent's activation and x where that comes along → a [B, D]."""
        a: Tensor = self.encoder(*come)
        return a

    def imitate(self, a: Tensor) -> dict[str, Tensor]:
        """A [B, D] → s [B, E] of every student, by child."""
        return {child: student(a) for child, student in self.students.items()}

    def target_shape(self, child: str, *come: Tensor) -> torch.Size:
        """What a target of `child` for such an input must look like: our student's imitation of it, [B, E]."""
        with torch.no_grad():
            imitation: Tensor = self.students[child](self.activation(*(each[:1] for each in come)))
        return torch.Size((len(come[0]), *imitation.shape[1:]))

    def embed(self, a: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """A [B, D] and a target or imitation [B, E] of every child → e [B, E]."""
        d = [targets[child] for child in self.students]
        e: Tensor = self.joiner(torch.cat([a, *d], dim=-1))
        return e + torch.stack(d).mean(dim=0) if self.residual and d else e

    def classify(self, e: Tensor) -> Tensor:
        """E [B, E] → z [B, K]."""
        z: Tensor = self.head(e)
        return z
