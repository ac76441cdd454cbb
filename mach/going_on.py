"""All that a learner's next step depends on, into a `State` and back. Knows no file: `mach/checkpoint.py` writes it.

Weights, moments, version, what `predict` predicts from, late gradients at hand, gradients gathered for a step that is
not taken yet. Batches asked and answers given are left out, and so is what children answered: their edges begin anew
with the life that goes on.
"""

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from configs.errors import DataError
from mach import state as pack
from mach.component import Component
from mach.descent import Descent
from mach.late import Held
from mach.lesson import Late
from mach.memory import Memory
from mach.state import State, tensor_of

APART = "gathered_late"
"""Where late gradients are kept that an optimiser of their own has not stepped along yet."""
BEFORE = "before"
"""Where the weights before the last step are kept."""


def state_of(descent: Descent, memory: Memory, now: float) -> State:
    """By reference: training goes on to change these tensors."""
    state = State()
    state.add("component", pack.of_module(descent.component, descent.unbounded))
    state.add("optimiser", pack.of_optimiser(descent.optimiser))
    if descent.apart is not None:
        state.add("apart", pack.of_optimiser(descent.apart))
    if descent.average is not None:
        unbounded = [f"module.{name}" for name in descent.unbounded]
        state.add("average", pack.of_module(descent.average, unbounded))
    late = list(memory.late)
    for number, each in enumerate(late):
        state.tensors.update(zip(_inputs(number), each.held.come, strict=False))
        state.tensors[f"late/{number}/gradient"] = each.gradient
    state.values["late"] = [[each.parent, each.held.version, now - each.held.at] for each in late]
    state.values["version"] = descent.version
    state.values["lags"] = list(descent.staleness.lags)
    names = [name for name, _ in descent.component.named_parameters()]
    state.tensors.update({f"{BEFORE}/{name}": each for name, each in zip(names, descent.late.before, strict=False)})
    state.values["gathered"] = {"count": descent.gathered}
    if descent.gathered:
        for name, parameter in descent.component.named_parameters():
            if parameter.grad is not None:
                state.tensors[f"gathered/{name}"] = parameter.grad
        rows = zip(names, descent.late_gathered, strict=False)
        state.tensors.update({f"{APART}/{name}": each for name, each in rows})
    return state


def restore(descent: Descent, memory: Memory, state: State, now: float, input_shape: torch.Size) -> None:
    """Go on from there; ages count on, without the time between. Moments of another optimiser are left out.

    Raises:
        DataError: it does not fit the networks; nothing was changed.
    """
    own, optimiser, apart = state.under("component"), state.under("optimiser"), state.under("apart")
    pack.check_module(descent.component, own)
    alike, alike_apart = _of_kind(descent.optimiser, optimiser), _of_kind(descent.apart, apart)
    if alike:
        pack.check_optimiser(descent.optimiser, optimiser)
    if descent.apart is not None and alike_apart:
        pack.check_optimiser(descent.apart, apart, "apart")
    late = deque(
        _late(descent.component, state, number, now, input_shape) for number in range(len(state.values["late"]))
    )
    parameters = dict(descent.component.named_parameters())
    gathered, late_gathered, before = state.under("gathered"), state.under(APART), state.under(BEFORE)
    for what, part in (("gathered", gathered), (APART, late_gathered), (BEFORE, before)):
        _check_by_weight(what, part, parameters)
    average = state.under("average")
    if descent.average is not None and average.tensors:
        pack.check_module(descent.average, average)
        pack.into_module(descent.average, average)
    pack.into_module(descent.component, own)
    if alike:
        pack.into_optimiser(descent.optimiser, optimiser)
    if descent.apart is not None and alike_apart:
        pack.into_optimiser(descent.apart, apart)
    for name, tensor in gathered.tensors.items():
        parameters[name].grad = tensor.to(parameters[name].device, copy=True)  # to be added to
    if descent.apart is not None and late_gathered.tensors.keys() == parameters.keys():
        there = late_gathered.tensors
        descent.late_gathered = [there[name].to(each.device, copy=True) for name, each in parameters.items()]
    if descent.staleness.predicts and before.tensors.keys() == parameters.keys():
        descent.late.before = [before.tensors[name].to(each.device, copy=True) for name, each in parameters.items()]
    descent.staleness.lags = tuple(state.values.get("lags", descent.staleness.lags))
    memory.late = late
    descent.go_on(state.values["version"], gathered.values.get("count", 0))


def _of_kind(optimiser: torch.optim.Optimizer | None, state: State) -> bool:
    """Whether a state's moments are of an optimiser like this: those of another kind have shapes of their own."""
    return optimiser is not None and state.values.get("kind") == type(optimiser).__name__


def _check_by_weight(what: str, gathered: State, parameters: Mapping[str, Tensor]) -> None:
    """Raise a DataError unless every one belongs to a parameter, of its shape and dtype."""
    for name, tensor in gathered.tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape or parameters[name].dtype != tensor.dtype:
            raise DataError(f"{what}/{name}: belongs to no weight of the configuration's")


def _late(component: Component, state: State, number: int, now: float, input_shape: torch.Size) -> Late:
    """One late gradient; by `stash` its old weights are gone, and it will be pulled through today's."""
    parent, version, age_s = state.values["late"][number]
    weight = next(component.parameters())
    gradient = tensor_of(state.tensors, f"late/{number}/gradient", weight.dtype).to(weight.device)
    come: tuple[Tensor, ...] = tuple(
        state.tensors[name].to(weight.device) for name in _inputs(number) if name in state.tensors
    )
    if not come or come[0].shape[1:] != input_shape or not component.takes(come[0]) or len(gradient) != len(come[0]):
        found = [tuple(each.shape) for each in come]
        raise DataError(f"late/{number}: inputs {found}, gradient {tuple(gradient.shape)}")
    return Late(parent, Held(-1, come, None, parent, version, now - age_s, gradient.shape), gradient)


def _inputs(number: int) -> tuple[str, str]:
    """Names of what came in: x or a parent's activation, and x along with that."""
    return f"late/{number}/inputs", f"late/{number}/context"
