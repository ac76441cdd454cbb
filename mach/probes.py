"""What staleness does, measured: method.md's numbers beyond ages, one a function, and who takes them when.

    weight_gap   RMS of w_t − w_{t−τ}, over all weights
    fresh        one late gradient message pulled through the weights that answered and through today's: the cosine of
                 the two gradients of the weights, and the norm of the late one over the fresh one's
    agreement    cosine of a parent's, and of a child's, late gradient with the own loss's, on weights that both reach
    cka          linear CKA of the child's embedding and ours over students, on one batch
    r2           R² of the student's imitation of the child's embedding
    reliance     what the loss rises by, in nats, with a child's embedding zeroed, or shuffled across the batch
    salience     what a child is worth to us (`mach/salience.py`)
    copies       versions that a child has moved on since it showed its weights to our head; what it shows of those
                 below it is older by a hop

What a neighbour would say today is not known here: `fresh` is about our own weights alone. Laws: every probe works on
copies of the weights and leaves generators as they were, so that training is the same to the last bit with and
without; what is not defined (no variance, a gradient of zero) is left out, and nothing else is ever made up. Gradients
are those of training mode, all that is asked of a child's answer is asked in evaluation mode (`mach/modes.py`).

Shapes: B batch, E embedding, K classes; for sequences every place counts like a sample.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.tree import Probes as Settings
from configs.tree import Staleness as StalenessSettings
from mach import salience
from mach.component import Component
from mach.draws import aside
from mach.late import Held, Recompute
from mach.lesson import Arrived, Late, Learnt, Lesson, Teacher
from mach.losses import cross_entropy
from mach.onto import onto
from mach.staleness import Staleness

ON_GRADIENTS = ("weight_gap", "fresh", "agreement")
"""Probes of late gradients."""
PATIENCE = 64
"""Versions after which old weights are given up, though a gradient may still be late of them."""

TeacherOf = Callable[..., Teacher]
"""(component, late=way, staleness=policies) → the learner's way from lessons to terms, for such a component."""
Gradients = Sequence[Tensor | None]
"""Of every parameter, in their order; None where a term does not reach it."""


def rms_gap(now: Sequence[Tensor], then: Sequence[Tensor]) -> float:
    """√(mean (w_t − w_{t−τ})²) over all weights."""
    squares = torch.stack([(a - b).square().sum() for a, b in zip(now, then, strict=True)]).sum()
    return math.sqrt(float(squares) / sum(each.numel() for each in now))


def cosine(one: Gradients, other: Gradients) -> float:
    """Of two gradients, over the parameters that both reach; NaN if one of them is zero there."""
    both = [(a.flatten(), b.flatten()) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not both:
        return math.nan
    a, b = (torch.cat(parts) for parts in zip(*both, strict=True))
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0.0 else math.nan


def norm_ratio(late: Gradients, fresh: Gradients) -> float:
    """‖late‖ / ‖fresh‖; NaN if the fresh one is zero."""
    below = norm(fresh)
    return norm(late) / below if below > 0.0 else math.nan


def norm(gradients: Gradients) -> float:
    """Over all parameters that are reached."""
    return math.sqrt(sum(float(each.square().sum()) for each in gradients if each is not None))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖) of centred x, y [B, E], Frobenius norms (arXiv 1905.00414, section 3).

    NaN if either does not vary.
    """
    x, y = (each.flatten(0, -2) - each.flatten(0, -2).mean(dim=0) for each in (x, y))
    below = float((x.T @ x).norm() * (y.T @ y).norm())
    return float((y.T @ x).square().sum()) / below if below > 0.0 else math.nan


def r_squared(s: Tensor, d: Tensor) -> float:
    """1 − Σ(d − s)² / Σ(d − mean d)², the mean over the batch, of imitation s and target d [B, E].

    0: no better than the mean of the batch. NaN if d does not vary.
    """
    d, s = d.flatten(0, -2), s.flatten(0, -2)
    below = float((d - d.mean(dim=0)).square().sum())
    return 1.0 - float((d - s).square().sum()) / below if below > 0.0 else math.nan


def bytes_per_sample(traffic: Mapping[str, int], samples: int) -> dict[str, float]:
    """By peer, bytes sent to it over samples trained on; nothing before the first sample."""
    return {peer: count / samples for peer, count in traffic.items()} if samples else {}


def idle_share(waited_s: float, elapsed_s: float) -> float:
    """Share of the time of training spent waiting for letters with nothing to train on; NaN before any time passed."""
    return min(1.0, waited_s / elapsed_s) if elapsed_s > 0.0 else math.nan


def reliance(loss: Callable[[Mapping[str, Tensor]], Tensor], d: Mapping[str, Tensor]) -> dict[str, float]:
    """By `zeroed/child` and `shuffled/child`, how much `loss` of targets [B, E] rises without that child's.

    Shuffled: every sample gets the target of the one before it, so that none keeps its own (B > 1).
    """
    base = float(loss(d))
    without: dict[str, Tensor] = {}
    for child, each in d.items():
        without[f"zeroed/{child}"] = torch.zeros_like(each)
        if len(each) > 1:
            without[f"shuffled/{child}"] = each.roll(1, dims=0)
    return {name: float(loss({**d, name.partition("/")[2]: other})) - base for name, other in without.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Weights as they were."""

    version: int
    net: Component


class Probes:
    """Of one component: takes those that are switched on, each as soon as `every_steps` went by since the last time."""

    def __init__(
        self,
        settings: Settings,
        component: Component,
        teacher_of: TeacherOf,
        expects: Callable[[int], bool],
        heard: Mapping[str, int],
    ) -> None:
        """`expects`: whether a gradient may still come of what was made at a version. `heard`: by child, its newest."""
        self.settings = settings
        self.component = component
        self._teacher_of = teacher_of
        self._expects = expects
        self._heard = heard
        self._due: dict[str, int] = {}
        self._old: Snapshot | None = None
        self.on = any(getattr(settings, name) for name in (*ON_GRADIENTS, *ON_CHILDREN))
        """Whether any is that needs our weights."""

    def take(self, lessons: Sequence[Lesson], late: Sequence[Late], version: int) -> dict[str, float]:
        """What is due of this step from `version`, before the weights change; nothing that is not finite."""
        found = self._of_copies(version)
        if not self.on:
            return found
        device = next(self.component.parameters()).device
        with aside(device=device):
            net: list[Component] = []

            def today() -> Component:  # one copy, if any
                if not net:
                    net.append(copy.deepcopy(self.component))
                return net[0]

            # of a child first: what others compute in training mode moves the copy's statistics
            told = next((each for each in lessons if self.component.students and targets(each)), None)
            for name, probe in ON_CHILDREN.items():
                if told is not None and self._is_due(name, version):
                    with today().evaluating():
                        found |= self._told(name, probe(today(), told, self.teacher_of(today())), version)
            found |= self._of_old_weights(today, lessons, late, version)
            come = bool(late) or any(each.target.gradient is not None for lesson in lessons for each in lesson.arrived)
            if come and self._is_due("agreement", version):
                found |= self._told("agreement", self._agreement(today(), lessons, late, version), version)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def teacher_of(self, net: Component) -> Teacher:
        """For a copy: every gradient counts as it came, whatever staleness policies there are."""
        plain = Staleness(StalenessSettings())
        return self._teacher_of(net, late=Recompute(net, plain), staleness=plain)

    def _of_copies(self, version: int) -> dict[str, float]:
        """Of every child that has shown something."""
        ours = self.component.copies
        if ours is None or not self._is_due("copies", version):
            return {}
        rows = zip(ours.children_names, ours.shown.tolist(), strict=True)
        ages = {child: float(max(0, self._heard.get(child, then) - then)) for child, then in rows if then >= 0}
        return self._told("copies", ages, version)

    def _is_due(self, name: str, version: int) -> bool:
        return bool(getattr(self.settings, name)) and version >= self._due.get(name, 0)

    def _told(self, name: str, values: Mapping[str, float], version: int) -> dict[str, float]:
        """Under the probe's name; it is due again later, even if it had nothing to tell of what was at hand."""
        self._due[name] = version + self.settings.every_steps
        return {f"{name}/{part}": value for part, value in values.items()}

    def _of_old_weights(
        self, today: Callable[[], Component], lessons: Sequence[Lesson], late: Sequence[Late], version: int
    ) -> dict[str, float]:
        """Old weights kept for it meet the first gradient that is late of them."""
        if not (self.settings.weight_gap or self.settings.fresh):
            return {}
        found: dict[str, float] = {}
        old = self._old
        if old is not None and old.version < version:
            arrived = [each for lesson in lessons for each in lesson.arrived if each.target.gradient is not None]
            mine = [each for each in arrived if each.held.version == old.version]
            theirs = [each for each in late if each.held.version == old.version]
            if mine or theirs:
                found = self._compare(today(), old, mine, theirs, version)
                self._old, self._due["old"] = None, version + self.settings.every_steps
            elif version - old.version > PATIENCE or not self._expects(old.version):
                self._old = None
        leaves = any(lesson.own and lesson.held.sender is not None for lesson in lessons)  # it is answered by this step
        if self._old is None and version >= self._due.get("old", 0) and (leaves or self._expects(version)):
            self._old = Snapshot(version, copy.deepcopy(self.component))
        return found

    def _compare(
        self, net: Component, old: Snapshot, arrived: Sequence[Arrived], late: Sequence[Late], version: int
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.settings.weight_gap:
            gap = rms_gap(*([each.detach() for each in of.parameters()] for of in (net, old.net)))
            found = {"weight_gap/rms": gap, "weight_gap/versions": float(version - old.version)}
        if self.settings.fresh:
            lessons = [Lesson(each.held, [each], own=False) for each in arrived]
            then, now = (self._late_gradient(of, lessons, late, version) for of in (old.net, net))
            found |= {"fresh/cosine": cosine(then, now), "fresh/norm_ratio": norm_ratio(then, now)}
        return found

    def _late_gradient(
        self, net: Component, lessons: Sequence[Lesson], late: Sequence[Late], version: int
    ) -> list[Tensor | None]:
        """Of the weights of `net`, what the late terms come to."""
        learnt = self._learnt(net, lessons, late, version)
        return gradients(learnt.late, net)

    def _learnt(self, net: Component, lessons: Sequence[Lesson], late: Sequence[Late], version: int) -> Learnt:
        """The terms of these lessons and late gradients, on `net`; nothing computed is left on what is held."""
        teacher, learnt = self.teacher_of(net), Learnt()
        for lesson in lessons:
            teacher.teach(anew(lesson), learnt, version)
        teacher.pull_late([replace(each, held=bare(each.held)) for each in late], learnt, version)
        return learnt

    def _agreement(
        self, net: Component, lessons: Sequence[Lesson], late: Sequence[Late], version: int
    ) -> dict[str, float]:
        """Cosines with the own loss's gradient, of those late ones that there are."""
        taught = self._learnt(net, lessons, (), version)
        pulled = self._learnt(net, (), late, version)
        own = gradients(taught.own, net)
        parts = {"child": taught.late, "parent": pulled.late}
        if taught.own is None:
            return {}
        return {name: cosine(gradients(term, net), own) for name, term in parts.items() if term is not None}


def targets(lesson: Lesson) -> list[Arrived]:
    """Answers that are more than receipts (`method.targets_every`)."""
    return [each for each in lesson.arrived if each.target.embedding.numel()]


def bare(held: Held) -> Held:
    """The same without what was computed of it already."""
    return replace(held, net=None, a=None, e=None)


def anew(lesson: Lesson) -> Lesson:
    """The same lesson, on a bare batch."""
    held = bare(lesson.held)
    return replace(lesson, held=held, arrived=[replace(each, held=held) for each in lesson.arrived])


def gradients(term: Tensor | None, net: Component) -> list[Tensor | None]:
    """Of every parameter of `net`; none reaches any where there is no term, or one that is frozen."""
    parameters = list(net.parameters())
    learning = [each for each in parameters if each.requires_grad]
    if term is None or not term.requires_grad or not learning:
        return [None] * len(parameters)
    found = iter(torch.autograd.grad(term, learning, retain_graph=True, allow_unused=True))
    return [next(found) if each.requires_grad else None for each in parameters]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One answered batch through a network: activation [B, D], imitations s and targets d by child [B, E]."""

    a: Tensor
    s: Mapping[str, Tensor]
    d: Mapping[str, Tensor]


def seen(net: Component, lesson: Lesson, teacher: Teacher) -> Seen:
    """Without graphs."""
    with torch.no_grad():
        a = net.activation(*(each.detach() for each in lesson.held.come))
        s = net.imitate(a)
    d = {each.child: onto(a.device, each.target.embedding, teacher.dtype).detach() for each in lesson.arrived}
    return Seen(a, s, d)


def loss_of(net: Component, view: Seen, y: Tensor) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Cross-entropy of the labels as a function of the targets; students stand in for the other children."""
    return lambda d: cross_entropy(net.classify(net.embed(view.a, {**view.s, **d})), y)


def _cka(net: Component, lesson: Lesson, teacher: Teacher) -> dict[str, float]:
    view = seen(net, lesson, teacher)
    with torch.no_grad():
        e = net.embed(view.a, view.s)
    return {child: linear_cka(e, d) for child, d in view.d.items()}


def _r2(net: Component, lesson: Lesson, teacher: Teacher) -> dict[str, float]:
    view = seen(net, lesson, teacher)
    return {child: r_squared(view.s[child], d) for child, d in view.d.items()}


def _reliance(net: Component, lesson: Lesson, teacher: Teacher) -> dict[str, float]:
    if lesson.held.labels is None or not teacher.judges:
        return {}
    view = seen(net, lesson, teacher)
    with torch.no_grad():
        return reliance(loss_of(net, view, lesson.held.labels), view.d)


def _salience(net: Component, lesson: Lesson, teacher: Teacher) -> dict[str, float]:
    if lesson.held.labels is None or not teacher.judges:
        return {}
    view = seen(net, lesson, teacher)
    return salience.of_children(net, view.a, view.s, view.d, lesson.held.labels)


ON_CHILDREN: Mapping[str, Callable[[Component, Lesson, Teacher], Mapping[str, float]]] = {
    "cka": _cka,
    "r2": _r2,
    "reliance": _reliance,
    "salience": _salience,
}
"""Probes of a batch that children have answered."""
