"""The method: **ask, answer, keep, step**. Messages in, messages out; no socket, no process, no clock.

    ask     a batch goes to a child as an activation: the raw x in skip wiring, encoder(x) and the labels in stream
    answer  a parent's activation is answered with an embedding, the student standing in for our own child;
            one that shall come from further down, when that child has answered (`mach/deep.py`); in stream wiring
            it is a batch to be trained on first, and the step that does so answers it
    keep    a child's answer, or a parent's late gradient, waits for the next step
    step    one optimiser step on what `mach/lesson.py` makes of the batches whose turn it is (LESSONS)

Laws: nothing here waits (law 1); an answer never asks (law 2); every tensor trained on owes its sender its gradient
(law 3); every age is measured when a message is used (law 4). Memory is bounded by the window. Source: method.md.

Shapes: B batch, E embedding, K classes. Times are seconds of the caller's clock.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor

from configs.tree import Loss, Method
from configs.tree import Probes as ProbeSettings
from configs.tree import Staleness as StalenessSettings
from mach.below import showing_of
from mach.component import Component
from mach.deep import Deep
from mach.descent import Descent
from mach.going_on import restore, state_of
from mach.late import WAYS, Held, Recompute, Told
from mach.lesson import Arrived, Late, Learnt, Lesson, Teacher, owed, passed_on
from mach.memory import Memory
from mach.messages import Activation, Age, Batch, Gradient, Letter, Target
from mach.onto import onto
from mach.probes import Probes
from mach.sieve import Sieve
from mach.sound import finite, fits
from mach.staleness import Staleness
from mach.state import State
from mach.stream import Stream


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one turn of training was made of."""

    version: int
    """After the step; as before it while gradients are still gathered (`method.update_every`)."""
    samples: int
    losses: Mapping[str, Tensor]
    """Detached 0-d tensors, by the names of `mach/lesson.py`."""
    on_child: bool
    owed: list[tuple[str, Gradient | Target]]
    """To be sent: gradients to the children whose targets were used, answers to parents whose batches were."""
    target_ages: list[Age]
    gradient_ages: list[Age]
    updated: bool = True
    """Whether the optimiser took its step; False while gradients are gathered for one."""
    probes: Mapping[str, float] = field(default_factory=dict)
    """What `mach/probes.py` measured in this step, if anything was due."""


class Learner:
    """One component's training.

    Args:
        window: W, most activations a parent may have unanswered on one edge.
        sample_shape: of one input.
        schedule: maps the version to the learning rate; None leaves the optimiser's own.
        student_pull: maps the version to that share of a student's gradient; None: it is always `method.student_pull`.
        children: those that are asked, if others than the component has students for.
        stream: where batches come from in stream wiring; None is skip wiring.
        average: decay of the moving average of the weights that is examined, 0 for none.
        symbols: of how many an input is made, 0 for quantities.
        apart: an optimiser of late gradients alone.
        patience_s: how long a parent waits for an answer.
    """

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
        student_pull: Callable[[int], float] | None = None,
        children: Sequence[str] | None = None,
        method: Method | None = None,
        staleness: StalenessSettings | None = None,
        stream: Stream | None = None,
        average: float = 0.0,
        symbols: int = 0,
        probes: ProbeSettings | None = None,
        apart: torch.optim.Optimizer | None = None,
        patience_s: float = 2.0,
    ) -> None:
        self.component = component
        self.optimiser = optimiser
        self.method = method or Method()
        self.device = device
        self.dtype = next(component.parameters()).dtype
        self.stream = stream
        self.children = component.children_names if children is None else tuple(children)
        self.window = window
        self.memory = Memory(self.children, window)
        self.sieve = Sieve(component, self.method, device, sample_shape, symbols)
        self.deep = Deep(component.children_names, window, self.memory.capacity, patience_s, on=self.method.depth > 0)
        self.staleness = Staleness(staleness or StalenessSettings())
        self.late: Recompute = WAYS[self.staleness.settings.late](component, self.staleness)
        taught = partial(Teacher, loss=loss, method=self.method, stream=stream is not None, student_pull=student_pull)
        teacher_of = partial(taught, judges=self.method.heads == "every" or not self.children)
        self.teacher = teacher_of(component, late=self.late, staleness=self.staleness)
        expects = partial(self.memory.expects, asked=stream is not None)
        self.probes = Probes(probes or ProbeSettings(), component, teacher_of, expects, self.memory.heard)
        self.descent = Descent(
            component, optimiser, self.late, self.staleness, schedule, self.method.update_every, average, apart
        )
        self.showing = showing_of(component, self.method, has_parent=stream is not None and not stream.draws)
        self._lessons = LESSONS["skip" if stream is None else self.method.gradient_reach]
        self._at_hand: tuple[Batch, Held] | None = None

    @property
    def version(self) -> int:
        """Optimiser steps taken."""
        return self.descent.version

    @property
    def examined(self) -> Component:
        """What examinations judge: the moving average of the component, or itself."""
        average = self.descent.average
        return self.component if average is None else cast(Component, average.module)

    @property
    def forgotten(self) -> Counter[str]:
        """See `Memory`."""
        return self.memory.forgotten

    @property
    def unfit(self) -> Counter[str]:
        """See `Memory`."""
        return self.memory.unfit

    @property
    def waits_for_answers(self) -> bool:
        """Whether a batch is learnt from only when every child has answered it: end to end, as a recipe may be."""
        return self.stream is not None and self.method.gradient_reach == "full" and bool(self.children)

    @property
    def sends_all(self) -> bool:
        """Whether no batch is taken up that cannot be sent: nothing would answer it, or correct what was guessed."""
        return self.waits_for_answers or self.component.guess is not None

    @property
    def full(self) -> bool:
        """Whether an answered batch is to be learnt from before the next: a window of one is then backpropagation."""
        return self.waits_for_answers and len({each.held.id for each in self.memory.arrived}) >= self.window

    def ask(self, batch: Batch, child: str | None = None) -> Activation:
        """The activation of a batch, to be sent to `child`, or to every child; remembered until answered."""
        held = self.hold(batch)
        for name in self.children if child is None else (child,):
            self.memory.ask(name, held)
        if self.stream is None:
            depth = self.method.depth
            return Activation(batch.id, self.version, batch.inputs, indices=batch.indices, depth=depth)
        _, a = self.late.forward(held)
        self.sieve.sent = a.shape[1:]
        x = (batch.inputs if self.stream.draws else batch.context) if self.method.context else None
        indices = None if x is None else batch.indices
        return Activation(batch.id, self.version, a.detach(), batch.labels, indices=indices, context=x)

    def answer(self, parent: str, asked: Activation, now: float) -> Target | None:
        """Our embedding of a parent's activation, today, with students in place of our own children (law 2).

        None if there is none: inputs of another shape, or not finite, which are counted as unfit; or not yet: one that
        shall come from further down (see `due`); in stream wiring a batch that waits for its turn to be trained on.
        """
        if self.stream is not None:
            trouble = self.stream.admit(parent, asked)
            if trouble is not None:
                (self.unfit if trouble == "unfit" else self.forgotten)["activation"] += 1
            return None
        x = self.sieve.inputs(asked.inputs, ours=asked.indices is not None and asked.context is None)
        if x is None:
            self.unfit["activation"] += 1
            return None
        held = Held(asked.id, (x,), None, parent, self.version, now)
        if self.deep.wants(asked):
            self.deep.begin(parent, asked, held, now)
            return None
        return self._answer(asked, held)

    def due(self, now: float) -> list[tuple[str, Target]]:
        """Answers that can be given now: they were to come from further down, and have, or have taken too long."""
        answers = []
        for errand in self.deep.due(now):
            errand.held.version, errand.held.at = self.version, now
            if (answer := self._answer(errand.asked, errand.held)) is not None:
                answers.append((errand.parent, answer))
        return answers

    def keep(self, letter: Letter, now: float) -> None:
        """Put a target or a late gradient by for the next step; one that nobody remembers is counted."""
        if self.deep.on:
            self.deep.back(letter.sender, letter.message.id)
        match letter.message:
            case Target() as target if self.deep.on and self.deep.owns(target):
                self._be_told(letter.sender, target)
            case Target() as target:
                held = self.memory.asked(letter.sender, target)
                if held is not None and self.sieve.answer(letter.sender, held, target):
                    self.memory.arrived.append(Arrived(letter.sender, held, target, letter.age or Age(0, 0.0), now))
                    if target.layer is not None and self.component.copies is not None:
                        self.component.copies.take(letter.sender, target.layer, target.version)
                elif held is not None:
                    self.unfit["target"] += 1
            case Gradient(gradient=gradient):
                held = self.memory.answered(letter.sender, letter.message)
                if held is not None and fits(gradient, held.shape):
                    self.memory.keep_late(Late(letter.sender, held, onto(self.device, gradient, self.dtype)))
                elif held is not None:
                    self.unfit["gradient"] += 1
            case Activation():
                raise ValueError("an activation is answered, not kept")

    def step(self, batch: Batch | None, now: float) -> Step | None:
        """Learn what is due, `batch` being new; None if nothing is, as in stream wiring while nothing has come."""
        lessons = self._lessons(self, batch)
        self._at_hand = None
        if not lessons:
            return None
        version, learnt, late = self.version, Learnt(), self._next_late()
        probed = self.probes.take(lessons, late, version)
        for lesson in lessons:
            self.teacher.teach(lesson, learnt, version)
        self.teacher.pull_late(late, learnt, version)
        layer = self.showing.due(version) if any(each.own and each.held.sender for each in lessons) else None
        self.descent.down(learnt.own, learnt.late)
        arrived = [each for lesson in lessons for each in lesson.arrived]
        own = [lesson.held for lesson in lessons if lesson.own]
        ages = [Age(version - each.held.version, now - each.held.at) for each in late]
        for each in arrived:
            if each.target.gradient is not None:
                ages.append(Age(version - each.held.version, self.memory.age(each, now).seconds))
        return Step(
            version=self.version,
            samples=sum(len(held.come[0]) for held in own),
            losses={name: value.detach() for name, value in learnt.losses.items()},
            on_child=any(self.method.targeted(each.held.id) or each.target.gradient is not None for each in arrived),
            owed=[*self._owed(arrived, own, learnt, version, now, layer), *(passed_on(late) if self.deep.on else ())],
            target_ages=[self.memory.age(each, now) for each in arrived if self.method.targeted(each.held.id)],
            gradient_ages=ages,
            updated=self.version > version,
            probes=probed,
        )

    def state(self, now: float) -> State:
        """All that a step depends on, by reference (`mach/going_on.py`)."""
        return state_of(self.descent, self.memory, now)

    def restore(self, state: State, now: float) -> None:
        """Go on from there.

        Raises:
            DataError: it does not fit our networks; nothing was changed.
        """
        incoming = None if self.stream is None else self.stream.incoming
        shape = self.sieve.sample_shape if incoming is None else torch.Size(incoming.activation)
        restore(self.descent, self.memory, state, now, shape)

    def hold(self, batch: Batch) -> Held:
        """The batch in our hands; one, however often it is asked about."""
        if self._at_hand is not None and self._at_hand[0] is batch:
            return self._at_hand[1]
        x, y = onto(self.device, batch.inputs), onto(self.device, batch.labels)
        come: tuple[Tensor, ...] = (x,)
        if batch.sender is not None:  # a parent's activation: its gradient is owed
            x = x.to(self.dtype).detach().requires_grad_(self.method.gradient_reach != "none")
            raw = batch.context
            come = (x,) if raw is None else (x, onto(self.device, raw, self.dtype if raw.is_floating_point() else None))
        held = Held(batch.id, come, y, batch.sender, self.version, 0.0)
        self._at_hand = (batch, held)
        return held

    def next_answered(self) -> list[list[Arrived]]:
        """Children's answers by batch: all that are at hand, or as many as are used together."""
        together = self.staleness.together
        if len({each.held.id for each in self.memory.arrived}) < together:
            return []
        answered = []
        while arrived := self.memory.next_arrived():
            answered.append(arrived)
            if len(answered) == together > 1:
                self.staleness.counts["accumulate"] += 1
                break
        return answered

    def _answer(self, asked: Activation, held: Held) -> Target | None:
        """Our embedding, today; None, and counted, if numbers so large come in that our networks make infinities."""
        net, e = self.late.answer(held) if asked.owes else self.late.said(self.examined, held)
        with torch.no_grad(), net.evaluating():
            z = net.classify(e.detach()) if self.method.targets == "logits" else None
        e = e.detach().cpu()  # judged where it is sent from: who reads a number off a device waits as long
        if not finite(e):
            self.unfit["activation"] += 1
            return None
        if asked.owes and held.sender is not None:
            held.shape = e.shape
            self.memory.answer(held.sender, held)
        return Target(asked.id, self.version, e, logits=z)

    def _be_told(self, child: str, target: Target) -> None:
        """A child's answer to what a parent wanted to be asked on."""
        self.memory.hear(child, target)
        held = self.deep.held(child, target)
        if held is None:
            self.memory.forgotten["target"] += 1
        elif not self.sieve.embedding(child, held, target):
            self.unfit["target"] += 1
        else:
            d = onto(self.device, target.embedding, self.dtype).detach().requires_grad_()
            held.told[child] = Told(target.id, target.version, d)
            self.deep.keep(child, target)

    def _next_late(self) -> list[Late]:
        late = self.memory.next_late(self.staleness.together)
        if late and self.staleness.together > 1:
            self.staleness.counts["accumulate"] += len(late) // self.staleness.together
        return late

    def _owed(
        self,
        arrived: Sequence[Arrived],
        own: Sequence[Held],
        learnt: Learnt,
        version: int,
        now: float,
        layer: Tensor | None,
    ) -> list[tuple[str, Gradient | Target]]:
        """∂L/∂d to the children whose targets were used, an answer to the parent whose batch was (law 3; what is not
        owed where heads look down the chain, `mach/below.py` says).
        """
        letters: list[tuple[str, Gradient | Target]] = []
        for each in arrived:
            if (each.child, each.held.id) in learnt.leaves and self.component.below is None:
                letters.append((each.child, Gradient(each.target.id, each.target.version, owed(learnt, each))))
        for held in own:
            if held.sender is None:
                continue
            gradient, held.come[0].grad = held.come[0].grad, None
            wanted = self.method.targets if self.method.targeted(held.id) else "none"
            e = None if wanted == "none" or learnt.e is None else learnt.e.detach()
            z = None if wanted != "logits" or learnt.z is None else learnt.z.detach()
            if e is not None and self.method.momentum_head != "chain":  # there nothing comes back
                held.shape, held.at = e.shape, now
                self.memory.answer(held.sender, held)
            nothing = torch.empty(0, dtype=self.dtype)
            letters.append((held.sender, Target(held.id, version, nothing if e is None else e, gradient, z, layer)))
        return letters


def _skip(learner: Learner, batch: Batch | None) -> list[Lesson]:
    """The batch answered first, with its targets; else the new one, with the students."""
    if arrived := learner.memory.next_arrived():
        return [Lesson(arrived[0].held, arrived)]
    return [] if batch is None else [Lesson(learner.hold(batch))]


def _at_once(learner: Learner, batch: Batch | None) -> list[Lesson]:
    """The new batch, which is answered at once; and what children's answers add to older ones, all or by `accumulate`.

    Without a new batch there is no step: answers wait for the next one, which their being sent has made room for.
    """
    if batch is None:
        return []
    answered = learner.next_answered()
    return [*(Lesson(arrived[0].held, arrived, own=False) for arrived in answered), Lesson(learner.hold(batch))]


def _when_answered(learner: Learner, batch: Batch | None) -> list[Lesson]:
    """The batch that every child has answered, the first first; without children, the new one."""
    if learner.children:
        arrived = learner.memory.next_arrived(everybody=True)
        return [Lesson(arrived[0].held, arrived)] if arrived else []
    return [] if batch is None else [Lesson(learner.hold(batch))]


LESSONS: Mapping[str, Callable[[Learner, Batch | None], list[Lesson]]] = {
    "skip": _skip,
    "none": _at_once,
    "hop": _at_once,
    "full": _when_answered,
}
"""What a step learns from: in skip wiring, and in stream wiring by `method.gradient_reach`."""
