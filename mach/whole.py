"""The whole network that a run trains, in one piece: every component, true children in place of students.

    skip     e_k = joiner(x, e of k's children), as deep as there are components below; read at component 0
    stream   a_k = encoder(a of k's parent), from x down to the last; read there

What it is for: the readings of a finished run (`Reading`), and the plain control that trains it by backpropagation.
Knows no learner, no message and no time.

Shapes: B batch, D numbers of an activation, E embedding, K classes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mach.component import Component
from mach.data.dataset import Dataset
from mach.graph import Adjacency, name_of
from mach.losses import cross_entropy
from mach.modes import evaluating

Wiring = Literal["skip", "stream"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How good logits are on the test set."""

    accuracy: float
    """Share of the labels, 0 to 1."""
    bits: float
    """Cross-entropy in bits a label; of bytes, bits a byte."""


class Whole(nn.Module):
    """All components of a run.

    Args:
        components: by number.
        children: who is whose child.
        context: in `stream` wiring, whether x comes along with an activation.
    """

    def __init__(
        self, components: Sequence[Component], children: Adjacency, *, wiring: Wiring, context: bool = False
    ) -> None:
        super().__init__()
        self.components = nn.ModuleList(components)
        self.children_of = children
        self.wiring = wiring
        self.context = context
        self.path = first_children(children)
        """From component 0 down along first children: the way of an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] → logits [B, K] of the whole depth."""
        if self.wiring == "skip":
            return self.read(0, (x,), depth=len(self.components) - 1)
        come = through([self.part(index).encoder for index in self.path[:-1]], x, context=self.context)
        return self.read(self.path[-1], come, depth=0)

    def read(self, index: int, come: tuple[Tensor, ...], depth: int) -> Tensor:
        """Logits [B, K] of one component, its children's true answers down to `depth`, students below."""
        return self.part(index).classify(self.answer(index, come, come[-1], depth, {}))

    def every(self, x: Tensor) -> list[Tensor]:
        """X [B, ...] → logits [B, K] of every component's own head over what the whole makes on its way, the last those
        of the whole depth.
        """
        if self.wiring == "skip":
            known: dict[tuple[int, int], Tensor] = {}
            self.answer(0, (x,), x, len(self.components) - 1, known)
            return [self.part(index).classify(e) for (index, _), e in known.items()]
        come: tuple[Tensor, ...] = (x,)
        logits = []
        for index in self.path:
            part = self.part(index)
            a = part.activation(*come)
            logits.append(part.alone(a))
            come = self.sent(a, come, x)
        return logits

    def part(self, index: int) -> Component:
        """Component `index`."""
        part = self.components[index]
        assert isinstance(part, Component)
        return part

    def answer(
        self,
        index: int,
        come: tuple[Tensor, ...],
        x: Tensor,
        depth: int,
        known: dict[tuple[int, int], Tensor],
    ) -> Tensor:
        """Embedding [B, E] of what comes to a component; `known` are those of this x by (component, depth)."""
        if (index, depth) in known:
            return known[index, depth]
        part = self.part(index)
        a = part.activation(*come)
        if depth == 0 or not part.children_names:
            targets = part.imitate(a)
        else:
            sent = self.sent(a, come, x)
            targets = {
                name_of(child): self.told(child, sent, x, depth - 1, known if self.wiring == "skip" else {})
                for child in self.children_of[index]
            }
        e = part.embed(a, targets)
        known[index, depth] = e
        return e

    def told(
        self, index: int, come: tuple[Tensor, ...], x: Tensor, depth: int, known: dict[tuple[int, int], Tensor]
    ) -> Tensor:
        """What a parent gets of a component [B, E]: its embedding, or the one at the end of its copies."""
        part = self.part(index)
        if part.below is None:
            return self.answer(index, come, x, depth, known)
        e: Tensor = part.below(part.activation(*come), come[-1])[0]
        return e

    def sent(self, a: Tensor, come: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """What goes to a child: what came in `skip` wiring, the activation in `stream`, with x if it comes along."""
        if self.wiring == "skip":
            return come
        return onward(a, x, context=self.context)


def onward(a: Tensor, x: Tensor, *, context: bool) -> tuple[Tensor, ...]:
    """What a child's encoder gets in `stream` wiring: an activation, with x if it comes along."""
    return (a, x) if context else (a,)


def through(encoders: Iterable[nn.Module], x: Tensor, *, context: bool) -> tuple[Tensor, ...]:
    """What comes to the component below these, one under the other; x [B, ...] itself if there are none."""
    come: tuple[Tensor, ...] = (x,)
    for encoder in encoders:
        come = onward(encoder(*come), x, context=context)
    return come


def first_children(children: Adjacency) -> list[int]:
    """From component 0 down, until there is no child or it was there before."""
    path = [0]
    while children[path[-1]] and children[path[-1]][0] not in path:
        path.append(children[path[-1]][0])
    return path


def readings(whole: Whole, dataset: Dataset, batch_size: int, *, heads: bool = True) -> dict[str, Reading]:
    """`student`, `child` and `full` on the test set; without heads of its own, component 0 has only `full`.

    As in examinations, children answer with their students in `skip` wiring (law 2), and with their own true children
    in `stream` (`mach/relay.py`).
    """
    zero, depth = whole.part(0), 1 if whole.wiring == "skip" else len(whole.components)
    kinds: dict[str, Callable[[Tensor], Tensor]] = {"full": whole}
    if heads or len(whole.components) == 1:
        kinds["student"] = lambda x: whole.read(0, (x,), depth=0)
        if zero.children_names:
            kinds["child"] = lambda x: whole.read(0, (x,), depth=depth)
    with evaluating(whole.modules()):
        return {kind: reading(logits, dataset, batch_size) for kind, logits in kinds.items()}


def reading(logits: Callable[[Tensor], Tensor], dataset: Dataset, batch_size: int) -> Reading:
    """How good `logits`, of inputs [B, ...], are on the test set."""
    right, bits = 0, 0.0
    parts = zip(*(torch.split(each, batch_size) for each in (dataset.test_inputs, dataset.test_labels)), strict=True)
    with torch.no_grad():
        for x, y in parts:
            z = logits(x)
            right += int((z.argmax(dim=-1) == y).sum())
            bits += float(cross_entropy(z, y)) * y.numel() / math.log(2)
    count = dataset.test_labels.numel()
    return Reading(right / count, bits / count)


def averaged(networks: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Logarithm of the mean of the probabilities that several networks give."""

    def logits(x: Tensor) -> Tensor:
        return torch.stack([network(x).log_softmax(dim=-1) for network in networks]).logsumexp(dim=0)

    return logits
