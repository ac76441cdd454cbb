"""Configuration → learner: the one place where trainers, simulations, tests and benchmarks build one."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from configs.tree import Config, Optimiser
from mach.component import Component
from mach.data.dataset import Dataset
from mach.learner import Learner
from mach.networks import build
from mach.seeds import seed_of

FLOOR = 0.01
"""Where the cosine schedule ends, as a share of the first learning rate."""


def learner_of(config: Config, index: int, children: Sequence[str], dataset: Dataset, device: torch.device) -> Learner:
    """Component `index` of a run with its own weights, optimiser and schedule.

    Raises:
        ConfigError: a family of networks that is not known.
    """
    component = component_of(config, index, children, dataset).to(device)
    return Learner(
        component,
        optimiser_of(config.optimiser, component),
        config.loss,
        window=config.bus.window,
        device=device,
        sample_shape=dataset.sample_shape,
        schedule=schedule_of(config),
    )


def samples_of(config: Config, dataset: Dataset) -> Tensor | None:
    """[N, ...] what activations may refer to by indices; None where inputs travel."""
    return dataset.samples if config.bus.activation == "indices" else None


def component_of(config: Config, index: int, children: Sequence[str], dataset: Dataset) -> Component:
    """Networks on the CPU with initial weights of their own seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, index, "weights"))
        return build(config.model, dataset.sample_shape, dataset.classes, children)


def optimiser_of(settings: Optimiser, component: Component) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) or SGD with momentum, in torch's fused form (fewer calls)."""
    parameters, lr, decay = component.parameters(), settings.lr, settings.weight_decay
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=settings.momentum, weight_decay=decay, fused=True)


def schedule_of(config: Config) -> Callable[[int], float] | None:
    """Version → learning rate: half a cosine from `lr` down to FLOOR of it, or None for a constant rate."""
    if config.optimiser.schedule == "constant" or config.train.minutes is not None:
        return None
    lr, steps = config.optimiser.lr, config.train.steps
    return lambda version: lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, version / steps))))
