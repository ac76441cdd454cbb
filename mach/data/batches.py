"""A component's own way through the training samples: shuffled epochs without replacement, for ever."""

from collections.abc import Iterator

import torch
from torch import Tensor

from configs.errors import ConfigError, DataError
from mach.data.dataset import Dataset
from mach.messages import Batch
from mach.onto import onto
from mach.seeds import seed_of
from mach.state import State, tensor_of

NONE = torch.empty(0, dtype=torch.uint8)
"""The state of no generator."""


class Batches(Iterator[Batch]):
    """Batches with ids 0, 1, 2, …; the same seed gives the same batches.

    An epoch is a permutation of all samples; what is left of it at its end, less than a batch, is left out.

    The order is drawn on the CPU, wherever the data lie, and without noise the batches are the same on every device.
    Noise is drawn where the data lie: on the CPU, by the generator of the order, on another device by one of its own.
    So a state goes on anywhere: a generator that it has nothing for, or the state of another kind, begins anew, by the
    seed and the number of the batch.

    Args:
        noise: standard deviation of Gaussian noise added to the inputs of every batch, fresh each time.

    Raises:
        ConfigError: noise on symbols, or a batch that is larger than the data set.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, seed: int, noise: float = 0.0) -> None:
        if noise > 0.0 and dataset.symbols:
            raise ConfigError("data.noise: is added to quantities, and these data are symbols; set it to 0")
        if batch_size > len(dataset.train_labels):
            raise ConfigError(
                f"train.batch_size: {batch_size} is more than the {len(dataset.train_labels)} samples to train on; set "
                f"it to {len(dataset.train_labels)} or less"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.noise = noise
        self.id = -1
        self.device = dataset.train_inputs.device
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._noise = self._noise_of(NONE, self._generator, self.id)
        self._put(torch.empty(0, dtype=torch.int64))
        self._at = 0
        self._digest = ""

    def __next__(self) -> Batch:
        """The next batch: inputs [B, ...], labels [B] or [B, T]."""
        if self._at + self.batch_size > len(self._order):
            count = len(self.dataset.train_labels)
            self._put(torch.randperm(count, generator=self._generator))
            self._at = 0
        here = slice(self._at, self._at + self.batch_size)
        rows = self._rows[here]
        self._at += self.batch_size
        self.id += 1
        inputs = self.dataset.train_inputs.index_select(0, rows)
        if self.noise > 0.0:
            inputs += self.noise * torch.randn(inputs.shape, generator=self._noise, device=self.device)
        labels = self.dataset.train_labels.index_select(0, rows)
        return Batch(self.id, inputs, labels, self._order[here] if self.noise == 0.0 else None)

    def state(self) -> State:
        """Where we are: the epoch's order, the place in it, the generators; and in which data."""
        tensors = {"order": self._order, "generator": self._generator.get_state()}
        if self._noise is not self._generator:
            tensors["noise"] = self._noise.get_state()
        return State(tensors, {"id": self.id, "at": self._at, "data": self.digest})

    @property
    def digest(self) -> str:
        """That of the data, worked out once."""
        self._digest = self._digest or self.dataset.digest()
        return self._digest

    def restore(self, state: State) -> None:
        """Go on from there: the next batch is the one that would have come.

        Raises:
            DataError: the state is of another data set, or no state of a generator.
        """
        order = tensor_of(state.tensors, "order", torch.int64)
        generator = tensor_of(state.tensors, "generator", torch.uint8)
        id, at, count = state.values["id"], state.values["at"], len(self.dataset.train_labels)
        if order.ndim != 1 or len(order) not in (0, count) or not 0 <= at <= len(order) or id < -1:
            raise DataError(f"batches: place {at} of {len(order)} samples, the configuration's data have {count}")
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < count:
            raise DataError(f"batches: the order names samples that the configuration's {count} do not have")
        if state.values.get("data", self.digest) != self.digest:
            raise DataError(
                "batches: the data are others than it was trained on, though as many; what was tested on before may be "
                "trained on now. Give it the same files; a source that draws does so alike with torch's, numpy's and "
                "Python's own generators, which data.split_seed seeds"
            )
        own = self._at_state(torch.device("cpu"), generator, id)
        noise = tensor_of({"noise": NONE, **state.tensors}, "noise", torch.uint8)
        self._noise = self._noise_of(noise, own, id)
        self._put(order)
        self._generator, self._at, self.id = own, at, id

    def _put(self, order: Tensor) -> None:
        """Go by this order: here, where it is sent from, and where the data lie."""
        self._order, self._rows = order, onto(self.device, order)

    def _noise_of(self, state: Tensor, order: torch.Generator, id: int) -> torch.Generator:
        """What noise is drawn by after batch `id`, beside the generator of the order."""
        return order if self.device.type == "cpu" else self._at_state(self.device, state, id)

    def _at_state(self, device: torch.device, state: Tensor, id: int) -> torch.Generator:
        """A generator that goes on from there; anew where the state is of another device's kind."""
        generator = torch.Generator(device)
        if state.shape != generator.get_state().shape:
            return generator.manual_seed(seed_of(self.seed, id, device.type))
        try:
            return generator.set_state(state)
        except RuntimeError as error:
            raise DataError(f"batches: holds no state of a generator ({error})") from error
