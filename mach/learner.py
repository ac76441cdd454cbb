"""The method: **ask, answer, keep, step**. Messages in, messages out; no socket, no process, no clock.

    ask     a batch goes to a child as an activation
    answer  a parent's activation is answered with an embedding, the student standing in for our own child
    keep    a child's target, or a parent's late gradient, waits for the next step
    step    one optimiser step on
                L = w_child · CE(head(joiner(a, d)), y)          a target d is at hand
                  + w_student · CE(head(joiner(a, s)), y)        the component must also be good on its own
                  + w_distill · distill(s, stopgrad(d))
                  + w_late · Σ ⟨e(x_old), g_e⟩                   late gradients of old answers, by recompute
            or, with no target at hand, on CE(head(joiner(a, s)), y) and the late gradients alone.

Laws: nothing here waits (law 1); an answer never asks (law 2); every target trained on owes its child
∂L/∂d (law 3); every age is measured when a message is used (law 4). Memory is bounded by the window.
Source: method.md; recompute as in Features Replay (arXiv 1807.04511).

Shapes: B batch, E embedding, K classes. Times are seconds of the caller's clock.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.errors import DataError
from configs.tree import Loss
from mach import state as pack
from mach.component import Component
from mach.losses import DISTANCES, cross_entropy, pull
from mach.messages import Activation, Age, Batch, Gradient, Letter, Target
from mach.state import State, tensor_of

MEMORY = 4
"""Batches asked, answers given and late gradients kept of one neighbour, in windows: what comes when its batch or
answer has been pushed out by newer ones is dropped, and counted in `Learner.forgotten`."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one optimiser step was made of."""

    version: int
    """After the step."""
    samples: int
    losses: Mapping[str, Tensor]
    """Detached 0-d tensors: `target`, `student`, and on a child's answer `distill`, with late gradients `late`."""
    on_child: bool
    owed: list[tuple[str, Gradient]]
    """To be sent to the children whose targets were used."""
    target_ages: list[Age]
    gradient_ages: list[Age]


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """An input that we answered, until its gradient comes."""

    inputs: Tensor
    shape: torch.Size  # of the answer, and so of its gradient
    version: int
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class _Late:
    """A parent's late gradient of an old answer."""

    parent: str
    answered: _Answered
    gradient: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Arrived:
    """A child's target for a batch of ours."""

    child: str
    batch: Batch
    target: Target
    age: Age
    at: float


class Learner:
    """One component's training."""

    def __init__(
        self,
        component: Component,
        optimiser: torch.optim.Optimizer,
        loss: Loss,
        *,
        window: int,
        device: torch.device,
        sample_shape: tuple[int, ...],
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        """`sample_shape` is that of one input. `schedule` maps the version to the learning rate; None leaves the
        optimiser's own.
        """
        self.component = component
        self.optimiser = optimiser
        self.loss = loss
        self.device = device
        self.dtype = next(component.parameters()).dtype
        self.sample_shape = torch.Size(sample_shape)
        self.schedule = schedule
        self.version = 0
        self.forgotten: Counter[str] = Counter()
        """Targets and gradients that came too late for our memory, or twice, by kind."""
        self.unneeded = 0
        """Gradients that came while we only answer, after our last step."""
        self.unfit: Counter[str] = Counter()
        """Messages whose tensor has another shape than it must have, or is not finite, by kind: never trained on, so
        that a neighbour that diverged or runs another network ruins only itself."""
        self._capacity = MEMORY * window
        self._asked: dict[str, OrderedDict[int, Batch]] = {child: OrderedDict() for child in component.children_names}
        self._answered: dict[str, OrderedDict[int, _Answered]] = {}
        self._targets: deque[_Arrived] = deque()
        self._late: deque[_Late] = deque()
        self._heard: dict[str, int] = {}
        self._shapes: dict[str, torch.Size] = {}

    def ask(self, batch: Batch, child: str | None = None) -> Activation:
        """The activation of a batch, to be sent to `child`, or to every child; remembered until answered."""
        for name in self._asked if child is None else (child,):
            self._asked[name][batch.id] = batch
            self._trim(self._asked[name])
        return Activation(batch.id, self.version, batch.inputs, indices=batch.indices)

    def answer(self, parent: str, asked: Activation, now: float) -> Target | None:
        """Our embedding of a parent's activation, today, with students in place of our own children (law 2).

        None, and counted as unfit, if there is none: inputs of another shape, or not finite.
        """
        e = None
        if asked.inputs.shape[1:] == self.sample_shape and asked.inputs.is_floating_point():
            x = asked.inputs.to(self.device, self.dtype)
            with torch.no_grad():
                e = self._alone(x)
        if e is None or not math.isfinite(float(e.sum())):  # what is not finite in x is not in e, of fewer numbers
            self.unfit["activation"] += 1
            return None
        if asked.owes:
            answered = self._answered.setdefault(parent, OrderedDict())
            answered[asked.id] = _Answered(x, e.shape, self.version, now)
            self._trim(answered)
        return Target(asked.id, self.version, e)

    def keep(self, letter: Letter, now: float) -> None:
        """Put a target or a late gradient by for the next step; one that nobody remembers is counted."""
        match letter.message:
            case Target() as target:
                self._keep_target(letter.sender, target, letter.age or Age(0, 0.0), now)
            case Gradient() as gradient:
                self._keep_gradient(letter.sender, gradient)
            case Activation():
                raise ValueError("an activation is answered, not kept")

    def step(self, batch: Batch, now: float) -> Step:
        """One optimiser step: on the oldest answered batch with its targets, else on `batch` with the students."""
        arrived = self._next_answered()
        batch = arrived[0].batch if arrived else batch
        targets = {
            each.child: each.target.embedding.to(self.device, self.dtype).detach().requires_grad_() for each in arrived
        }
        losses, total = self._losses(batch, targets)
        late, self._late = sorted(self._late, key=_order), deque()
        if late and self.loss.late > 0.0:
            losses["late"] = torch.stack(
                [pull(self._alone(each.answered.inputs), each.gradient) for each in late]
            ).sum()
            total = total + self.loss.late * losses["late"]
        self._descend(total)
        gradient_ages = [Age(self.version - each.answered.version, now - each.answered.at) for each in late]
        owed = [(each.child, self._owed(each, targets[each.child])) for each in arrived]
        self.version += 1
        return Step(
            version=self.version,
            samples=len(batch.labels),
            losses={name: value.detach() for name, value in losses.items()},
            on_child=bool(arrived),
            owed=owed,
            target_ages=[self._age(each, now) for each in arrived],
            gradient_ages=gradient_ages,
        )

    def state(self, now: float) -> State:
        """All that a step depends on, by reference: weights, moments, version, late gradients at hand.

        Batches asked and answers given are left out: their edges begin anew with the life that goes on from here.
        """
        state = State()
        state.add("component", pack.of_module(self.component))
        state.add("optimiser", pack.of_optimiser(self.optimiser))
        late = list(self._late)
        for number, each in enumerate(late):
            state.tensors[f"late/{number}/inputs"] = each.answered.inputs
            state.tensors[f"late/{number}/gradient"] = each.gradient
        state.values["late"] = [[each.parent, each.answered.version, now - each.answered.at] for each in late]
        state.values["version"] = self.version
        return state

    def restore(self, state: State, now: float) -> None:
        """Go on from there; ages count on, without the time between. Moments of another optimiser are left out.

        Raises:
            DataError: it does not fit our networks; nothing was changed.
        """
        component, optimiser = state.under("component"), state.under("optimiser")
        pack.check_module(self.component, component)
        pack.check_optimiser(self.optimiser, optimiser)
        late = deque[_Late]()
        for number, (parent, version, age_s) in enumerate(state.values["late"]):
            inputs = tensor_of(state.tensors, f"late/{number}/inputs").to(self.device)
            gradient = tensor_of(state.tensors, f"late/{number}/gradient", self.dtype).to(self.device)
            if inputs.shape[1:] != self.sample_shape or len(gradient) != len(inputs):
                raise DataError(f"late/{number}: inputs {tuple(inputs.shape)}, gradient {tuple(gradient.shape)}")
            late.append(_Late(parent, _Answered(inputs, gradient.shape, version, now - age_s), gradient))
        pack.into_module(self.component, component)
        if optimiser.values["kind"] == type(self.optimiser).__name__:
            pack.into_optimiser(self.optimiser, optimiser)
        self.version, self._late = state.values["version"], late

    def _keep_target(self, child: str, target: Target, age: Age, now: float) -> None:
        self._heard[child] = target.version  # an edge keeps the order: a lower one is of a life that went back
        batch = self._asked.get(child, OrderedDict()).pop(target.id, None)
        if batch is None:
            self.forgotten["target"] += 1
        elif not self._fits(target.embedding, self._shape_of(child, batch)):
            self.unfit["target"] += 1
        else:
            self._targets.append(_Arrived(child, batch, target, age, now))

    def _keep_gradient(self, parent: str, gradient: Gradient) -> None:
        answered = self._answered.get(parent, OrderedDict()).pop(gradient.id, None)
        if answered is None:
            self.forgotten["gradient"] += 1
        elif not self._fits(gradient.gradient, answered.shape):
            self.unfit["gradient"] += 1
        else:
            self._late.append(_Late(parent, answered, gradient.gradient.to(self.device, self.dtype)))
            if len(self._late) > self._capacity * len(self._answered):  # we answer and no longer train
                self._late.popleft()
                self.unneeded += 1

    def _losses(self, batch: Batch, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of L on a batch, and their weighted sum; `targets` [B, E] by child, empty if none came."""
        component, weight = self.component, self.loss
        x, y = batch.inputs.to(self.device), batch.labels.to(self.device)
        a = component.activation(x)
        s = component.imitate(a)  # by child, [B, E]
        student = cross_entropy(component.classify(component.embed(a, s)), y)
        if not targets:
            return {"target": student, "student": student}, student
        child = cross_entropy(component.classify(component.embed(a, {**s, **targets})), y)
        distance = DISTANCES[weight.distance]
        distill = torch.stack([distance(s[name], d.detach()) for name, d in targets.items()]).sum()
        total = weight.child * child + weight.student * student + weight.distill * distill
        return {"target": child, "student": student, "distill": distill}, total

    def _alone(self, x: Tensor) -> Tensor:
        """e(x) with every student standing in: what a parent gets, [B, E]."""
        a = self.component.activation(x)
        return self.component.embed(a, self.component.imitate(a))

    def _descend(self, total: Tensor) -> None:
        """One optimiser step down the gradient of `total`."""
        if self.schedule is not None:
            for group in self.optimiser.param_groups:
                group["lr"] = self.schedule(self.version)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        self.optimiser.step()

    def _next_answered(self) -> list[_Arrived]:
        """The targets of the oldest answered batch; its targets that come later make a step of their own."""
        if not self._targets:
            return []
        first = self._targets[0].batch.id
        arrived = {each.child: each for each in self._targets if each.batch.id == first}
        self._targets = deque(each for each in self._targets if each.batch.id != first)
        return [arrived[child] for child in self.component.children_names if child in arrived]

    def _owed(self, arrived: _Arrived, d: Tensor) -> Gradient:
        """∂L/∂d for the child that sent d (law 3)."""
        gradient = d.grad if d.grad is not None else torch.zeros_like(d)
        return Gradient(arrived.target.id, arrived.target.version, gradient)

    def _age(self, arrived: _Arrived, now: float) -> Age:
        """Of a target at use: at least so many versions, exactly so many seconds since its activation left."""
        versions = max(0, self._heard[arrived.child] - arrived.target.version)
        return Age(versions, arrived.age.seconds + now - arrived.at)

    def _shape_of(self, child: str, batch: Batch) -> torch.Size:
        """What a target of `child` must look like: our student's imitation of it."""
        if child not in self._shapes:
            self._shapes[child] = self.component.target_shape(child, batch.inputs.to(self.device))[1:]
        return torch.Size((len(batch.labels), *self._shapes[child]))

    def _fits(self, tensor: Tensor, shape: torch.Size) -> bool:
        """Whether a tensor that came may be trained on; one sum finds every NaN and infinity."""
        return tensor.shape == shape and tensor.is_floating_point() and math.isfinite(float(tensor.sum()))

    def _trim(self, memory: OrderedDict[int, Any]) -> None:
        while len(memory) > self._capacity:
            memory.popitem(last=False)


def _order(late: _Late) -> tuple[int, str]:
    """Parents by number, c2 before c10: the sum of their gradients must not depend on who came first."""
    return len(late.parent), late.parent
