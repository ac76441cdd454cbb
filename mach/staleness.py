"""What is done about a gradient that comes late: method.md's policies, one a function, put together by name.

A policy works at one of four places; those of one place are applied in the order in which they are listed:

    on the message    bound, discount, shrink    whether a gradient g of lag τ is used, and by what factor
    on the weights    compensate, clip           the gradient of the weights that g came to, against the own loss's
    on the answer     predict                    which weights answer, or send an activation on
    on the update     accumulate                 how many late gradients are averaged before they are used

How a late gradient becomes one of the weights, by `recompute` or `stash`, is `mach/late.py`'s. Knows no message and
no network: numbers and lists of tensors. Everything that a policy did is counted in `Staleness.counts`.

Lags are in versions. Lists of tensors run over a component's parameters in their order.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.tree import Staleness as Settings


def within(lag: int, most: int) -> bool:
    """`bound`: whether lag τ may be used, τ ≤ τ_max (SSP, Ho et al., NIPS 2013; AMPNet, arXiv 1705.09786)."""
    return lag <= most


def discount(lag: int, power: float) -> float:
    """1 / max(1, τ)^p; p = 1 in the staleness-aware SGD of arXiv 1511.05950."""
    return float(max(1, lag) ** -power)


def anneal(lag: int, version: int, horizon: int) -> float:
    """τ^−(1 − min(t/T, 1)) at version t: lags weigh less at first, fully from T on (PipeMare, arXiv 1910.05124).

    There it scales the learning rate; for the gradient of one step that is the same factor. τ counts as 1 at least.
    """
    return float(max(1, lag) ** -(1.0 - min(version / horizon, 1.0)))


def ahead(weight: Tensor, before: Tensor, lag: float) -> Tensor:
    """`predict`: ŵ = w + τ·(w − w_prev), weights τ steps on if all go as the last (SpecTrain, arXiv 1809.02839)."""
    return weight + lag * (weight - before)


def compensated(gradient: Tensor, now: Tensor, then: Tensor, strength: float) -> Tensor:
    """`compensate`: g + λ·g⊙g⊙(w_now − w_then), a gradient of old weights for today's (DC-ASGD, arXiv 1609.08326)."""
    return gradient + strength * gradient * gradient * (now - then)


def clip_factor(late: Sequence[Tensor], own: Sequence[Tensor], ratio: float) -> float:
    """`clip`: what brings ‖late‖ down to `ratio`·‖own‖; 1 if it is no longer, or nothing is there to compare."""
    if not late or not own:
        return 1.0
    most, norm = ratio * _norm(own), _norm(late)
    return most / norm if norm > most else 1.0


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in tensors])))


@dataclass(frozen=True, slots=True)
class Correction:
    """What policies on the weights are given besides the late gradient."""

    own: Sequence[Tensor]
    """The own loss's gradient of every parameter; empty if there was no own loss in this step."""
    now: Sequence[Tensor]
    """Today's weights."""
    then: Sequence[Tensor]
    """Those that the late gradient was computed with; today's by recompute."""


Scale = Callable[[Settings, int, int], float | None]
"""(settings, lag, version) → the factor of a late gradient; None refuses it."""
Correct = Callable[[Settings, Sequence[Tensor], Correction], list[Tensor]]
"""(settings, late gradient, what else there is) → the gradient that is used."""


def _bound(settings: Settings, lag: int, version: int) -> float | None:
    return 1.0 if within(lag, settings.max_versions) else None


def _discount(settings: Settings, lag: int, version: int) -> float | None:
    if settings.discount == "anneal":
        return anneal(lag, version, settings.horizon)
    return discount(lag, settings.power)


def _shrink(settings: Settings, lag: int, version: int) -> float | None:
    """β per hop: every component that a gradient comes to scales it once (FDG, arXiv 1906.09108)."""
    return settings.shrink


def _compensate(settings: Settings, late: Sequence[Tensor], known: Correction) -> list[Tensor]:
    rows = zip(late, known.now, known.then, strict=True)
    return [compensated(g, now, then, settings.compensate) for g, now, then in rows]


def _clip(settings: Settings, late: Sequence[Tensor], known: Correction) -> list[Tensor]:
    factor = clip_factor(late, known.own, settings.clip)
    return [g * factor for g in late]


ON_MESSAGE: Mapping[str, Scale] = {"bound": _bound, "discount": _discount, "shrink": _shrink}
ON_WEIGHTS: Mapping[str, Correct] = {"compensate": _compensate, "clip": _clip}
APART = ("predict", "accumulate")
"""Policies that are one of their kind."""


class Staleness:
    """The policies of one component, as its settings name them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """By policy: gradients that `bound` refused, that `discount` and `shrink` scaled, that `compensate` and `clip`
        changed; activations and answers that `predict` made with other weights than today's; means of `accumulate`."""
        names = settings.policies
        self._scales = [(name, ON_MESSAGE[name]) for name in names if name in ON_MESSAGE]
        self._corrections = [(name, ON_WEIGHTS[name]) for name in names if name in ON_WEIGHTS]
        self.predicts = "predict" in names
        """Whether answers are given with weights of the future."""
        self.together = settings.accumulate if "accumulate" in names else 1
        """Late gradients of one kind that are averaged before they are used."""
        self.lags: tuple[float, int] = (0.0, 0)
        """Sum and count of the lags of all gradients so far."""

    @property
    def corrects(self) -> bool:
        """Whether late gradients need a backward pass of their own, apart from the own loss's."""
        return bool(self._corrections)

    @property
    def expected_lag(self) -> float:
        """E[τ]: mean of the lags of all gradients so far, 0 before the first."""
        total, count = self.lags
        return total / count if count else 0.0

    def scale(self, lag: int, version: int) -> float | None:
        """The factor of a late gradient of lag τ that is used in the step to `version` + 1; None: it is refused."""
        self.lags = (self.lags[0] + lag, self.lags[1] + 1)
        factor = 1.0
        for name, policy in self._scales:
            part = policy(self.settings, lag, version)
            if part is None:
                self.counts[name] += 1
                return None
            self._count(name, part != 1.0)
            factor *= part
        return factor

    def correct(self, late: Sequence[Tensor], known: Correction) -> list[Tensor]:
        """The gradient of the weights that is used in place of `late`."""
        changed = list(late)
        for name, policy in self._corrections:
            before, changed = changed, policy(self.settings, changed, known)
            self._count(name, any(not torch.equal(a, b) for a, b in zip(before, changed, strict=True)))
        return changed

    def _count(self, name: str, did: bool) -> None:
        if did:
            self.counts[name] += 1
