"""The honest controls beside every accuracy: plain loops of one process over the same parts, data and optimiser.

    backprop       all components as one network, end to end, one loss at its end
    backprop+heads the same, deeply supervised: every component's head has a loss too, and all go end to end
    alone          one component without neighbours
    alone+student  one component whose student is trained on the labels with the rest: as large as what ships
    wide           one component, widened until it has about as many parameters as that network, if any width does that
    independent    as many components as in the chain, alone, each with its own seed and data order; averaged

No learner and no bus: this file is short so that nobody need trust the house. Every loop takes the same number of steps
on batches of the same size; component 0's data order, and its initial weights, are those of the run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from configs.errors import ConfigError
from configs.tree import Config, Model
from mach.assemble import component_of
from mach.component import Component
from mach.data import Batches, Dataset
from mach.descent import average_of, back, follow
from mach.draws import Draws, aside
from mach.effort import Effort
from mach.graph import children_of, name_of
from mach.losses import cross_entropy
from mach.modes import evaluating
from mach.optimisers import optimiser_of, schedule_of
from mach.seeds import seed_of
from mach.state import unbounded_of
from mach.whole import Reading, Whole, averaged, reading

COUNTED = 2
"""The step whose multiply-adds are counted: the first ones of an optimiser differ."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What became of a control."""

    reading: Reading
    curve: tuple[tuple[int, Reading], ...]
    """(step, reading), oldest first."""
    multiply_adds: float
    """A sample and step, of all its networks."""
    parameters: int
    """Of all its networks."""


COMPANION = 0.3
"""Weight of the loss of a head on the way (arXiv 1409.4842, section 5)."""


@dataclass(slots=True)
class Loop:
    """One network on its way."""

    forward: nn.Module
    objective: Callable[[Tensor, Tensor], Tensor]
    """(x [B, ...], y [B]) → the loss."""
    batches: Iterator[tuple[Tensor, Tensor]]
    optimisers: Sequence[torch.optim.Optimizer]
    average: AveragedModel | None = None
    """Of the weights, if that is examined in place of them (`evaluate.average`)."""
    unbounded: Sequence[str] = ()

    @property
    def examined(self) -> nn.Module:
        """What is judged."""
        return self.forward if self.average is None else self.average.module

    def descend(self, rate: float | None) -> None:
        """One step of backpropagation."""
        x, y = next(self.batches)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["lr"] if rate is None else rate
            optimiser.zero_grad(set_to_none=True)
        back(self.objective(x, y), keep=False)
        for optimiser in self.optimisers:
            optimiser.step()
        if self.average is not None:
            follow(self.average, self.forward, self.unbounded)


class Lone(nn.Module):
    """A component whose students, if it has any, think along: logits [B, K] of x [B, ...]."""

    def __init__(self, component: Component) -> None:
        super().__init__()
        self.component = component

    def forward(self, x: Tensor) -> Tensor:
        """As the component ships."""
        return self.component.alone(self.component.activation(x))


class Supervised(nn.Module):
    """A whole network whose components' heads are all trained (deep supervision, arXiv 1409.5185, equation 3)."""

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of the whole depth alone."""
        z: Tensor = self.whole(x)
        return z

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """CE(z, y) + COMPANION · Σ CE(z_k, y) over the heads on the way."""
        *companions, last = (cross_entropy(z, y) for z in self.whole.every(x))
        return torch.stack([last, *(COMPANION * each for each in companions)]).sum()


Member = tuple[Config, nn.Module]
"""A network, and the configuration whose seed its data order and weights follow."""


def backprop(config: Config, dataset: Dataset) -> list[Member]:
    """The whole chain."""
    return [(config, whole_of(config, dataset))]


def supervised(config: Config, dataset: Dataset) -> list[Member]:
    """The whole chain, and a loss at every section."""
    return [(config, Supervised(whole_of(config, dataset)))]


def alone(config: Config, dataset: Dataset) -> list[Member]:
    """Component 0 without a child."""
    return [(config, Lone(component_of(config, 0, [], dataset)))]


def with_student(config: Config, dataset: Dataset) -> list[Member]:
    """Component 0 and its student."""
    method = msgspec.structs.replace(config.method, targets="embedding")  # whoever has a student has those
    return [(config, Lone(component_of(msgspec.structs.replace(config, method=method), 0, [name_of(1)], dataset)))]


def wide(config: Config, dataset: Dataset) -> list[Member]:
    """Component 0, widened."""
    return alone(widened(config, dataset), dataset)


def independent(config: Config, dataset: Dataset) -> list[Member]:
    """As many as there are components, the first of which is `alone`."""
    seeds = [config.seed] + [seed_of(config.seed, index, "independent") for index in range(1, config.n_components)]
    return [member for seed in seeds for member in alone(msgspec.structs.replace(config, seed=seed), dataset)]


CONTROLS: Mapping[str, Callable[[Config, Dataset], list[Member]]] = {
    "backprop": backprop,
    "backprop+heads": supervised,
    "alone": alone,
    "alone+student": with_student,
    "wide": wide,
    "independent": independent,
}
"""Name → the networks of a control; more than one are trained apart and averaged."""
FLOOR, CEILING = "alone+student", "backprop"
"""Between which two the distance is measured that a recipe closes."""
ABOUT = 0.2
"""What is off by no more than this share is about as large: widths grow in steps."""


def train(name: str, config: Config, dataset: Dataset) -> Trained:
    """Train a control for `train.steps` steps; examined every `evaluate.every_steps`.

    Raises:
        ConfigError: a run that is timed: a control takes as many steps as a component.
    """
    if config.train.minutes is not None:
        raise ConfigError("train.minutes: controls take as many steps as a component; use train.steps (--steps)")
    config = msgspec.structs.replace(config, method=msgspec.structs.replace(config.method, momentum_head="none"))
    with Draws(config.seed, 0):
        return trained(CONTROLS[name](config, dataset), config, dataset)


def trained(members: Sequence[Member], config: Config, dataset: Dataset) -> Trained:
    """Train these networks side by side, and examine them as one."""
    loops = [loop(member, dataset, network) for member, network in members]
    rate = schedule_of(config)
    read = averaged([each.examined for each in loops]) if len(loops) > 1 else loops[0].examined
    curve: list[tuple[int, Reading]] = []
    effort = 0
    for step in range(config.train.steps):
        for each in loops:
            if step == min(COUNTED, config.train.steps - 1):
                with Effort() as counter:
                    each.descend(None if rate is None else rate(step))
                effort += counter.multiply_adds
            else:
                each.descend(None if rate is None else rate(step))
        if (step + 1) % config.evaluate.every_steps == 0 or step + 1 == config.train.steps:
            with evaluating(module for each in loops for module in each.examined.modules()):
                curve.append((step + 1, reading(read, dataset, config.train.batch_size)))
    parameters = sum(learned(each.forward) for each in loops)
    return Trained(curve[-1][1], tuple(curve), effort / config.train.batch_size, parameters)


def loop(config: Config, dataset: Dataset, network: nn.Module) -> Loop:
    """A network with component 0's data order, and an optimiser for every component in it."""
    seed = seed_of(config.seed, 0, "data")
    batches = Batches(dataset, config.train.batch_size, seed=seed, noise=config.data.noise)
    components = [module for module in network.modules() if isinstance(module, Component)]
    optimisers = [optimiser_of(config.optimiser, component) for component in components]
    objective = network.objective if isinstance(network, Supervised) else lambda x, y: cross_entropy(network(x), y)
    pairs = ((batch.inputs, batch.labels) for batch in batches)
    average = average_of(network, config.evaluate.average)
    return Loop(network, objective, pairs, optimisers, average, unbounded_of(network))


def whole_of(config: Config, dataset: Dataset) -> Whole:
    """The network of the run's components."""
    children = children_of(config.graph, config.n_components)
    components = [
        component_of(config, index, [name_of(child) for child in own], dataset) for index, own in enumerate(children)
    ]
    return Whole(components, children, wiring=config.wiring, context=config.method.context)


def learned(network: nn.Module) -> int:
    """Parameters that the loss has reached: a whole network has students and heads that it does not use."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.grad is not None)


def widened(config: Config, dataset: Dataset) -> Config:
    """The same with one component about as large as all: the widths that come nearest to their parameters."""
    wanted = size_of(whole_of(config, dataset), dataset)
    best, nearest = config, float("inf")
    for quarters in range(4, 4 * config.n_components + 1):
        wider = msgspec.structs.replace(config, model=widen(config.model, quarters / 4))
        ((_, network),) = alone(wider, dataset)
        size = size_of(network, dataset)
        if abs(size - wanted) < nearest:
            best, nearest = wider, abs(size - wanted)
        if size > wanted:
            break
    return best


def unmade(config: Config, dataset: Dataset) -> dict[str, str]:
    """Controls that cannot be made of these networks, and why: a family of one's own need not heed the widths."""
    with aside(config.seed):
        wanted = size_of(whole_of(config, dataset), dataset)
        ((_, network),) = wide(config, dataset)
        size = size_of(network, dataset)
    if abs(size - wanted) <= ABOUT * wanted:
        return {}
    return {
        "wide": f"one component comes to {size:,} parameters, all to {wanted:,}, more than {100 * ABOUT:.0f} % apart: "
        f"no width up to {config.n_components} times as large makes {config.model.family!r} as large as all; build it "
        "by the widths in place.model (embedding, joiner, student, channels)"
    }


def size_of(network: nn.Module, dataset: Dataset) -> int:
    """Parameters that one backward pass reaches."""
    with evaluating(network.modules()):
        back(cross_entropy(network(dataset.train_inputs[:2]), dataset.train_labels[:2]), keep=False)
    return learned(network)


def widen(model: Model, factor: float) -> Model:
    """Every width `factor` times as large; those of attention and of convolutions stay multiples of what they were."""
    embedding = model.heads * round(model.embedding * factor / model.heads)
    return msgspec.structs.replace(
        model,
        embedding=embedding if model.embedding % model.heads == 0 else round(model.embedding * factor),
        joiner=tuple(round(width * factor) for width in model.joiner),
        student=tuple(round(width * factor) for width in model.student),
        channels=8 * round(model.channels * factor / 8) if model.channels % 8 == 0 else round(model.channels * factor),
    )
