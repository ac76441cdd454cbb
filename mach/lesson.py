"""What a batch teaches: the terms of method.md's loss, on a batch in our hands and what children said to it.

    own     w_child · CE(head(joiner(a, d)), y)        a target d is at hand
            + w_student · CE(head(joiner(a, s)), y)    the component must also be good on its own
            + w_distill · distill(s, stopgrad(d))
            + w_logits · T²·KL(z_d ‖ z_s)              the child's logits are at hand
            or, where the head looks down the chain (z_b over its copies, `mach/below.py`), at once
            w_child · CE(z_b, y) + w_student · CE(head(joiner(a, s)), y) + w_logits · T²·KL(stopgrad(z_b) ‖ z_s)
            and of a target later the terms with d, for the readout and the student alone
            + ⟨a, ĝ⟩                                   a local model guesses the gradient of the activation (DNI)
    late    w_activation · ⟨a, g_a⟩                    a child's late gradient of our activation
            + w_late · Σ ⟨e(x_old), g_e⟩               parents' late gradients of old answers

A component without a loss of its own (`method.heads: last`) has only those terms that others send. Own terms are at
today's weights; where late ones are pulled through, and what staleness does to them, is `mach/late.py`'s and
`mach/staleness.py`'s. Knows no optimiser, and no message but for its tensors.

Shapes: B batch, D numbers of an activation, E embedding, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs.tree import Loss, Method
from mach.below import Below
from mach.component import Component
from mach.late import Held, Recompute
from mach.losses import DISTANCES, cross_entropy, distil_logits, pull
from mach.messages import Age, Gradient, Target
from mach.onto import onto
from mach.staleness import Staleness


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """A child's answer to a batch that we asked about."""

    child: str
    held: Held
    target: Target
    age: Age
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class Late:
    """A parent's late gradient of an old answer."""

    parent: str
    held: Held
    gradient: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A batch to be learnt from now."""

    held: Held
    arrived: Sequence[Arrived] = ()
    own: bool = True
    """Whether its own terms are due; else only what the children's answers add."""


@dataclass(slots=True, eq=False)
class Learnt:
    """What lessons come to."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    """0-d tensors, unweighted: `target`, `student`, `distill`, `logits`, `guess`; and `activation` and `late`, as
    staleness scales them."""
    own: Tensor | None = None
    late: Tensor | None = None
    """0-d tensors to be descended; None: no such terms."""
    leaves: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """By child and batch, the target as a leaf whose gradient is owed."""
    e: Tensor | None = None  # [B, E] of the newest own lesson, what a parent gets
    z: Tensor | None = None  # [B, K]

    def add(self, name: str, value: Tensor, weight: float = 1.0, *, late: bool = False) -> None:
        """One more term. What is reported under a name is the newest."""
        self.losses[name] = value
        value = value if weight == 1.0 else weight * value
        if late:
            self.late = value if self.late is None else self.late + value
        else:
            self.own = value if self.own is None else self.own + value


class Teacher:
    """Lessons into terms, for one component."""

    def __init__(
        self,
        component: Component,
        loss: Loss,
        method: Method,
        late: Recompute,
        staleness: Staleness,
        *,
        judges: bool,
        stream: bool,
        student_pull: Callable[[int], float] | None,
    ) -> None:
        """`judges`: whether the component has a loss of its own. `stream`: whether it sends activations on.
        `student_pull`: version → share of a shipping student's gradient that reaches its section; None: the method's.
        """
        self.component = component
        self.loss = loss
        self.method = method
        self.late = late
        self.staleness = staleness
        self.judges = judges
        self.stream = stream
        self.student_pull = student_pull or (lambda version: method.student_pull)
        self.dtype = next(component.parameters()).dtype

    def teach(self, lesson: Lesson, learnt: Learnt, version: int) -> None:
        """Add the terms of one lesson, in the step that follows `version`."""
        held = lesson.held
        d = {each.child: self._leaf(each) for each in lesson.arrived if self.method.targeted(held.id)}
        learnt.leaves.update({(child, held.id): leaf for child, leaf in d.items()})
        if d or (lesson.own and self.judges):
            self._judge(lesson, d, learnt, version)
        if lesson.own and self.component.guess is not None and held.labels is not None:
            _, a = self.late.now(held)
            held.seen = a.detach()
            with torch.no_grad():
                guessed = self.component.guess(held.seen, held.labels) / len(a)
            learnt.add("activation", pull(a, guessed))
        for each in lesson.arrived:
            if each.target.gradient is not None:
                self._take_back(each, onto(held.come[0].device, each.target.gradient, self.dtype), learnt, version)

    def pull_late(self, late: Sequence[Late], learnt: Learnt, version: int) -> None:
        """Add the terms of parents' late gradients; with weight 0 they are only weighed."""
        pulled = []
        for each in late:
            factor = self.staleness.scale(version - each.held.version, version)
            if factor is not None and self.loss.late > 0.0:
                e = self.late.answered(each.held)
                pulled.append(scaled(pull(e, each.gradient), factor / self.staleness.together))
        if pulled:
            learnt.add("late", torch.stack(pulled).sum(), self.loss.late, late=True)

    def _today(self, held: Held) -> tuple[Component, Tensor]:
        if self.stream:
            return self.late.now(held)
        return self.component, self.component.activation(*held.come)

    def _leaf(self, arrived: Arrived) -> Tensor:
        device = arrived.held.come[0].device
        leaf = onto(device, arrived.target.embedding, self.dtype).detach()
        return leaf.requires_grad_(self.component.below is None)  # else nothing is owed (`mach/below.py`)

    def _judge(self, lesson: Lesson, d: Mapping[str, Tensor], learnt: Learnt, version: int) -> None:
        """The terms against labels and children's answers, weighted as method.md says."""
        weight, y = self.loss, lesson.held.labels
        net, a = self._today(lesson.held)
        if net.below is not None:
            if lesson.own:
                self._look_down(net.below, lesson.held, (net, a), learnt, version)
            if d:
                self._learn_to_join(net, a.detach(), d, y, learnt)
            return
        s = net.imitate(a)  # by child, [B, E]
        alone = net.embed(a, s)
        z_s = net.classify(alone) if lesson.own or weight.logits > 0.0 else None
        if lesson.own:
            learnt.e, learnt.z = alone, z_s
        student = None if z_s is None or y is None or not lesson.own else cross_entropy(z_s, y)
        if d:
            joined = net.embed(a, {**s, **d})
            z = net.classify(joined)
            if lesson.own:
                learnt.e, learnt.z = joined, z
            if self.judges and y is not None:
                learnt.add("target", cross_entropy(z, y), weight.child)
                if student is not None:
                    learnt.add("student", student, weight.student)
            self._distil(s, d, learnt)
        elif student is not None and self.judges:
            learnt.add("target", student)
            learnt.losses["student"] = student
        for each in lesson.arrived:
            if z_s is not None and weight.logits > 0.0 and each.target.logits is not None:
                z_d = onto(a.device, each.target.logits, self.dtype)
                learnt.add("logits", distil_logits(z_s, z_d, weight.temperature), weight.logits)

    def _look_down(
        self, below: Below, held: Held, seen: tuple[Component, Tensor], learnt: Learnt, version: int
    ) -> None:
        """Where the head looks down the chain: the loss there, which the readout over students imitates. Component 0's,
        which ships, pulls its section along, more and more (`method.student_pull`); the others learn from what sections
        make anyway, and now and then (`method.student_every`): that they pulled cost the whole depth
        (benchmarks/depth.md).
        """
        weight, y = self.loss, held.labels
        net, a = seen
        learnt.e, learnt.z = below(a, held.come[-1])
        if y is None:
            return
        learnt.add("target", cross_entropy(learnt.z, y), weight.child)
        ships = held.sender is None
        if not ships and not self.method.studied(held.id):
            return
        a = damped(a, self.student_pull(version) if ships else 0.0)
        z_s = net.classify(net.embed(a, net.imitate(a)))
        learnt.add("student", cross_entropy(z_s, y), weight.student)
        if weight.logits > 0.0:
            learnt.add("logits", distil_logits(z_s, learnt.z.detach(), weight.temperature), weight.logits)

    def _learn_to_join(
        self,
        net: Component,
        a: Tensor,
        d: Mapping[str, Tensor],
        y: Tensor | None,
        learnt: Learnt,
    ) -> None:
        """Where the head looks down the chain: what a true target is for, the readout over it and the student. Of an
        activation [B, D] without a graph: a section has the chain's own loss, on every batch and sooner.
        """
        if y is not None:
            learnt.add("target", cross_entropy(net.classify(net.embed(a, d)), y), self.loss.child)
        if self.loss.distill > 0.0:
            self._distil(net.imitate(a), d, learnt)

    def _distil(self, s: Mapping[str, Tensor], d: Mapping[str, Tensor], learnt: Learnt) -> None:
        """What imitations [B, E] are from the targets, by child."""
        if d:
            distance = DISTANCES[self.loss.distance]
            distill = torch.stack([distance(s[name], each.detach()) for name, each in d.items()]).sum()
            if self.loss.distill > 0.0:
                learnt.add("distill", distill, self.loss.distill)
            else:  # told, and no part of what is descended
                learnt.losses["distill"] = distill.detach()

    def _take_back(self, arrived: Arrived, g: Tensor, learnt: Learnt, version: int) -> None:
        """A child's gradient of our activation: pulled on, or what a guess learns from."""
        held = arrived.held
        factor = self.staleness.scale(version - held.version, version)
        if factor is None:
            return
        factor /= self.staleness.together
        guess = self.component.guess
        if guess is not None and held.labels is not None:
            seen = self.late.then(held)[1].detach() if held.seen is None else held.seen
            learnt.add("guess", (guess(seen, held.labels) - g * len(g)).square().mean(), factor)
        else:
            _, a = self.late.then(held)
            learnt.add("activation", scaled(pull(a, g), factor), self.loss.activation, late=True)


def scaled(value: Tensor, factor: float) -> Tensor:
    """Times a factor; by 1 it stays the same tensor."""
    return value if factor == 1.0 else value * factor


def damped(tensor: Tensor, share: float) -> Tensor:
    """The same values, through which this share of a gradient comes back."""
    if share == 1.0:
        return tensor
    there = tensor.detach()
    return there if share == 0.0 else there + share * (tensor - there)


def owed(learnt: Learnt, arrived: Arrived) -> Tensor:
    """∂L/∂d for the child that sent d (law 3), after the backward pass."""
    leaf = learnt.leaves[arrived.child, arrived.held.id]
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def passed_on(late: Sequence[Late]) -> list[tuple[str, Gradient]]:
    """What parents' late gradients come to at what children told us for them (law 3), after the backward pass."""
    told = [row for each in late for row in each.held.told.items()]
    return [(child, Gradient(of.id, of.version, of.d.grad)) for child, of in told if of.d.grad is not None]
