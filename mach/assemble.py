"""Configuration → learner: the one place where trainers, simulations, tests and benchmarks build one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from configs.tree import Config
from mach.component import Component
from mach.data.dataset import Dataset
from mach.learner import Learner
from mach.networks import build
from mach.optimisers import optimiser_of, schedule_of
from mach.seeds import seed_of


def learner_of(config: Config, index: int, children: Sequence[str], dataset: Dataset, device: torch.device) -> Learner:
    """Component `index` of a run with its own weights, optimiser and schedule.

    Raises:
        ConfigError: a family of networks that is not known, or an optimiser that this torch does not have.
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
        return build(
            config.model, dataset.sample_shape, dataset.classes, children, index=index, symbols=dataset.symbols
        )
