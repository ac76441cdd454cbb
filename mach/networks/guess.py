"""A local model of the gradient of an activation (DNI, arXiv 1608.05343): used at once, taught by the true one later.

What it gives is the gradient per sample, g·B, whose scale does not depend on the size of the batch. Its last layer
begins at zero, as in the paper: an untaught guess is no gradient at all.

Shapes: B batch, D numbers of an activation, K classes; for sequences [B, T, …].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 256
"""Width of its hidden layer."""


class Guess(nn.Module):
    """(a [B, D], y [B]) → a guess of B·∂L/∂a [B, D]."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.hidden = nn.Linear(features + classes, HIDDEN)
        self.out = nn.Linear(HIDDEN, features)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        """From the activation and what it should become."""
        told = torch.cat([a, F.one_hot(y, self.classes).to(a.dtype)], dim=-1)
        guessed: Tensor = self.out(F.gelu(self.hidden(told)))
        return guessed
