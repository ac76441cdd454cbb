"""From terms to weights: backward passes, policies on the weights, and the optimiser's step when enough is gathered.

Knows terms as 0-d tensors with their graphs, and nothing of where they come from.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mach.component import Component
from mach.late import Recompute, taken
from mach.staleness import Staleness
from mach.state import unbounded_of


class Descent:
    """One component's way down."""

    def __init__(
        self,
        component: Component,
        optimiser: torch.optim.Optimizer,
        late: Recompute,
        staleness: Staleness,
        schedule: Callable[[int], float] | None,
        update_every: int,
        average: float = 0.0,
        apart: torch.optim.Optimizer | None = None,
    ) -> None:
        """`average`: decay of a moving average of the weights, 0 for none. `apart`: steps along late gradients alone,
        after `optimiser`, which then has the own ones; each keeps its moments.

        `schedule` maps the version to the learning rate; None leaves the optimiser's own.
        """
        self.component = component
        self.optimiser = optimiser
        self.late = late
        self.staleness = staleness
        self.schedule = schedule
        self.update_every = update_every
        self.apart = apart
        self.late_gathered: list[Tensor] = []
        """Of every parameter, what `apart` will step along; [] for nothing."""
        self.unbounded = unbounded_of(component)
        """Buffers in which an infinity is meant, since it was there from the beginning."""
        self.average = average_of(component, average)
        """The moving average of the weights, for examinations."""
        self.version = 0
        """Optimiser steps taken."""
        self.gathered = 0
        """Gradients in the parameters that no step was taken on yet."""

    def go_on(self, version: int, gathered: int) -> None:
        """From another life's version; what it had gathered is in the parameters' gradients."""
        self.version, self.gathered = version, gathered
        self.late.stepped(version)

    def down(self, own: Tensor | None, late: Tensor | None) -> None:
        """Along the own terms and those of late gradients; nothing happens without either."""
        if own is None and late is None:
            return
        if self.schedule is not None:
            for optimiser in (self.optimiser, self.apart):
                for group in () if optimiser is None else optimiser.param_groups:
                    group["lr"] = self.schedule(self.version)
        if self.gathered == 0:
            self.optimiser.zero_grad(set_to_none=True)
        if late is not None and (self.staleness.corrects or self.apart is not None):
            self._correct(own, late)
        else:
            terms = [term for term in (own, late) if term is not None]
            self._back(terms[0] if len(terms) == 1 else terms[0] + terms[1])
            self.late.gather()
        self.late.used()
        self.gathered += 1
        if self.gathered == self.update_every:
            self._update()

    def _back(self, total: Tensor) -> None:
        back(total, keep=self.late.keeps_graphs)

    def _correct(self, own: Tensor | None, late: Tensor) -> None:
        """A pass for either kind: policies on the weights see late gradients alone, and the own one beside them.

        Late ones go to `late_gathered` where they have an optimiser of their own, else to the same place.
        """
        carried = taken(self.component) if any(each.grad is not None for each in self.component.parameters()) else []
        mine: list[Tensor] = []
        if own is not None:
            back(own, keep=True)
            self.late.gather()
            mine = taken(self.component)
        self._back(late)
        corrected = [self.staleness.correct(part, known) for part, known in self.late.parts(mine)]
        if self.apart is None:
            total = added(carried, mine, *corrected)
        else:
            total, self.late_gathered = added(carried, mine), added(self.late_gathered, *corrected)
        if total:
            for parameter, gradient in zip(self.component.parameters(), total, strict=True):
                parameter.grad = gradient if parameter.requires_grad else None  # what is frozen does not decay either

    def _update(self) -> None:
        """The optimiser's step, down the mean of what was gathered."""
        if self.gathered > 1:
            for parameter in self.component.parameters():
                if parameter.grad is not None:
                    parameter.grad /= self.gathered
        self.late.stepping()
        self.optimiser.step()
        if self.apart is not None and self.late_gathered:
            for parameter, gradient in zip(self.component.parameters(), self.late_gathered, strict=True):
                parameter.grad = gradient / self.gathered if parameter.requires_grad else None
            self.apart.step()
            self.late_gathered = []
        if self.average is not None:
            follow(self.average, self.component, self.unbounded)
        self.gathered = 0
        self.version += 1
        self.late.stepped(self.version)


def average_of(network: nn.Module, decay: float) -> AveragedModel | None:
    """A moving average of a network's weights; None for a decay of 0."""
    if decay == 0.0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def follow(average: AveragedModel, network: nn.Module, unbounded: Collection[str]) -> None:
    """One step of it. `unbounded`: buffers with infinities, as in a mask, which have no mean.

    As `update_parameters`, which takes the number of steps to the device each time, for a mean that does not ask for
    it, and has the host wait.
    """
    step: Any = average.multi_avg_fn
    begun = bool(average.n_averaged > 0)
    rows = dict[torch.dtype, tuple[list[Tensor], list[Tensor]]]()
    for mean, now in zip(*([*of.parameters(), *of.buffers()] for of in (average.module, network)), strict=True):
        if not begun:
            mean.detach().copy_(now)
        for row, each in zip(rows.setdefault(mean.dtype, ([], [])), (mean, now), strict=True):
            row.append(each.detach())
    for means, nows in rows.values() if begun else ():
        step(means, nows, average.n_averaged)
    average.n_averaged += 1
    for name in unbounded:
        mean, now = (each.get_buffer(name) for each in (average.module, network))
        mean.copy_(torch.where(mean.isfinite(), mean, now))


def back(total: Tensor, *, keep: bool) -> None:
    """A backward pass, which keeps the graph or not; there is none where all that the terms went through is frozen."""
    if total.requires_grad:
        torch.autograd.backward(total, retain_graph=keep)


def added(*parts: list[Tensor]) -> list[Tensor]:
    """The sum of gradients of every parameter, of those parts that are there; [] if none is."""
    there = [part for part in parts if part]
    return [torch.stack(rows).sum(dim=0) for rows in zip(*there, strict=True)]
