"""A data set in memory: what every source makes. Shapes: N samples; T places of a sequence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor

ROWS, BYTES = 1024, 1 << 24
"""Most of a tensor that its digest is made of."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Inputs scaled for training, and labels 0 … classes − 1: one a sample, or one for every place of a sequence."""

    train_inputs: Tensor  # [N, ...] float32, or symbols of uint8 or int64
    train_labels: Tensor  # [N] or [N, T] int64
    test_inputs: Tensor  # [N', ...]
    test_labels: Tensor  # [N'] or [N', T]
    classes: int
    symbols: int = 0
    """Inputs are symbols 0 … symbols − 1; 0: they are quantities."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What an error calls the tensors, by their names above, where they have names of their own: files, columns."""

    @property
    def samples(self) -> Tensor:
        """[N + N', ...] what indices refer to: the training samples, then those of the test set. A copy."""
        return torch.cat((self.train_inputs, self.test_inputs))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    def digest(self) -> str:
        """Of shapes, and of up to a thousand rows of every tensor: data that are split or drawn anew have another."""
        found = blake2b(f"{self.classes}/{self.symbols}".encode(), digest_size=8)
        for each in (self.train_inputs, self.train_labels, self.test_inputs, self.test_labels):
            count = max(1, min(ROWS, BYTES * len(each) // max(1, each.nbytes)))
            rows = each[:: 1 + len(each) // count].cpu().contiguous()
            found.update(f"{each.dtype}/{tuple(each.shape)}".encode())
            found.update(rows.view(torch.uint8).numpy().data)
        return found.hexdigest()

    def to(self, device: torch.device) -> "Dataset":
        """The same samples on a device."""
        return Dataset(
            self.train_inputs.to(device),
            self.train_labels.to(device),
            self.test_inputs.to(device),
            self.test_labels.to(device),
            self.classes,
            self.symbols,
            self.names,
        )
