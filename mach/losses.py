"""method.md's loss terms, one a function. All are means over the batch, so a gradient does not grow with B.

Shapes: B batch, E embedding, K classes. For sequences read [B, T, …] for [B, …]: every place counts like a sample.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F


def mse(s: Tensor, d: Tensor) -> Tensor:
    """Mean squared difference of imitation s and target d, both [B, E]. A mean where the 2019 code summed."""
    return F.mse_loss(s, d)


def cosine(s: Tensor, d: Tensor) -> Tensor:
    """1 − cos(s, d), averaged over B: the direction alone."""
    return (1.0 - F.cosine_similarity(s, d, dim=-1)).mean()


def normalised(s: Tensor, d: Tensor) -> Tensor:
    """Squared distance of s/‖s‖ and d/‖d‖, averaged over B: 2·(1 − cos), with gradients of unit-length vectors."""
    return (F.normalize(s, dim=-1) - F.normalize(d, dim=-1)).square().sum(dim=-1).mean()


DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse,
    "cosine": cosine,
    "normalised": normalised,
}
"""`loss.distance`: distill(s, stopgrad(d))."""


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """CE of logits z [B, K] and labels y [B]."""
    return F.cross_entropy(z.flatten(0, -2), y.flatten())


def distil_logits(z_s: Tensor, z_d: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(z_d/T) ‖ softmax(z_s/T)), both [B, K], averaged over B (arXiv 1503.02531, section 2)."""
    s = F.log_softmax(z_s.flatten(0, -2) / temperature, dim=-1)
    d = F.log_softmax(z_d.flatten(0, -2) / temperature, dim=-1)
    return temperature**2 * F.kl_div(s, d, reduction="batchmean", log_target=True)


def pull(e: Tensor, g: Tensor) -> Tensor:
    """⟨e, g⟩, whose gradient is g pulled back through what made e: a parent's late gradient g [B, E] of a mean loss."""
    return (e * g).sum()
