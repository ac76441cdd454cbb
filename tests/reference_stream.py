"""Every stream recipe as a textbook would write it: one plain loop each, no bus, no learner, no process.

Sections are components' own modules with the house's initial weights; data order and optimiser are the house's, too.
At round t section k gets batch t from section k − 1, and whatever its neighbours said of it a round later. All loops
return the state of every component after so many rounds.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from configs.tree import Config
from mach.component import Component
from mach.messages import Batch
from mach.optimisers import optimiser_of

Network = Sequence[Component]
Batches = Iterator[Batch]


def judged(component: Component, e: Tensor, y: Tensor) -> Tensor:
    """CE against the labels."""
    return F.cross_entropy(component.head(e), y)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def backprop(config: Config, network: Network, batches: Batches, rounds: int) -> None:
    """All sections as one network; the gradients of `update_every` batches are averaged (AMPNet with W = 1)."""
    every = config.method.update_every
    optimisers = [optimiser_of(config.optimiser, section) for section in network]
    for t in range(rounds):
        batch = next(batches)
        a = batch.inputs
        for section in network:
            a = section.encoder(a)
        loss = judged(network[-1], network[-1].joiner(a), batch.labels)
        if t % every == 0:
            for optimiser in optimisers:
                optimiser.zero_grad()
        loss.backward()
        if t % every == every - 1:
            for section, optimiser in zip(network, optimisers, strict=True):
                if every > 1:
                    for parameter in section.parameters():
                        if parameter.grad is not None:
                            parameter.grad /= every
                optimiser.step()


def dgl(config: Config, network: Network, batches: Batches, rounds: int) -> None:
    """Every section on a head of its own; nothing comes back."""
    optimisers = [optimiser_of(config.optimiser, section) for section in network]
    for _ in range(rounds):
        batch = next(batches)
        x = batch.inputs
        for section, optimiser in zip(network, optimisers, strict=True):
            a = section.encoder(x)
            x = a.detach()
            descend(optimiser, judged(section, section.joiner(a), batch.labels))


def ddg(config: Config, network: Network, batches: Batches, rounds: int) -> None:
    """Section k of K, from 0, descends the gradient of batch t − (K − 1 − k), taken at its weights of that round."""
    optimisers = [optimiser_of(config.optimiser, section) for section in network]
    old: list[list[tuple[dict[str, Tensor], Tensor]]] = [[] for _ in network]  # weights and input by round
    passed: dict[tuple[int, int], Tensor] = {}  # (section, batch) → ∂L/∂a
    labels: list[Tensor] = []
    last = len(network) - 1
    for t in range(rounds):
        batch = next(batches)
        labels.append(batch.labels)
        x = batch.inputs
        for k, section in enumerate(network):
            weights = {name: weight.detach().clone() for name, weight in section.encoder.named_parameters()}
            old[k].append((weights, x.detach()))
            with torch.no_grad():
                x = section.encoder(x)
        for k in range(last, -1, -1):  # what section k + 1 found out in this round is used by k in the next
            at = t - (last - k)
            if at < 0:
                continue
            weights, x_old = old[k][at]
            section, leaf = network[k], x_old.clone().requires_grad_()
            then = {name: weight.requires_grad_() for name, weight in weights.items()}
            a = functional_call(section.encoder, then, (leaf,))
            optimisers[k].zero_grad()
            if k == last:
                judged(section, section.joiner(a), labels[at]).backward()
            else:
                a.backward(passed.pop((k, at)))
            for name, parameter in section.encoder.named_parameters():
                parameter.grad = then[name].grad
            optimisers[k].step()
            if k > 0:
                assert leaf.grad is not None
                passed[k - 1, at] = leaf.grad


def dni(config: Config, network: Network, batches: Batches, rounds: int) -> None:
    """Every section but the last descends a guess at once; the true gradient of the round before teaches the guess, as
    much as it is worth by `shrink`.
    """
    worth = config.staleness.shrink if "shrink" in config.staleness.policies else 1.0
    optimisers = [optimiser_of(config.optimiser, section) for section in network]
    before: list[tuple[Tensor, Tensor, Tensor] | None] = [None for _ in network]  # a, y, B·∂L/∂a
    for _ in range(rounds):
        batch = next(batches)
        x, size = batch.inputs, len(batch.labels)
        seen: list[Tensor] = []
        returned: list[Tensor] = []
        for section, optimiser, known in zip(network, optimisers, before, strict=True):
            leaf = x.detach().requires_grad_(section is not network[0])
            a = section.encoder(leaf)
            if section is network[-1]:
                loss = judged(section, section.joiner(a), batch.labels)
            else:
                assert section.guess is not None
                loss = (a * (section.guess(a.detach(), batch.labels).detach() / size)).sum()
                if known is not None:
                    loss = loss + worth * F.mse_loss(section.guess(known[0], known[1]), known[2])
            x = a.detach()
            seen.append(x)
            descend(optimiser, loss)
            if leaf.grad is not None:
                returned.append(leaf.grad)
        before = [
            *((a, batch.labels, size * g) for a, g in zip(seen, returned, strict=False)),
            None,
        ]


def mach_stream(config: Config, network: Network, batches: Batches, rounds: int) -> None:
    """Own loss with the student at once; a round later, the child's target and the gradient of the activation; one
    more, for the child, the gradient of that target. x comes along to every section.
    """
    optimisers = [optimiser_of(config.optimiser, section) for section in network]
    last, weight = len(network) - 1, config.loss
    before: list[tuple[list[Tensor], Tensor]] = []  # what came to every section a round ago, and labels
    answers: dict[int, tuple[Tensor, Tensor]] = {}  # section → its child's d and ∂L_child/∂a, of the round before
    for t in range(rounds):
        batch = next(batches)
        y, x = batch.labels, batch.inputs
        now: list[tuple[list[Tensor], Tensor]] = []
        said: dict[int, tuple[Tensor, Tensor]] = {}
        owed: Tensor | None = None  # by the parent, in this round, for the target of the round before
        for k, (section, optimiser) in enumerate(zip(network, optimisers, strict=True)):
            leaf = x.detach().requires_grad_(k > 0)
            come = [leaf] if k == 0 else [leaf, batch.inputs]
            a = section.encoder(*come)
            e = section.joiner(torch.cat([a, *(student(a) for student in section.students.values())], dim=-1))
            total = judged(section, e, y)
            d = None
            if k < last and t > 0:
                d, g = answers[k]
                d = d.clone().requires_grad_()
                a_old = section.encoder(*before[k][0])
                (student,) = section.students.values()
                total = total + weight.child * judged(section, section.joiner(torch.cat([a_old, d], -1)), before[k][1])
                total = total + weight.distill * F.mse_loss(student(a_old), d.detach()) + (a_old * g).sum()
            if k > 0 and t > 0:
                assert owed is not None
                a_old = section.encoder(*before[k][0])
                s = [student(a_old) for student in section.students.values()]
                total = total + weight.late * (section.joiner(torch.cat([a_old, *s], -1)) * owed).sum()
            x = a.detach()
            descend(optimiser, total)
            owed = None if d is None else d.grad
            if k > 0:
                assert leaf.grad is not None
                said[k - 1] = (e.detach(), leaf.grad)
            now.append(([each.detach() for each in come], y))
        before, answers = now, said


TEXTBOOK: dict[str, Callable[[Config, Network, Batches, int], None]] = {
    "mach-hop": mach_stream,
    "dgl": dgl,
    "ddg": ddg,
    "dni": dni,
    "ampnet": backprop,
    "backprop": backprop,
}
"""By recipe, with a window of one; `ddg` with one that leaves every section its delay."""
