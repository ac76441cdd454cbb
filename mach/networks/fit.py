"""A dry run of a component that was just built: do its parts fit together, and into its place? Trains nothing."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from configs.errors import ConfigError
from mach.component import Component
from mach.draws import aside
from mach.modes import evaluating
from mach.networks.place import Place

ROWS = 2
"""Samples of the dry run: not one, which may pass for a dimension of size 1."""
MOST_ROWS = 32
"""Samples of a batch as in training, at most: every component of every life is tried, and on the CPU."""
PASSES = 8
"""Through a part that passes layers over by chance, until one gives a gradient."""


ALONG = (
    "register_buffer the tensors that it computes with, so that they move along, and make others where what comes is, "
    "as in torch.arange(n, device=x.device)"
)


def check_fit(component: Component, place: Place) -> None:
    """Run zeros through every part, as in an examination; draws nothing from any generator but what the parts draw.

    Raises:
        ConfigError: a part that does not take what it gets, changes it, or gives something of a wrong shape; names the
            part, what it got and what it must give.
    """
    if component.children_names != place.children:
        raise wrong(place, f"it has students for {list(component.children_names)}, and needs {list(place.children)}")
    come = what_comes(place)
    if not component.takes(come[0]):
        raise wrong(place, f"tokens={component.tokens}, and the encoder gets {come[0].dtype}: set tokens to match")
    for name, weight in component.named_parameters():
        if weight.dtype != torch.float32 and (weight.is_floating_point() or weight.is_complex()):
            raise wrong(
                place,
                f"its weight {name} is {kind(weight)}, and components are float32: leave out .double(), .bfloat16() "
                "and the like",
            )
    with torch.no_grad(), evaluating(component.modules()):
        _, *s, e, z = through(component, place, come).values()
    for name, each in zip(place.children, s, strict=True):
        if each.shape != e.shape:
            raise wrong(
                place,
                f"the student of {name} gives {shape(each)}, and the joiner an embedding {shape(e)}: make both the "
                "same, for all components of a run have embeddings of one shape",
            )
    if z.shape != (*e.shape[:-1], place.classes):
        raise wrong(place, f"the head gives {shape(z)} for an embedding {shape(e)} and {place.classes} classes")
    if place.judged and place.labels is not None and z.shape[1:-1] != place.labels:
        labels, of = [ROWS, *place.labels], "for every place" if place.labels else "a sample"
        raise wrong(
            place,
            f"the head gives {shape(z)}, and the data have one label {of}, {labels}: logits must be "
            f"{[*labels, place.classes]}; choose a family that gives these, or data with a label for each answer",
        )
    for name, value in component.state_dict().items():
        if not isinstance(value, Tensor):
            raise wrong(
                place,
                f"its state holds a {type(value).__name__}, {name}, and no checkpoint keeps what is no tensor, which "
                "takes pickle: register_buffer what must last, and leave get_extra_state out",
            )


def through(component: Component, place: Place, come: Sequence[Tensor], when: str = "") -> dict[str, Tensor]:
    """What each of `parts_of` makes of what comes; `when`: for an error."""
    a = ran(place, f"{when}the encoder", lambda: component.encoder(*come), *come, encodes=True)
    s = {
        name: ran(place, f"{when}the student of {name}", partial(student, a), a)
        for name, student in component.students.items()
    }
    e = ran(place, f"{when}the joiner", lambda: component.embed(a, s), a, *s.values())
    z = ran(place, f"{when}the head", lambda: component.classify(e), e)
    return dict(zip(parts_of(component), (a, *s.values(), e, z), strict=True))


def parts_of(component: Component) -> dict[str, nn.Module]:
    """By what an error calls them, in the order in which they run."""
    students = {f"student of {name}": student for name, student in component.students.items()}
    return {"encoder": component.encoder, **students, "joiner": component.joiner, "head": component.head}


def as_in_training(component: Component, place: Place) -> None:
    """The same in the mode in which it trains, where dropout and batch normalisation do more; on a copy, for they keep
    statistics. Two batches, then a backward pass: most recipes step down the terms of several.

    Raises:
        ConfigError: as `check_fit`, or of weights that nothing comes of, or a part that changes what its graphs need.
    """
    theirs = ":" in place.model.family
    if theirs:
        check_weights(component, place)
    try:
        twin = copy.deepcopy(component)
    except Exception:  # torch's old weight_norm, or anybody's code: it may train, so long as nobody copies it
        return
    come = what_comes(place)
    come[0].requires_grad_(not place.reads_data)  # a parent's activation may be owed its gradient
    ends: list[Tensor] = []
    with aside(), torch.enable_grad():
        for _ in range(2):
            given = through(twin, place, come, "in training ")
            ends += list(given.values())
        check_gradients(twin, place, come, given)
        try:
            torch.autograd.backward([each.sum() for each in ends if each.requires_grad])
        except Exception as error:
            raise wrong(
                place,
                f"in training no gradients come of two batches: {told_of(error)}; a buffer that is changed in place "
                "cannot stand in a graph as well: clone the buffer there (x / self.scale.clone())",
            ) from error
        if theirs:  # what ours learn is in parameters
            check_kept(component, twin, place)


def check_weights(component: Component, place: Place) -> None:
    """There are some, of one that is judged some that are not frozen, and those are numbers.

    Raises:
        ConfigError: nothing could be learnt.
    """
    weights = dict(component.named_parameters())
    if not weights or (place.judged and not any(each.requires_grad for each in weights.values())):
        lack = "all of its weights are frozen" if weights else "no part has weights"
        raise wrong(place, f"{lack}, so that it would learn nothing: let its joiner and head have some to learn")
    for name, weight in weights.items():
        if is_lazy(weight):
            raise wrong(
                place, f"its weight {name} has no shape yet: let something go through that layer in the factory"
            )
        if weight.requires_grad and not weight.isfinite().all():
            raise wrong(
                place,
                f"its weight {name} is not finite before the first step, and nothing that is learnt with it would be: "
                "initialise it (torch.empty does not)",
            )


def check_gradients(twin: Component, place: Place, come: Sequence[Tensor], given: Mapping[str, Tensor]) -> None:
    """What a part with weights to learn has `given` in training has a gradient; of some that pass layers over by chance
    (stochastic depth) it has none each time.

    Raises:
        ConfigError: in none of PASSES.
    """
    learning = parts_of(twin) | ({"head": twin} if place.judged else {})
    missing = {part for part, network in learning.items() if any(each.requires_grad for each in network.parameters())}
    for _ in range(PASSES):
        missing -= {part for part in missing if given[part].requires_grad}
        if not missing:
            return
        given = through(twin, place, come, "in training ")
    part = next(part for part in learning if part in missing)
    raise wrong(
        place,
        f"in training what the {part} gives has no gradient, though there are weights to learn: leave torch.no_grad(), "
        ".detach(), .data and .numpy() out of it, or freeze them (.requires_grad_(False))",
    )


def check_kept(component: Component, twin: Component, place: Place) -> None:
    """What a copy comes to by a batch as in training is in its state dict: what is loaded computes the same.

    Raises:
        ConfigError: something else has changed that it computes with; names the buffer, if it is one. Or a part that
            does not take as many.
    """
    rows = min(place.rows, MOST_ROWS)
    come, batch = what_comes(place, ramp=True), what_comes(place, rows, ramp=True)
    batch[0].requires_grad_(not place.reads_data)
    through(twin, place, batch, f"in training with a batch of {rows} (train.batch_size) ")
    with torch.no_grad():
        loaded, kept = copy.deepcopy(component), twin.state_dict()
        try:
            loaded.load_state_dict(kept)
        except RuntimeError as error:
            raise wrong(place, f"its state after a batch fits none that is built anew: {told_of(error)}") from error
        given = []
        for each in (twin, twin, loaded):  # twice: one that always draws, from a generator of its own, tells nothing
            with aside(0), evaluating(each.modules()):
                given.append([*through(each, place, come, "after a batch ").values()])
    first, again, other = given
    if alike(first, other) or not alike(first, again):
        return
    now = dict(loaded.named_buffers())
    lost = [
        name
        for name, each in twin.named_buffers()
        if name not in kept and (name not in now or not alike([each], [now[name]]))
    ]
    what = f"its buffer {lost[0]} (persistent=False)" if lost else "something that is no buffer, as a plain attribute,"
    raise wrong(
        place,
        f"{what} changes in training and is in no state_dict, so that what is exported, or resumed, computes something "
        f"else than what was trained: {'leave out persistent=False' if lost else 'register_buffer what must last'}",
    )


def check_there(component: Component, place: Place, device: torch.device) -> None:
    """What was tried out on the CPU computes on the device that it has been moved to, too.

    Raises:
        ConfigError: a part computes with a tensor that has not come along.
    """
    try:
        twin = copy.deepcopy(component)
    except Exception:  # as in training: it may train, so long as nobody copies it
        return
    with aside(device=device), torch.no_grad():
        for when, training in (("", False), ("in training ", True)):
            try:
                come = [each.to(device) for each in what_comes(place)]
                with contextlib.nullcontext() if training else evaluating(twin.modules()):
                    given = through(twin, place, come, f"on {device} {when}")
            except ConfigError as error:
                raise ConfigError(f"{error}; on the CPU it works: {ALONG}") from error
            for part, each in given.items():
                if each.device != come[0].device:
                    raise wrong(place, f"on {device} {when}the {part} gives a tensor of the {each.device}: {ALONG}")


def alike(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether these are the same numbers, but for the order in which they were added."""
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(some, others, strict=True)
    )


def what_comes(place: Place, rows: int = ROWS, *, ramp: bool = False) -> list[Tensor]:
    """What an encoder at this place is called with, made of zeros; `ramp`: of numbers from 0 to below 1, as most data
    are or may be, not drawn.
    """
    x = torch.zeros(rows, *place.sample_shape, dtype=torch.int64 if place.symbols else torch.float32)
    come = [x] if place.incoming is None else [torch.zeros(rows, *place.incoming), x][: 1 + place.context]
    for each in come if ramp else ():
        n = each.numel()
        ramped = torch.arange(n) / n if each.is_floating_point() else torch.arange(n) % place.symbols
        each.copy_(ramped.view_as(each))
    return come


def activation_shape(component: Component, place: Place) -> tuple[int, ...]:
    """Of one sample's activation: what comes to a child in stream wiring."""
    with torch.no_grad(), evaluating(component.modules()):
        a: Tensor = component.encoder(*what_comes(place))
    return tuple(a.shape[1:])


def ran(place: Place, part: str, run: Callable[[], Tensor], *got: Tensor, encodes: bool = False) -> Tensor:
    """What a part gives for what it got: a batch of something, and what it got is as it was. `encodes`: it is an
    encoder.
    """
    shapes = ", ".join(map(shape, got))
    try:
        before = [each._version for each in got]  # torch counts changes: zeros would hide most of them
        given = run()
    except Exception as error:  # it may be anybody's code
        told = told_of(error)
        if any(each.is_floating_point() and each.dtype != torch.float32 for each in got):
            told += "; what comes before it has to give float32: end that in .float()"
        if encodes and len(got) > 1:
            told += (
                "; with method.context, as mach-stream and mach-hop have it, x comes along with a parent's activation, "
                "and where place.context is true an encoder is called with (activation, x): give it both, or set "
                "method.context=false"
            )
        raise wrong(place, f"{part} does not take {shapes}: {told}") from error
    if not isinstance(given, Tensor) or given.dim() < 2 or len(given) != len(got[0]):
        what = shape(given) if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise wrong(place, f"{part} gives {what} for {shapes}, where a batch of {len(got[0])} vectors is needed")
    passes_symbols = encodes and place.tokens and place.wiring == "skip"  # to nobody but its own parts
    if not given.is_floating_point() and not passes_symbols:
        raise wrong(place, f"{part} gives {shape(given)} for {shapes}, where quantities are needed: make them float32")
    if [each._version for each in got] != before:
        raise wrong(
            place,
            f"{part} changes {shapes}, which it gets, in place, and others get the same (an encoder the data "
            "themselves): set inplace=False in its layers, and write x = x - 1 for x -= 1 or x.sub_(1)",
        )
    return given


def told_of(error: Exception) -> str:
    """What it says, on one line; which error it is, where that says more."""
    which = "" if isinstance(error, RuntimeError | ValueError | TypeError) else f"{type(error).__name__}: "
    return which + " ".join(str(error).split()).rstrip(".")


def shape(tensor: Tensor) -> str:
    """As people write it, the batch first; what is not float32 has its kind before it."""
    return f"{'' if tensor.dtype == torch.float32 else kind(tensor) + ' '}{list(tensor.shape)}"


def kind(tensor: Tensor) -> str:
    """Its dtype, as people write it."""
    return str(tensor.dtype).removeprefix("torch.")


def wrong(place: Place, what: str) -> ConfigError:
    """One sentence about a component that does not fit."""
    return ConfigError(f"model.family: {place.model.family!r} makes no component c{place.index} that works: {what}")
