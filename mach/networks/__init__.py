"""Families of networks: one a file. A factory makes a whole `Component`; users' own join by `package.module:factory`.

factory(place: Place) -> Component: `Place` says where in a run the component stands, and `mach/component.py` what it is
made of. Before the first step `made` runs a few samples through what a factory made: shapes that do not fit, and parts
that change what they get (inplace=True), are one sentence. A family of one's own in thirty lines, in a file `mine.py`
on PYTHONPATH:

    from torch import nn

    from mach.component import Component
    from mach.networks.place import Place


    def wide(place: Place) -> Component:
        e, k = place.model.embedding, place.classes
        come = place.features  # numbers of one x
        if place.wiring == "stream":  # a section of its own, from what comes to an activation [B, e]
            come = place.features if place.reads_data else e
            encoder, a = nn.Sequential(nn.Flatten(), nn.Linear(come, e), nn.GELU()), e
        else:  # the activation is x itself
            encoder, a = nn.Flatten(), come
        norm = nn.LayerNorm(e, elementwise_affine=False)  # an embedding keeps its scale
        return Component(
            encoder=encoder,  # x, or a parent's activation → a
            joiner=nn.Sequential(nn.Linear(a + e * len(place.children), e), norm),  # [a, d…] → e
            head=nn.Linear(e, k),  # e → logits
            students={child: nn.Sequential(nn.Linear(a, e), norm) for child in place.children},  # a → d
        )

    mach launch --set model.family=mine:wide

Where `place.context` is true (`method.context`, which mach-stream and mach-hop turn on) x comes along, and an encoder
that does not read the data is called with (activation, x); with `--set method.context=false` this one does for it too.
Dropout and batch normalisation work as in any training: batches are trained on in the modes in which the factory left
its modules, and whatever else is computed is in evaluation mode (`mach/modes.py`).
For `method.momentum_head` an encoder shows its first layer (`opening`, see `mach/momentum.py`), and the joiner is as
wide as `place.joined(a)` says. What networks learn beside parameters has to be in buffers that torch saves, neither in
one with `persistent=False`, which is for constants, nor in an attribute: what computes something else once it is loaded
is refused. One that is changed in place is to be cloned where a graph goes through it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from configs.errors import ConfigError
from configs.tree import Model
from mach.component import Component
from mach.draws import aside
from mach.momentum import Momentum
from mach.networks.conv import conv
from mach.networks.fit import activation_shape, as_in_training, check_fit
from mach.networks.mlp import mlp
from mach.networks.place import Place, Wiring
from mach.networks.transformer import transformer
from mach.registry import made_by

FAMILIES: Mapping[str, Callable[[Place], Component]] = {"mlp": mlp, "conv": conv, "transformer": transformer}
"""`model.family`."""


def place_of(
    model: Model,
    sample_shape: Sequence[int],
    classes: int,
    children: Sequence[str] = (),
    *,
    wiring: Wiring = "skip",
    ancestors: Sequence[int] = (),
    index: int = 0,
    context: bool = False,
    symbols: int = 0,
    labels: tuple[int, ...] | None = None,
    judged: bool = True,
    rows: int = 2,
) -> Place:
    """Where component `index` stands.

    `ancestors` are, in stream wiring, the components that an activation passes on its way here, the first of which
    reads the data: each is built to learn what shape it sends on, with the global generators left as they were. Ours
    go by what comes, and not by their number: where one sends on what came to it, so do all that follow.

    Raises:
        ConfigError: as `made`, of an ancestor.
    """
    place = Place(
        model, tuple(sample_shape), classes, wiring=wiring, context=context, symbols=symbols, labels=labels, rows=rows
    )
    with aside():
        for ancestor in ancestors:
            place = replace(place, index=ancestor, judged=False)
            sent = activation_shape(made(place, trains=False), place)
            if model.family in FAMILIES and sent == place.incoming:
                break
            place = replace(place, incoming=sent)
    return replace(place, index=index, children=tuple(children), judged=judged)


def made(place: Place, momentum: Momentum | None = None, *, trains: bool = True) -> Component:
    """What the factory that the model names makes of a place, tried out; `momentum` goes in front of its joiner.

    `trains`: whether it is one to be trained, which is tried out in training, too. Others are built for what they send
    on or for the weights that they begin with, and are tried where they are trained; ours need no trial but that one.

    Raises:
        ConfigError: an unknown family, one that does not serve such data, a factory that raised or returned something
            else than a `Component`, or one whose parts do not fit together.
    """
    family = place.model.family
    component = made_by("model.family", family, FAMILIES, place)
    if not isinstance(component, Component):
        raise ConfigError(f"model.family: {family!r} made a {type(component).__name__}, not a mach Component")
    component.momentum = momentum
    if trains or family not in FAMILIES:
        check_fit(component, place)
    if trains:
        as_in_training(component, place)
    return component
