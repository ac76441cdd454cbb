"""torch's optimisers without the way round by torch's compiler. Knows no setting.

torch wraps what an optimiser does so that `torch.compile` leaves it alone, and to say so loads that compiler,
`torch._dynamo`, with the first optimiser that is made: more than a second, a third of a launch until its first step.
Nothing is compiled here. So the same functions are called bare.

Law: the same numbers, state and hooks; and of a torch that wraps nothing any more, its own class as it is.
"""

import inspect
from typing import Any, TypeVar, cast

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


class Eager(torch.optim.Optimizer):
    """What all optimisers share."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


def eager(kind: type[Kind]) -> type[Kind]:
    """A kind of torch's optimisers, called bare; its steps record no gradients, as torch's own do not."""
    step: Any = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[Kind], type(kind.__name__, (Eager, kind), {"step": step, "__doc__": kind.__doc__}))
