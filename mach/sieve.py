"""What neighbours send, judged before anything is made of it: a parent's inputs, a child's answer.

Law: what does not fit is never trained on, whoever sent it. Knows shapes and kinds, and what the method wants of an
answer; nothing of what is learnt from it, nor who counts what was refused.

Shapes: B batch, E embedding, K classes.
"""

import torch
from torch import Tensor

from configs.tree import Method
from mach.component import Component
from mach.draws import aside
from mach.late import Held
from mach.messages import Target
from mach.onto import onto
from mach.sound import finite, fits, whole


class Sieve:
    """Of one component."""

    def __init__(
        self, component: Component, method: Method, device: torch.device, sample_shape: tuple[int, ...], symbols: int
    ) -> None:
        """`sample_shape` is that of one input; `symbols`: of how many it is made, 0 for quantities."""
        self.component = component
        self.method = method
        self.device = device
        self.dtype = next(component.parameters()).dtype
        self.sample_shape = torch.Size(sample_shape)
        self.symbols = symbols
        self.sent: torch.Size | None = None
        """Of one activation that we send on, as its gradient must be; None before the first, and in skip wiring."""
        self._shapes: dict[str, torch.Size] = {}

    def inputs(self, x: Tensor, *, ours: bool = False) -> Tensor | None:
        """A parent's inputs as our networks take them; None if they do not: of another shape or kind, not finite, no
        symbols that there are. Networks that are bounded would make something finite of infinities. `ours`: they are
        of our own data, which were judged when they were loaded.
        """
        if x.shape[1:] != self.sample_shape or not self.component.takes(x):
            return None
        if self.component.tokens:
            return onto(self.device, x) if ours or whole(x, self.symbols) else None
        x = x.to(self.dtype)  # judged where it came: to read a number off a device is to wait for all before it
        return onto(self.device, x) if ours or finite(x) else None

    def answer(self, child: str, held: Held, target: Target) -> bool:
        """Whether an answer has what the method wants of it, and nothing else."""
        wanted = self.method
        good = target.logits is None or (wanted.targets == "logits" and wanted.targeted(held.id))
        if wanted.targeted(held.id):
            good = good and self.embedding(child, held, target)
            if good and wanted.targets == "logits":
                good = target.logits is not None and fits(target.logits, self._logits(target.embedding))
        elif wanted.targets != "none":
            good = good and target.embedding.numel() == 0  # a receipt
        if good and target.layer is not None:
            ours = self.component.copies
            good = ours is not None and fits(target.layer, ours.shape(child))
        if good and target.gradient is not None:
            due = wanted.gradient_reach != "none" and self.sent is not None
            good = due and fits(target.gradient, torch.Size((len(held.come[0]), *(self.sent or ()))))
        elif target.gradient is None and wanted.gradient_reach == "full" and self.sent is not None:
            good = False  # nothing would ever be learnt of the batch
        return good

    def embedding(self, child: str, held: Held, target: Target) -> bool:
        """Whether the embedding is one that `child` may have of this batch: as our student's imitation of it."""
        if child not in self._shapes:
            with aside(device=self.device):  # asked once a life: one that goes on draws what it would have drawn
                self._shapes[child] = self.component.target_shape(child, *held.come)[1:]
        return fits(target.embedding, torch.Size((len(held.come[0]), *self._shapes[child])))

    def _logits(self, embedding: Tensor) -> torch.Size:
        """Of the logits that go with an embedding: as our own head's."""
        with torch.no_grad(), self.component.evaluating():
            one = self.component.classify(onto(self.device, embedding[:1], self.dtype))
        return torch.Size((len(embedding), *one.shape[1:]))
