"""A component: one network with a loss of its own (method.md, "One component"). Knows no neighbour but by name.

    a = encoder(x)           activation; identity in skip wiring
    s = student(a)           stands in for a child
    e = joiner(a, d or s)    embedding, what a parent gets
    z = head(e)              logits

Shapes: B batch, T time, D features of an activation, E embedding, K classes. Written for samples with one label,
[B, D] → [B, E] → [B, K]; where every place of a sequence has one, [B, T, D] → [B, T, E] → [B, T, K].

Where logits run up the chain (`Tally`) an embedding ends in them, [B, E + K]: what a parent gets, imitates and owes a
gradient for is then [e, z] as a whole, and its head adds to z.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property

import torch
from torch import Tensor, nn

from mach.below import Below
from mach.modes import evaluating, minding
from mach.momentum import Momentum


class Tally(nn.Module):
    """Logits up the chain: z = w·head(e) + Σ_c w_c·z_c over the children c; a sum with weights 1, else a mean.

    As deeply supervised stages add to what others said (arXiv 1706.04964 trains them one by one). What a student
    imitates of a child's logits it reads off its imitation of the embedding: on logits, `mse` is the distillation of
    arXiv 1312.6184.

    Args:
        classes: K.
        own: w.
        weights: w_c, by child.
        width: E, of a student's imitation.
    """

    def __init__(self, classes: int, own: float, weights: Mapping[str, float], width: int) -> None:
        super().__init__()
        self.classes = classes
        self.own = own
        self.weights = dict(weights)
        self.readouts = nn.ModuleDict({child: nn.Linear(width, classes) for child in weights})

    def imitate(self, child: str, s: Tensor) -> Tensor:
        """S [B, E] → [s, z_s] [B, E + K]."""
        return torch.cat([s, self.readouts[child](s)], dim=-1)

    def add(self, e: Tensor, z: Tensor, heard: Mapping[str, Tensor]) -> Tensor:
        """E [B, E], our own logits z [B, K] and of every child its [B, K] → [e, z] [B, E + K]."""
        terms = [self.own * z, *(weight * heard[child] for child, weight in self.weights.items())]
        return torch.cat([e, torch.stack(terms).sum(dim=0)], dim=-1)


class Component(nn.Module):
    """Encoder, joiner, head, and one student per child.

    Args:
        encoder: x → a, [B, ...] → [B, D].
        joiner: [B, D + E·children] → [B, E]: activation and targets, concatenated in the order of `students`.
        head: [B, E] → [B, K].
        students: by child, a → an imitation of that child's embedding, [B, E].
        tokens: whether x are whole numbers that stand for symbols, and no quantities.
        residual: whether the mean of the targets is added to what the joiner gives: f([a, d]) + d.
        tally: where logits run up the chain; then read E + K for E below.
        guess: where a recipe wants one, a model of the gradient of the activation (`mach/networks/guess.py`).
        momentum: where the method wants one, what stands in front of the joiner in place of a (`mach/momentum.py`).
        below: where the method wants them, copies of all that follows (`mach/below.py`): what a parent gets is then the
            embedding at their end.
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
        tally: Tally | None = None,
        guess: nn.Module | None = None,
        momentum: Momentum | None = None,
        below: Below | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.joiner = joiner
        self.head = head
        self.students = nn.ModuleDict(dict(students))
        self.tokens = tokens
        self.residual = residual
        self.tally = tally
        self.guess = guess
        self.momentum = momentum
        self.below = below

    @property
    def children_names(self) -> tuple[str, ...]:
        """The children, in the order in which the joiner takes their targets."""
        return tuple(self.students)

    @cached_property
    def minding(self) -> tuple[nn.Module, ...]:
        """Of our modules those that may look at their mode; looked up once, when all are there. A copy has its own."""
        return minding(self)

    def evaluating(self) -> AbstractContextManager[None]:
        """In evaluation mode meanwhile (`mach/modes.py`)."""
        return evaluating(self.minding)

    def takes(self, x: Tensor) -> bool:
        """Whether x are numbers of the encoder's kind."""
        return x.is_floating_point() != self.tokens

    def activation(self, *come: Tensor) -> Tensor:
        """X [B, ...], or a parent's activation and x where that comes along → a [B, D]."""
        a: Tensor = self.encoder(*come)
        return a

    def imitate(self, a: Tensor) -> dict[str, Tensor]:
        """A [B, D] → s [B, E] of every student, by child."""
        return {child: self.imitation(child, a) for child in self.students}

    def imitation(self, child: str, a: Tensor) -> Tensor:
        """A [B, D] → s [B, E] of one student."""
        s: Tensor = self.students[child](a)
        return s if self.tally is None else self.tally.imitate(child, s)

    def target_shape(self, child: str, *come: Tensor) -> torch.Size:
        """What a target of `child` for such an input must look like: our student's imitation of it, [B, E]."""
        with torch.no_grad(), self.evaluating():
            imitation = self.imitation(child, self.activation(*(each[:1] for each in come)))
        return torch.Size((len(come[0]), *imitation.shape[1:]))

    def embed(self, a: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """A [B, D] and a target or imitation [B, E] of every child → e [B, E]."""
        d = [targets[child] for child in self.students]
        logits: list[Tensor] = []
        if self.tally is not None:
            logits = [each[..., -self.tally.classes :] for each in d]
            d = [each[..., : -self.tally.classes] for each in d]
        own = a if self.momentum is None else self.momentum(a)
        e: Tensor = self.joiner(torch.cat([own, *d], dim=-1))
        if self.tally is not None:
            return self.tally.add(e, self.head(e), dict(zip(self.students, logits, strict=True)))
        return e + torch.stack(d).mean(dim=0) if self.residual and d else e

    def alone(self, a: Tensor) -> Tensor:
        """A [B, D] → z [B, K], with students standing in for all children."""
        return self.classify(self.embed(a, self.imitate(a)))

    @property
    def copies(self) -> Momentum | Below | None:
        """Where the weights go that children show."""
        return self.momentum if self.below is None else self.below

    def classify(self, e: Tensor) -> Tensor:
        """E [B, E] → z [B, K]."""
        z: Tensor = self.head(e) if self.tally is None else e[..., -self.tally.classes :]
        return z
