"""What there is to go on from: tensors by name and plain values, taken out of modules, optimisers and generators.

Nothing is copied here: a `State` refers to tensors that training goes on to change (see `Copies`). Everything that
comes back is checked before anything is changed: names, shapes and dtypes must be those of today's networks.

Laws: bit for bit; a state that does not fit is a `DataError` and leaves everything as it was.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import DataError
from mach import draws


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Tensors by name, and values that JSON can hold."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def under(self, prefix: str) -> "State":
        """The part whose names begin with `prefix/`, without it; values under the key `prefix`."""
        start = prefix + "/"
        part = {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}
        return State(part, dict(self.values.get(prefix, {})))

    def add(self, prefix: str, part: "State") -> None:
        """Put `part` under `prefix`."""
        self.tensors.update({f"{prefix}/{name}": tensor for name, tensor in part.tensors.items()})
        self.values[prefix] = part.values

    def named(self, key: str) -> set[str]:
        """The tensors that modules' values name under this key, `BUFFERS` or `UNBOUNDED`."""
        return set(_named(self.values, key))


class Copies:
    """Buffers that a state is copied into, used again and again: pinned for what lies on a GPU.

    From there the copies are only under way when `take` returns; `wait` tells when they have arrived. Steps taken
    meanwhile do not harm them, since a device does one after the other.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._arrived: Any = None  # the event of the device, if there is one

    def take(self, state: State) -> State:
        """The same state in our buffers; what the take before gave is overwritten."""
        self._arrived = None
        copies = {name: self._copy(name, tensor.detach()) for name, tensor in state.tensors.items()}
        device = next((tensor.device for tensor in state.tensors.values() if not tensor.is_cpu), None)
        if device is not None:
            self._arrived = torch.get_device_module(device).Event()
            self._arrived.record()
        self._buffers = copies
        return State(copies, state.values)

    def wait(self) -> None:
        """Return when all copies are there."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=not tensor.is_cpu)
        return buffer.copy_(tensor, non_blocking=True)


BUFFERS, UNBOUNDED = "buffers", "unbounded"
"""The keys in a module's values of the names of its buffers, and of those in which an infinity may be."""


def _named(values: Mapping[str, Any], key: str) -> Iterator[str]:
    yield from values.get(key, ())
    for prefix, part in values.items():
        if isinstance(part, dict):
            yield from (f"{prefix}/{name}" for name in _named(part, key))


def of_module(module: nn.Module, unbounded: Collection[str] = ()) -> State:
    """Every parameter and buffer, named as in the module; `unbounded` as it was made, see `unbounded_of`."""
    tensors = dict(module.state_dict())
    return State(tensors, {BUFFERS: sorted(tensors.keys() & buffers_of(module)), UNBOUNDED: list(unbounded)})


def buffers_of(module: nn.Module) -> set[str]:
    """The names of its buffers, each under all that it has."""
    return {name for name, _ in module.named_buffers(remove_duplicate=False)}


def unbounded_of(module: nn.Module) -> tuple[str, ...]:
    """The buffers with an infinity in them, as in the mask of an attention, each under all its names. To be asked
    before the first step: a statistic that has come to it since is ruined.
    """
    buffers = module.named_buffers(remove_duplicate=False)
    return tuple(name for name, each in buffers if each.is_floating_point() and not each.isfinite().all())


def into_module(module: nn.Module, state: State) -> None:
    """Put back what `of_module` gave, after `check_module`."""
    module.load_state_dict(state.tensors)


def check_module(module: nn.Module, state: State) -> None:
    """Raise a DataError unless names, shapes and dtypes are those of `module`."""
    own = module.state_dict()
    if own.keys() != state.tensors.keys():
        wrong = ", ".join(sorted(own.keys() ^ state.tensors.keys())[:3])
        raise DataError(f"holds another network than the configuration's: {wrong}")
    for name, tensor in state.tensors.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            raise DataError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the configuration's {own[name].dtype} {tuple(own[name].shape)}"
            )


def of_optimiser(optimiser: torch.optim.Optimizer) -> State:
    """The moments of every parameter, by its number; learning rates and the like are the configuration's."""
    state = State(values={"kind": type(optimiser).__name__})
    plain: dict[str, dict[str, Any]] = {}
    for number, entry in optimiser.state_dict()["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                state.tensors[f"{number}/{name}"] = value
            else:
                plain.setdefault(str(number), {})[name] = value
    state.values["plain"] = plain
    return state


READ = frozenset(("mu_product",))
"""Numbers that the host reads in every step. Torch makes them there, and loads them onto the parameters' device, where
every parameter's would be waited for (NAdam)."""


def into_optimiser(optimiser: torch.optim.Optimizer, state: State) -> None:
    """Put back what `of_optimiser` gave, after `check_optimiser`."""
    moments: dict[int, dict[str, Any]] = {int(number): dict(entry) for number, entry in state.values["plain"].items()}
    for name, tensor in state.tensors.items():
        number, _, key = name.partition("/")
        moments.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    for entry in optimiser.state.values():
        for name in READ.intersection(entry):
            entry[name] = entry[name].cpu()


def check_optimiser(optimiser: torch.optim.Optimizer, state: State, what: str = "optimiser") -> None:
    """Raise a DataError unless every moment of `what` belongs to a parameter and has its shape, or is one number."""
    parameters = dict(enumerate(parameters_of(optimiser)))
    for name, tensor in state.tensors.items():
        number, _, key = name.partition("/")
        parameter = parameters.get(int(number)) if number.isdecimal() else None
        if not key or parameter is None or (tensor.ndim and tensor.shape != parameter.shape):
            raise DataError(f"{what}/{name} {tuple(tensor.shape)} belongs to no parameter of the configuration's")


def parameters_of(optimiser: torch.optim.Optimizer) -> Iterator[Tensor]:
    """In the order of their numbers in the optimiser's state."""
    for group in optimiser.param_groups:
        yield from group["params"]


def of_generators(device: torch.device) -> State:
    """The states of the generators that networks draw from as they compute (`mach/draws.py`)."""
    own, (kind, words, *place), (edition, python, spare) = draws.held()
    state = State(
        {"cpu": own, "numpy": torch.tensor(words.astype(np.int64)), "python": torch.tensor(python)},
        {"numpy": [kind, *place], "python": [edition, spare]},
    )
    there = draws.of_device(device)
    if there is not None:
        state.tensors[device.type] = there
    return state


def into_generators(device: torch.device, state: State) -> None:
    """Put back what `of_generators` gave; generators that it does not have are left as they are."""
    numpy = python = None
    if state.values.keys() >= {"numpy", "python"}:
        kind, *place = state.values["numpy"]
        edition, spare = state.values["python"]
        numpy = (kind, tensor_of(state.tensors, "numpy", torch.int64).numpy().astype(np.uint32), *place)
        python = (edition, tuple(tensor_of(state.tensors, "python", torch.int64).tolist()), spare)
    own = tensor_of(state.tensors, "cpu", torch.uint8)
    try:
        draws.put(draws.Generators(own, numpy, python))
        draws.put_on_device(device, None if device.type == "cpu" else state.tensors.get(device.type))
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"generators: holds no state of such ({error})") from error


def tensor_of(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype | None = None) -> Tensor:
    """One tensor; a DataError if there is none of that name, and of that dtype if one is given."""
    tensor = tensors.get(name)
    if tensor is None:
        raise DataError(f"{name} is missing")
    if dtype is not None and tensor.dtype != dtype:
        raise DataError(f"{name} is {tensor.dtype}, and must be {dtype}")
    return tensor
