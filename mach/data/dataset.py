"""A data set in memory: what every source makes. Shapes: N samples; T places of a sequence."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


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
