"""Optimisers and learning rates of one component. Knows parameters and settings; no loss, no recipe.

    adamw   arXiv 1711.05101
    sgd     with momentum
    nadam   Nesterov's step in Adam; β₁ = 0.99 holds up where gradients come late (arXiv 2505.01099)
    muon    orthogonalised momentum for the matrices inside the network (K. Jordan 2024; arXiv 2502.16982), AdamW
            for the rest: the head, embedding tables, biases

Laws: one object, of torch's own class (as `mach/eager.py` has it), however many algorithms work in it: `step`,
`zero_grad`, `param_groups` and a `state_dict` of tensors and plain numbers, which is what a checkpoint holds. Every
group follows the same learning rate, so that a schedule is one function: version → rate.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from configs.tree import Config, Optimiser
from mach.component import Component
from mach.eager import Eager, eager

FLOOR = 0.01
"""Where the falling schedules end, as a share of the first learning rate."""
NADAM_BETAS = (0.99, 0.999)
"""arXiv 2505.01099, section 4: the look-ahead of so long an average makes up for the delay of the gradients."""


def optimiser_of(settings: Optimiser, component: Component) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over all parameters of a component on its device.

    Raises:
        ConfigError: this torch has no such optimiser.
    """
    return OPTIMISERS[settings.name](settings, component)


def optimiser_of_late(settings: Optimiser, component: Component) -> torch.optim.Optimizer | None:
    """A second one for late gradients alone, where they keep moments of their own; the first one decays the weights.

    Raises:
        ConfigError: as `optimiser_of`.
    """
    if not settings.separate_late:
        return None
    return optimiser_of(msgspec.structs.replace(settings, weight_decay=0.0), component)


def adamw(settings: Optimiser, component: Component) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, in torch's fused form (fewer calls)."""
    return eager(torch.optim.AdamW)(
        component.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )


def sgd(settings: Optimiser, component: Component) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum; fused, which torch does only if every weight has a gradient from the
    first step on, as a model of gradients has not, nor a student that learns now and then.
    """
    return eager(torch.optim.SGD)(
        component.parameters(),
        lr=settings.lr,
        momentum=0.9 if settings.momentum is None else settings.momentum,
        weight_decay=settings.weight_decay,
        fused=component.guess is None and component.below is None,
    )


def nadam(settings: Optimiser, component: Component) -> torch.optim.Optimizer:
    """Adam with Nesterov's momentum and decoupled weight decay."""
    return eager(torch.optim.NAdam)(
        component.parameters(),
        lr=settings.lr,
        betas=NADAM_BETAS,
        weight_decay=settings.weight_decay,
        decoupled_weight_decay=True,
    )


def muon(settings: Optimiser, component: Component) -> torch.optim.Optimizer:
    """Muon for the matrices inside, AdamW for the rest.

    Raises:
        ConfigError: torch before 2.9.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"optimiser.name: muon needs torch 2.9 or newer, and this is {torch.__version__}; "
            "upgrade torch, or choose adamw"
        )
    return Muon(component, settings)


OPTIMISERS: Mapping[str, Callable[[Optimiser, Component], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "sgd": sgd,
    "nadam": nadam,
    "muon": muon,
}
"""`optimiser.name`."""


class Muon(Eager):
    """torch's Muon and torch's AdamW at work on one state and one list of groups.

    Muon's steps are scaled as arXiv 2502.16982, equation 4, does (0.2·√max(rows, columns)), so that one learning
    rate and one weight decay serve both groups. A convolution's kernel [O, I, …] is seen as a matrix [O, I·…].
    """

    def __init__(self, component: Component, settings: Optimiser) -> None:
        hidden = hidden_weights(component)
        chosen = {id(weight) for weight in hidden}
        rest = [parameter for parameter in component.parameters() if id(parameter) not in chosen]
        self._flat = [(weight, weight.detach().flatten(1)) for weight in hidden if weight.dim() > 2]
        """(kernel, the matrix that shares its memory; or a copy, where rows lie otherwise, as in channels_last)."""
        self._copied = [(kernel, matrix) for kernel, matrix in self._flat if matrix.data_ptr() != kernel.data_ptr()]
        flat = {id(kernel): matrix for kernel, matrix in self._flat}
        self._inner: list[torch.optim.Optimizer] = []
        common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        matrices = [flat.get(id(weight), weight) for weight in hidden]
        if matrices:
            momentum = 0.95 if settings.momentum is None else settings.momentum
            self._inner.append(
                eager(torch.optim.Muon)(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw", **common)
            )
        if rest:
            self._inner.append(eager(torch.optim.AdamW)(rest, fused=True, **common))
        super().__init__([group for inner in self._inner for group in inner.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both; `closure` is not supported, as nothing here calls with one."""
        if closure is not None:
            raise ValueError("this optimiser takes no closure: run backward first, then step")
        for kernel, matrix in self._flat:
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for kernel, matrix in self._copied:
            matrix.copy_(kernel.detach().flatten(1))  # which others change as well, as they load weights
        for inner in self._inner:
            inner.step()
        for kernel, matrix in self._copied:
            kernel.detach().copy_(matrix.view(kernel.shape))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those of kernels too, which the groups hold as matrices."""
        super().zero_grad(set_to_none)
        for kernel, _ in self._flat:
            kernel.grad = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, for both."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Both work on our state and our groups, so that whoever reads or sets those reaches them."""
        for inner, group in zip(self._inner, self.param_groups, strict=True):
            inner.param_groups = [group]
            inner.state = self.state


def hidden_weights(component: Component) -> list[Tensor]:
    """What Muon is made for: weights of two and more dimensions, but of heads and of embedding tables."""
    heads = [component.head, *(part for part in (component.tally,) if part is not None)]
    heads += [] if component.below is None else [component.below.head]
    apart = {id(weight) for head in heads for weight in head.parameters()}
    for module in component.modules():
        if isinstance(module, nn.Embedding):
            apart |= {id(weight) for weight in module.parameters()}
    return [weight for weight in component.parameters() if weight.dim() >= 2 and id(weight) not in apart]


def schedule_of(config: Config) -> Callable[[int], float] | None:
    """Version → learning rate; None for a rate that never changes.

    Over the first `warmup_steps` it rises evenly to `lr`, and then falls to FLOOR of it at `train.steps` as the
    schedule says. A timed run does not know its end, and stays at `lr`.
    """
    lr, warmup = config.optimiser.lr, config.optimiser.warmup_steps
    falls, height = falling(config), height_of(config)
    if not falls and warmup == 0:
        return None

    def rate(version: int) -> float:
        if version < warmup:
            return lr * (version + 1) / warmup
        return lr * (FLOOR + (1 - FLOOR) * height(version))

    return rate


def student_pull_of(config: Config) -> Callable[[int], float]:
    """Version → share of a shipping student's gradient that reaches its section (`method.student_pull`).

    A section learns for the whole depth while rates are high, and serves its student as well when they have fallen half
    way (benchmarks/depth.md, when a student pulls).
    """
    full, falls, height = config.method.student_pull, falling(config), height_of(config)
    return lambda version: full * min(1.0, 2.0 * (1.0 - height(version))) if falls else full


def falling(config: Config) -> bool:
    """Whether the rate falls at all: a timed run does not know its end."""
    return config.train.minutes is None and config.optimiser.schedule != "constant"


def height_of(config: Config) -> Callable[[int], float]:
    """Version → share of the learning rate above FLOOR that is left, 1 to 0; warm-up does not count."""
    warmup = config.optimiser.warmup_steps
    fall = FALLS[config.optimiser.schedule if falling(config) else "constant"]
    left = max(1, config.train.steps - warmup)
    return lambda version: fall(min(1.0, max(0, version - warmup) / left))


FALLS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
}
"""`optimiser.schedule`: share of the run that is done, 0 to 1 → share of the learning rate above FLOOR."""
