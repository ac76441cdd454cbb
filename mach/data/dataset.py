"""A data set in memory: what every source makes. Shapes: N samples."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Inputs scaled for training, and labels 0 … classes − 1."""

    train_inputs: Tensor  # [N, ...] float32
    train_labels: Tensor  # [N] int64
    test_inputs: Tensor  # [N', ...] float32
    test_labels: Tensor  # [N'] int64
    classes: int

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
        )
