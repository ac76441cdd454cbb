"""How a late gradient becomes one of the weights: two ways, one interface.

    recompute   the old input goes through today's weights again (Features Replay, arXiv 1807.04511)
    stash       the graph of the old computation is kept, on a copy of the weights of its time; what the gradient
                comes to there is added to today's (PipeDream, arXiv 1806.03377)

Either way a gradient is pulled through training mode. What a parent is told of a batch in skip wiring is computed in
evaluation mode, and apart from that where the two differ (`mach/modes.py`).

A `Held` is a batch that something was computed of and that is owed a gradient. Laws: one copy of the weights a version,
however many graphs stand on it, alive as long as one of them; the window bounds both. An optimiser changes weights in
place, so a graph is used across a step only on such a copy. Knows no message and no loss.

Shapes: B batch, D numbers of an activation.
"""

import copy
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mach.component import Component
from mach.staleness import Correction, Staleness, ahead


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What a child said about a batch that we asked on, for somebody else."""

    id: int
    """Of our question."""
    version: int
    """The child's, when it answered."""
    d: Tensor  # [B, E] a leaf, whose gradient is owed


@dataclass(slots=True, eq=False, weakref_slot=True)
class Held:
    """A batch in our hands: what came in, and the computation it went into."""

    id: int
    come: tuple[Tensor, ...]
    """What the encoder takes: x or a parent's activation [B, ...], with x where it comes along."""
    labels: Tensor | None
    sender: str | None
    version: int
    """Ours, when what others got of it was computed."""
    at: float
    shape: torch.Size | None = None
    """Of the embedding that we answered with, and so of its gradient."""
    net: Component | None = None
    a: Tensor | None = None  # [B, D] with its graph in `net`
    e: Tensor | None = None  # [B, E] with its graph in `net`
    seen: Tensor | None = None  # [B, D] as it was, without a graph: what a guess was made from
    told: dict[str, Told] = field(default_factory=dict)
    """By child, what stands in our answer in place of its student's imitation."""

    def join(self, net: Component, a: Tensor) -> Tensor:
        """A [B, D] → e [B, E] over what children told, and students of all others."""
        s = net.imitate(a)
        return net.embed(a, {**s, **{child: told.d for child, told in self.told.items()}} if self.told else s)


class Recompute:
    """Old inputs through today's weights."""

    keeps_graphs = False

    def __init__(self, component: Component, staleness: Staleness) -> None:
        self.component = component
        self.staleness = staleness
        self.version = 0
        self.before: list[Tensor] = []
        """Of every parameter, by `predict`, what it was before the last step; [] before the first."""
        self._ahead: tuple[int, Component] | None = None
        self._cached: weakref.WeakSet[Held] = weakref.WeakSet()
        """A batch that nobody remembers any more takes its graph along, even if no backward pass is ever made."""

    def answer(self, held: Held) -> tuple[Component, Tensor]:
        """(network, e) of a batch that only a parent shall get something of: e [B, E] over our students, in evaluation
        mode (`mach/modes.py`); what a late gradient of it is pulled through is not.
        """
        return self.said(self._future() or self.component, held)

    def forward(self, held: Held) -> tuple[Component, Tensor]:
        """(network, a) of a batch that a child shall get; by `predict` with weights of the future."""
        future = self._future()
        if future is None:
            return self.now(held)
        with torch.no_grad():
            return future, future.activation(*held.come)

    def now(self, held: Held) -> tuple[Component, Tensor]:
        """Today's network, and a with its graph: computed once between two steps."""
        if held.a is None:
            held.net, held.a = self.component, self.component.activation(*held.come)
            self._cached.add(held)
        return self.component, held.a

    def then(self, held: Held) -> tuple[Component, Tensor]:
        """Where a late gradient is pulled: (network, a), with its graph."""
        return self.now(held)

    def answered(self, held: Held) -> Tensor:
        """Where a parent's late gradient is pulled: e [B, E] over our students, with its graph."""
        net, a = self.then(held)
        return held.join(net, a)

    def used(self) -> None:
        """A backward pass was made, or weights changed: graphs on today's weights are of no more use."""
        for held in self._cached:
            held.net = held.a = None
        self._cached.clear()

    def gather(self) -> None:
        """Add what old weights got to today's gradients."""

    def parts(self, own: list[Tensor]) -> list[tuple[list[Tensor], Correction]]:
        """The gradients of a backward pass, by the weights they were computed with; they are taken away there."""
        weights = [parameter.detach() for parameter in self.component.parameters()]
        return [(taken(self.component), Correction(own, weights, weights))]

    def stepping(self) -> None:
        """The optimiser is about to step."""
        if self.staleness.predicts:
            self.before = [parameter.detach().clone() for parameter in self.component.parameters()]

    def stepped(self, version: int) -> None:
        """It has stepped to this version."""
        self.version = version

    def said(self, net: Component, held: Held) -> tuple[Component, Tensor]:
        """A network's answer, without a graph."""
        with torch.no_grad(), net.evaluating():
            return net, held.join(net, net.activation(*held.come))

    def _future(self) -> Component | None:
        """A copy with weights E[τ] steps on; None where those are today's."""
        lag = self.staleness.expected_lag
        if not self.staleness.predicts or not self.before or lag == 0.0:
            return None
        self.staleness.counts["predict"] += 1
        if self._ahead is None or self._ahead[0] != self.version:
            twin = copy.deepcopy(self.component)
            with torch.no_grad():
                rows = zip(twin.parameters(), self.component.parameters(), self.before, strict=True)
                for to, weight, before in rows:
                    to.copy_(ahead(weight, before, lag))
            self._ahead = (self.version, twin)
        return self._ahead[1]


class Stash(Recompute):
    """Old inputs through the weights that they met."""

    keeps_graphs = True

    def __init__(self, component: Component, staleness: Staleness) -> None:
        super().__init__(component, staleness)
        self._copies: dict[int, Component] = {}
        """By version, today's weights of then; by −1 − version, those predicted then."""
        self._holders: Counter[int] = Counter()
        self._spare: list[Component] = []

    @property
    def copies(self) -> int:
        """Copies of the weights that somebody needs."""
        return len(self._copies)

    def answer(self, held: Held) -> tuple[Component, Tensor]:
        """The same, and the graph is kept; where modes matter, it is made on the same weights when it is wanted."""
        if self.component.minding:
            held.net = self._copy(held)
            return self.said(held.net, held)
        net, a = self.forward(held)
        with torch.enable_grad():
            held.e = held.join(net, a)
        return net, held.e

    def answered(self, held: Held) -> Tensor:
        """The kept graph, if there is one."""
        return super().answered(held) if held.e is None else held.e

    def forward(self, held: Held) -> tuple[Component, Tensor]:
        """On a copy of today's weights, or on predicted ones; the graph is kept."""
        if held.net is None:
            held.net = self._copy(held)
        if held.a is None:
            with torch.enable_grad():
                held.a = held.net.activation(*held.come)
        return held.net, held.a

    def now(self, held: Held) -> tuple[Component, Tensor]:
        """Today's weights: the copy of them, if it is of today."""
        if held.version == self.version and not self.staleness.predicts:
            return self.forward(held)
        return self.component, self.component.activation(*held.come)

    def then(self, held: Held) -> tuple[Component, Tensor]:
        """The kept graph; of a batch that nothing was computed of, as today."""
        return self.now(held) if held.net is None else self.forward(held)

    def gather(self) -> None:
        """Add what old weights got to today's gradients."""
        for twin in self._touched():
            for to, parameter in zip(self.component.parameters(), twin.parameters(), strict=True):
                if parameter.grad is not None:
                    to.grad = parameter.grad if to.grad is None else to.grad + parameter.grad
                    parameter.grad = None

    def parts(self, own: list[Tensor]) -> list[tuple[list[Tensor], Correction]]:
        """One part for today's weights, and one for every copy that got gradients."""
        parts = super().parts(own)
        now = parts[0][1].now
        for twin in self._touched():
            then = [parameter.detach() for parameter in twin.parameters()]
            parts.append((taken(twin), Correction(own, now, then)))
        return parts

    def _copy(self, held: Held) -> Component:
        """The copy of these weights, alive at least as long as `held`."""
        future = self._future()
        key = self.version if future is None else -1 - self.version
        if key not in self._copies:
            self._copies[key] = future or self._fresh()
            share_statistics(self._copies[key], self.component)
        self._holders[key] += 1
        weakref.finalize(held, self._let_go, key).atexit = False
        return self._copies[key]

    def _fresh(self) -> Component:
        """Today's weights, in a copy that nobody needs any more if there is one."""
        if not self._spare:
            return copy.deepcopy(self.component)
        twin = self._spare.pop()
        with torch.no_grad():
            rows = (of.state_dict(keep_vars=True).values() for of in (twin, self.component))
            for to, value in zip(*rows, strict=True):
                if to is not value:
                    to.copy_(value)
        return twin

    def _let_go(self, key: int) -> None:
        """One holder less."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            twin = self._copies.pop(key)
            if key >= 0:
                twin.zero_grad()
                self._spare.append(twin)

    def _touched(self) -> list[Component]:
        """Copies that a backward pass came to, the oldest first."""
        rows = sorted(self._copies.items(), key=lambda row: row[0])
        return [twin for _, twin in rows if any(each.grad is not None for each in twin.parameters())]


def share_statistics(twin: Component, component: Component) -> None:
    """Let a copy write down what it sees of batches in training mode where the component does: else what ships would
    know nothing of them. Weights that children have shown (`Component.copies`) are those of the copy's time.
    """
    shown = frozenset(()) if component.copies is None else frozenset(component.copies.modules())
    for to, own in zip(twin.minding, component.minding, strict=True):
        if own not in shown:
            to._buffers = own._buffers


def taken(component: Component) -> list[Tensor]:
    """The gradient of every parameter, zeros where there is none; none is left there."""
    gradients = []
    for parameter in component.parameters():
        gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return gradients


WAYS: Mapping[str, type[Recompute]] = {"recompute": Recompute, "stash": Stash}
"""`staleness.late`."""
