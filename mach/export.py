"""The weights that a run leaves, as a network to use: component k with its student in place of everything deeper.

    skip     z = head(joiner(a, s))     of component k alone; a is x
    stream   the same                   with a = encoder_k(… encoder_1(encoder_0(x), x) …), x wherever it came along

Component 0 is the distilled network; components 0 to k are a more faithful and dearer one. Where there is no child, or
the recipe has no targets, there is no student either.

A file of weights says itself what it is of: its metadata hold the run's configuration and the shape of the samples
(`about`). So neither the data nor the rest of the run's directory is needed.

Laws: a file has nothing run. Nothing is unpickled, and of a family that is none of ours, whose module would be imported
and called, only the reader's own word counts. And it costs little more than its own size: of what it says it is of, no
more is built than its tensors can be of (`CALLS`), and without memory until their shapes fit.

Shapes: B batch, T time, K classes.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from configs.errors import ConfigError, DataError
from configs.load import dump, undump
from configs.tree import Config, Positive, Whole
from mach.assemble import component_of
from mach.checkpoint import load_about, load_weights
from mach.component import Component
from mach.data.dataset import Dataset
from mach.graph import Adjacency, children_of, name_of, path_to
from mach.whole import through

SUFFIX = ".safetensors"
ALIKE = ("recipe", "seed", "wiring", "graph", "n_components", "model")
"""Keys of the configuration that no life of a run changes."""

MOST = 1024
"""Components of a run whose weights are read, at most."""
CALLS = 100
"""Of torch for each tensor in a file, at most, to build the network that it says it is of; in a chain it takes 20."""
LEARNING = ("below", "guess")
"""Parts of a component that it only learns by: copies of what is deeper, and a model of gradients."""


class Samples(msgspec.Struct, frozen=True):
    """What has to be known of the data to build a network for them."""

    sample_shape: Annotated[tuple[Positive, ...], Meta(max_length=16)]
    """Of one input, without the batch."""
    classes: Positive
    symbols: Whole

    def dataset(self) -> Dataset:
        """A data set of such samples, with none in it."""
        none = torch.empty(0, *self.sample_shape), torch.empty(0, dtype=torch.int64)
        return Dataset(*none, *none, self.classes, self.symbols)


class Counted(TorchFunctionMode):
    """Inside, torch is called so many times at most."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = self.most = most

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As it would be without; a RuntimeError, as torch's own about shapes, where it is too much."""
        self.left -= 1
        if self.left < 0:
            raise RuntimeError(
                f"with {self.most} calls of torch it is not built, {CALLS} for each tensor that there is"
            )
        return func(*args, **(kwargs or {}))


class Shipped(nn.Module):
    """x [B, ...] → logits [B, K]; for sequences [B, T, K].

    Args:
        above: in `stream` wiring the encoders that x goes through before it comes to the component.
        component: answers, with its students in place of its children.
        context: whether x comes along with an activation.
        like: a data set of samples like x.
    """

    def __init__(self, above: Sequence[nn.Module], component: Component, like: Dataset, *, context: bool) -> None:
        super().__init__()
        self.above = nn.ModuleList(above)
        self.component = component
        self.context = context
        self.sample_shape = like.sample_shape
        self.symbols = like.symbols

    def forward(self, x: Tensor) -> Tensor:
        """As examinations judge the component with its student.

        Raises:
            DataError: x are no samples as it was trained on; numbers that are no symbols are noticed on the CPU alone.
        """
        self.check(x)
        return self.component.alone(self.component.activation(*through(self.above, x, context=self.context)))

    def check(self, x: Tensor) -> None:
        """Raise a DataError for what are no samples; a sequence of symbols may end before its time."""
        length, *rest = self.sample_shape or (0,)
        own = tuple(x.shape[1:])
        fewer = self.symbols > 0 and not rest and len(own) == 1 and 0 < own[0] <= length
        if x.ndim == 0 or not (own == self.sample_shape or fewer):
            batch, one = ", ".join(["B", *map(str, self.sample_shape)]), tuple(x.shape) == self.sample_shape
            hint = "; of one sample alone give x[None]" if one else ""
            raise DataError(f"the network takes samples [{batch}], and got {list(x.shape)}{hint}")
        quantity = next(self.parameters()).dtype
        if x.is_floating_point() if self.symbols else x.dtype != quantity:
            kind = "whole numbers, which stand for symbols" if self.symbols else f"quantities, as {quantity}"
            raise DataError(f"the network takes {kind}, and got {x.dtype}; give samples as the data source makes them")
        if self.symbols and x.numel() and x.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(each) for each in x.aminmax())
            if low < 0 or high >= self.symbols:
                odd = low if low < 0 else high
                raise DataError(f"the network knows the symbols 0 to {self.symbols - 1}, and got {odd}")


def load(weights: Path | str, component: int = 0, *, family: str = "") -> nn.Module:
    """The network that a run has trained, from its folder of weights: x [B, ...] → logits [B, K].

    x are samples as the data source makes them, on the CPU, as the network is. It is in evaluation mode, and none of
    its parameters asks for a gradient.

    Args:
        weights: the folder, `runs/NAME/weights`.
        component: k, whose student stands in for everything deeper.
        family: the `package.module:factory` of your own that the run was launched with (`model.family`), if it was.

    Raises:
        DataError: there are no such weights, or those in the file are not what it says they are.
        ConfigError: nothing can be made of the component: its head never learnt, or it takes the activation of a stub;
            or it is of a family of somebody's own, and not of `family`, or that cannot be imported.
    """
    folder = Path(weights)
    config, dataset = described(folder, component)
    check_family(found(folder, component), config.model.family, family)
    children = children_of(config.graph, config.n_components)
    stream = config.wiring == "stream"
    above = path_to(component, children) if stream else ()
    check(config, children, component, above)
    encoders = [filled(folder, index, config, children, dataset).encoder for index in above]
    last = filled(folder, component, config, children, dataset)
    network = Shipped(encoders, last, dataset, context=stream and config.method.context)
    return network.train(mode=False).requires_grad_(requires_grad=False)


def about(name: str, version: int, config: Config, dataset: Dataset) -> dict[str, str]:
    """What a file of weights says of itself."""
    samples = Samples(dataset.sample_shape, dataset.classes, dataset.symbols)
    written = msgspec.json.encode(samples).decode()
    return {"component": name, "version": str(version), "config": dump(config), "samples": written}


def described(folder: Path, index: int) -> tuple[Config, Dataset]:
    """What a component's file says: the run's configuration, and a data set without samples."""
    file, name = found(folder, index), name_of(index)
    told = load_about(file)
    if "config" not in told:
        raise DataError(f"{file}: holds no configuration; give the weights folder of a run, as mach launch leaves it")
    if told.get("component") != name:
        raise DataError(f"{file}: holds the weights of {told.get('component')}; give it the name it had")
    config = undump(told["config"], f"{file}: configuration")
    if config.n_components > MOST:
        raise DataError(f"{file}: says that its run has {config.n_components} components; {MOST} are the most to load")
    if index >= config.n_components:
        raise DataError(f"{file}: is of {name}, in a run of {config.n_components} components; train that run again")
    try:
        return config, msgspec.json.decode(told.get("samples", ""), type=Samples).dataset()
    except (msgspec.MsgspecError, TypeError, RuntimeError) as error:
        wrong = str(error) if isinstance(error, msgspec.MsgspecError) else "sizes beyond 64 bits"
        raise DataError(f"{file}: does not say what samples it takes ({wrong}); train that run again") from error


def found(folder: Path, index: int) -> Path:
    """The file of a component's weights."""
    file = folder / (name_of(index) + SUFFIX)
    if file.is_file():
        return file
    there = sorted((each.stem for each in folder.glob(f"c*{SUFFIX}")), key=lambda name: (len(name), name))
    if there:
        way = "; of a run over several machines, gather those of all in one folder"
        raise DataError(f"{folder}: holds no weights of {name_of(index)}; there are: {', '.join(there)}{way}")
    inside = folder / "weights"
    hint = f"give {inside}" if inside.is_dir() else "they are there when a run has ended, in runs/NAME/weights"
    raise DataError(f"{folder}: holds no weights; {hint}")


def check_family(file: Path, named: str, family: str) -> None:
    """Raise a ConfigError where a file would have a module imported that its reader has not named."""
    if ":" in named and named != family:
        raise ConfigError(
            f"{file}: is of {named!r}, whose module would be imported and run; if you trust it: "
            f"load(…, family={named!r})"
        )


def check(config: Config, children: Adjacency, index: int, above: Sequence[int]) -> None:
    """Raise a ConfigError where no network comes of a component."""
    if config.method.heads == "last" and children[index]:
        ends = ", ".join(str(end) for end, own in enumerate(children) if not own)
        raise ConfigError(
            f"component {name_of(index)}: in a run of {config.recipe} only the last has a head that learnt "
            f"(method.heads is last); load component {ends}"
        )
    for each in above:
        if each in config.components and config.components[each].stub is not None:
            raise ConfigError(
                f"component {name_of(index)}: takes the activation of {name_of(each)}, which was a stub and holds no "
                "model; load a component that none is above"
            )


def filled(folder: Path, index: int, config: Config, children: Adjacency, dataset: Dataset) -> Component:
    """A component of the run with the weights that it ended with."""
    own, _ = described(folder, index)
    file = found(folder, index)
    other = [key for key in ALIKE if getattr(own, key) != getattr(config, key)]
    if other:
        raise DataError(f"{file}: is of another run, with another {other[0]}; give a folder with the weights of one")
    names = [name_of(child) for child in children[index]]
    weights = {name: each for name, each in load_weights(file).items() if name.partition(".")[0] not in LEARNING}
    try:
        if ":" in config.model.family:  # its reader answers for it
            component = component_of(config, index, names, dataset, trains=False)
        else:
            with Counted(CALLS * len(weights)), torch.device("meta"):
                component = component_of(config, index, names, dataset, trains=False)
            copy.deepcopy(component).load_state_dict(weights, assign=True)  # shapes fit, or no memory is taken for them
            component.to_empty(device="cpu")
        component.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:  # torch's own: names and shapes, or sizes beyond 64 bits, with a trace
        told = str(error) if isinstance(error, RuntimeError) else str(error).splitlines()[0]
        raise DataError(
            f"{file}: does not fit the network that its configuration describes; use the version of mach, and of a "
            f"family of your own, that trained it: {shorten(told, 400)}"
        ) from error
    return component
