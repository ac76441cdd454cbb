"""Configuration → learner: the one place where trainers, simulations, tests and benchmarks build one."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from configs.errors import ConfigError
from configs.tree import Config
from mach.below import Below
from mach.component import Component, Tally
from mach.data.dataset import Dataset
from mach.draws import aside, sow
from mach.evaluate import Exam
from mach.graph import children_of, name_of, path_to, sizes_of
from mach.learner import Learner
from mach.memory import MEMORY
from mach.messages import Activation
from mach.modes import evaluating
from mach.momentum import Momentum, Opens
from mach.networks import FAMILIES, made, place_of
from mach.networks.fit import activation_shape, check_there, what_comes
from mach.networks.guess import Guess
from mach.networks.place import Place
from mach.optimisers import optimiser_of, optimiser_of_late, schedule_of, student_pull_of
from mach.relay import Relay
from mach.seeds import seed_of
from mach.stream import Incoming, Stream, samples

RELAY_RETRY_S = 5.0
"""Longest first wait for the answer to an examination's question, where an edge's own time-out is longer."""


def learner_of(
    config: Config,
    index: int,
    children: Sequence[str],
    dataset: Dataset,
    device: torch.device,
    component: Component | None = None,
) -> Learner:
    """Component `index` of a run with its own weights, optimiser and schedule; `component`, if one is there already.

    Raises:
        ConfigError: a family of networks that is not known, or one's own that does not compute there; an optimiser that
            this torch does not have.
    """
    if component is None:
        component = component_of(config, index, children, dataset)
    component = component.to(device)
    if device.type != "cpu" and config.model.family not in FAMILIES:
        check_there(component, component_place(config, index, children, dataset), device)
    return Learner(
        component,
        optimiser_of(config.optimiser, component),
        config.loss,
        window=config.bus.window,
        device=device,
        sample_shape=dataset.sample_shape,
        schedule=schedule_of(config),
        student_pull=student_pull_of(config),
        children=children,
        method=config.method,
        staleness=config.staleness,
        stream=stream_of(config, index, dataset),
        average=config.evaluate.average,
        symbols=dataset.symbols,
        probes=config.probes,
        apart=optimiser_of_late(config.optimiser, component),
        patience_s=config.bus.timeout_ms / 1000,
    )


def samples_of(config: Config, dataset: Dataset) -> Tensor | None:
    """[N, ...] what activations may refer to by indices; None where inputs travel."""
    return dataset.samples if config.bus.activation == "indices" else None


def component_of(
    config: Config, index: int, children: Sequence[str], dataset: Dataset, *, trains: bool = True
) -> Component:
    """Networks on the CPU with initial weights of their own seed; the global generators are left as they were.

    `trains`: else it is built without what it only learns by: copies of what is deeper, and a model of gradients.
    """
    place = component_place(config, index, children, dataset)
    with aside():
        momentum = momentum_of(config, index, children, dataset)
        if momentum is not None:
            place = replace(place, ahead=len(momentum.bias))
        sow(seed_of(config.seed, index, "weights"))
        component = made(place, momentum, trains=trains)
        component.below = below_of(config, index, dataset) if trains else None
        component.residual = config.model.join == "residual"
        if runs_up(config):
            component.tally = tally_of(config, component, place)
        if trains and config.method.guess and config.wiring == "stream" and children:
            component.guess = Guess(activation_shape(component, place)[-1], dataset.classes)
    return component


def momentum_of(config: Config, index: int, children: Sequence[str], dataset: Dataset) -> Momentum | None:
    """What stands in front of the joiner of component `index`, with the layers that its children begin with; None where
    the method wants none, or there is nobody below.

    Draws from the global generators.

    Raises:
        ConfigError: a family whose encoder has no first layer to show.
    """
    method = config.method
    if method.momentum_head != "layer" or config.wiring == "skip" or not children:
        return None
    layers, width = {}, 0
    graph = children_of(config.graph, config.n_components)
    for child in graph[index]:
        below = component_place(config, child, [name_of(each) for each in graph[child]], dataset)
        sow(seed_of(config.seed, child, "weights"))
        encoder = made(below, trains=False).encoder
        if not isinstance(encoder, Opens):
            raise ConfigError(
                f"method.momentum_head: the encoder that model.family {config.model.family!r} makes has no first layer "
                "to show; give it a method opening() (mach/momentum.py, Opens), or set method.momentum_head=none"
            )
        layers[name_of(child)] = encoder.opening()
        with torch.no_grad(), evaluating(layers[name_of(child)].modules()):
            width = layers[name_of(child)](what_comes(below)[0]).shape[-1]
    return Momentum({child: layers[child] for child in children}, width, method.momentum_decay)


def below_of(config: Config, index: int, dataset: Dataset) -> Below | None:
    """What the head of component `index` looks down through, with the weights that each begins with; None where the
    method wants none, or there is nobody below.

    Leaves the global generators as they were.
    """
    graph = children_of(config.graph, config.n_components)
    if config.method.momentum_head != "chain" or config.wiring == "skip" or not graph[index]:
        return None
    reach, parent = config.method.reach, index
    followers: list[tuple[str, Component]] = []
    while graph[index] and not 0 < reach <= len(followers):
        index = graph[index][0]
        names = [name_of(child) for child in graph[index]]
        followers.append((name_of(index), begun(config, index, names, dataset, seed_of(config.seed, index, "weights"))))
    ends, last = not graph[index], followers[-1][1]
    if not ends:
        last = begun(config, index, (), dataset, seed_of(config.seed, parent, "reader"))
    sections = {name: component.encoder for name, component in followers}
    decay, context = config.method.momentum_decay, config.method.context
    return Below(sections, last.joiner, last.head, decay, context=context, ends=ends)


def begun(config: Config, index: int, children: Sequence[str], dataset: Dataset, seed: int) -> Component:
    """The networks of component `index` with the initial weights that a seed gives; leaves the global generators."""
    place = component_place(config, index, children, dataset)
    with aside(seed):
        return made(place, trains=False)


def runs_up(config: Config) -> bool:
    """Whether logits run up the chain; without targets nothing is joined."""
    return config.model.join in ("sum", "mean") and config.method.targets != "none"


def target_width(config: Config, dataset: Dataset) -> int:
    """Numbers of a target: of the embedding, and of the logits where they run up with it."""
    return config.model.embedding + (dataset.classes if runs_up(config) else 0)


def tally_of(config: Config, component: Component, place: Place) -> Tally:
    """How a component's logits add to its children's; in a mean, every component below counts once.

    Raises:
        ConfigError: the graph has a cycle.
    """
    graph = children_of(config.graph, config.n_components)
    sizes = {name_of(index): size for index, size in enumerate(sizes_of(graph))}
    below = {child: sizes[child] if config.model.join == "mean" else 1 for child in place.children}
    total = 1 + sum(below.values()) if config.model.join == "mean" else 1
    with torch.no_grad(), evaluating(component.modules()):
        a = component.activation(*what_comes(place))
        width = component.embed(a, component.imitate(a)).shape[-1]
    return Tally(place.classes, 1 / total, {child: size / total for child, size in below.items()}, width)


def component_place(config: Config, index: int, children: Sequence[str], dataset: Dataset) -> Place:
    """Where the component stands; without targets it has no students.

    Raises:
        ConfigError: stream wiring on a graph that is no tree from component 0.
    """
    stream = config.wiring == "stream"
    graph = children_of(config.graph, config.n_components)
    path = path_to(index, graph) if stream else ()
    return place_of(
        config.model,
        dataset.sample_shape,
        dataset.classes,
        children if config.method.targets != "none" else (),
        wiring=config.wiring,
        ancestors=path,
        index=index,
        context=stream and config.method.context,
        symbols=dataset.symbols,
        labels=tuple(dataset.train_labels.shape[1:]) if dataset.train_labels.numel() else None,
        judged=config.method.heads == "every" or not graph[index],
        rows=config.train.batch_size,
    )


def stream_of(config: Config, index: int, dataset: Dataset) -> Stream | None:
    """Where the component's batches come from in stream wiring; None in skip wiring."""
    if config.wiring == "skip":
        return None
    place = component_place(config, index, (), dataset)
    if place.incoming is None:
        return Stream(None, config.bus.window)
    context = dataset.sample_shape if place.context else None
    labels = tuple(dataset.train_labels.shape[1:])
    incoming = Incoming(place.incoming, labels, dataset.classes, context, dataset.symbols)
    return Stream(incoming, MEMORY * config.bus.window)


def questions_of(config: Config, index: int, dataset: Dataset, generator: torch.Generator) -> dict[str, Activation]:
    """What a component at this place would ask each child, with noise for numbers: in skip wiring x, the same for all;
    in stream wiring an activation that the child takes in, with labels, and x where the method wants it along.
    """
    rows, children = config.train.batch_size, children_of(config.graph, config.n_components)[index]
    if config.wiring == "skip":
        asked = Activation(0, 0, samples((rows, *dataset.sample_shape), dataset.symbols, generator))
        return {name_of(child): asked for child in children}
    questions = {}
    for child in children:
        stream = stream_of(config, child, dataset)
        if stream is not None and stream.incoming is not None:
            questions[name_of(child)] = stream.incoming.noise(rows, generator)
    return questions


def exam_of(config: Config, learner: Learner, dataset: Dataset) -> Exam | Relay:
    """The examination of a component: over its children's answers, or in stream wiring along the whole chain."""
    common = (learner.examined, dataset, learner.children, config.train.batch_size)
    retry_s = config.bus.timeout_ms / 1000
    stream = learner.stream
    if stream is None:
        return Exam(*common, retry_s)
    retry_s = min(retry_s, RELAY_RETRY_S)
    # batches that wait are soon learnt from; but for those whose answers may never come a question waits, at all
    # components together, half as long as it takes to be asked again
    return Relay(
        *common,
        retry_s,
        retry_s / (2 * config.n_components) if learner.waits_for_answers else math.inf,
        draws=stream.draws,
        judges=learner.teacher.judges,
        context=config.method.context,
        incoming=None if stream.incoming is None else stream.incoming.activation,
    )
