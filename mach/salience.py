"""What a child is worth to its parent: method.md's four measures, one a function. Knows no message and no optimiser.

    pruning      gradient × input: what the loss would change by, in first order, without each number of the target
    gradient     mean |∂ℓ/∂d|: how much the loss listens to the target
    weight       mean |w| of the weights by which the joiner takes the target
    integrated   integrated gradients: nats by which own input and every target make the labels likelier than nothing

Shapes: B batch, D numbers of an activation, E embedding, K classes; for sequences every place counts like a sample.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mach.component import Component
from mach.losses import cross_entropy

POINTS = 16
"""Of the path that integrated gradients are summed along; on the midpoints the error falls with its square."""
OWN = "own"
"""The name of the component's own activation among those of its children, which are never called so."""


def pruning(d: Tensor, g: Tensor) -> float:
    """Σ_e |Σ_b d·∂L/∂d| of a target d [B, E] and the gradient g of a loss that is a mean over the batch.

    Each term is the first-order change of L when one number of the embedding is cut to zero (arXiv 1611.06440,
    equation 7, there a mean over the units).
    """
    return float((d * g).flatten(0, -2).sum(dim=0).abs().sum())


def absolute_gradient(g: Tensor) -> float:
    """Mean over samples and units of |∂ℓ_b/∂d|, of the gradient g [B, E] of L = mean of ℓ_b."""
    return float(g.abs().sum()) / g.shape[-1]


def weight_magnitude(weight: Tensor, before: int, width: int) -> float:
    """Mean |w| of the columns before … before + width − 1 of weight [outputs, inputs]."""
    return float(weight[:, before : before + width].abs().mean())


def integrated(value: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor], points: int) -> list[Tensor]:
    """Integrated gradients of a 0-d `value` for each of `inputs`, along the line from zeros (arXiv 1703.01365, eq. 1).

    The integral is the mean over the midpoints of `points` equal parts. All of them sum to value(inputs) − value(0),
    up to that mean's error; of a line or a parabola it has none.
    """
    sums = [torch.zeros_like(each) for each in inputs]
    for point in range(points):
        share = (point + 0.5) / points
        scaled = [(share * each).detach().requires_grad_() for each in inputs]
        found = torch.autograd.grad(value(scaled), scaled, allow_unused=True)
        sums = [total if part is None else total + part for total, part in zip(sums, found, strict=True)]
    return [each * total / points for each, total in zip(inputs, sums, strict=True)]


def of_children(
    net: Component, a: Tensor, s: Mapping[str, Tensor], d: Mapping[str, Tensor], y: Tensor
) -> dict[str, float]:
    """All four of every child whose target is in d, named `measure/child`; activation a [B, D], s and d [B, E].

    Students stand in for children without a target. `integrated` also tells of `own`.
    """
    names = list(d)
    leaves = {child: each.detach().requires_grad_() for child, each in d.items()}
    loss = cross_entropy(net.classify(net.embed(a, {**s, **leaves})), y)
    owed = dict(zip(names, torch.autograd.grad(loss, [leaves[child] for child in names]), strict=True))
    found: dict[str, float] = {}
    for child in names:
        found[f"pruning/{child}"] = pruning(d[child], owed[child])
        found[f"gradient/{child}"] = absolute_gradient(owed[child])
    found |= {f"weight/{child}": each for child, each in weights(net, d).items()}

    def likelihood(inputs: Sequence[Tensor]) -> Tensor:
        own, *targets = inputs
        return -cross_entropy(net.classify(net.embed(own, {**s, **dict(zip(names, targets, strict=True))})), y)

    parts = integrated(likelihood, [a, *(d[child] for child in names)], POINTS)
    found |= {f"integrated/{name}": float(part.sum()) for name, part in zip((OWN, *names), parts, strict=True)}
    return found


def weights(net: Component, d: Mapping[str, Tensor]) -> dict[str, float]:
    """`weight_magnitude` by child. A joiner takes targets last, in the students' order: they are the last columns of
    its first linear layer. Nothing of a joiner without such a layer; nor of logits, which go past it (`Tally`).
    """
    order = net.children_names
    width = next(iter(d.values())).shape[-1] - (0 if net.tally is None else net.tally.classes)
    layer = next((each for each in net.joiner.modules() if isinstance(each, nn.Linear)), None)
    if layer is None or layer.in_features < width * len(order):
        return {}
    first = layer.in_features - width * len(order)
    return {child: weight_magnitude(layer.weight.detach(), first + width * order.index(child), width) for child in d}
