"""Training mode and evaluation mode, for networks of anybody's own: dropout, batch statistics.

    training     a batch that is trained on, on its way through a component: lessons, activations that are sent on, late
                 gradients pulled through old inputs, copies of sections that a head looks down through
    evaluation   everything else: examinations, answers to parents in skip wiring, readings, probes of a child's worth,
                 dry runs

A component trains in the modes in which its factory left its modules: who freezes a batch normalisation leaves it in
evaluation mode. Whatever else is computed with it is in evaluation mode as a whole, as the network that ships
(`mach/export.py`), and leaves every module in the mode that it had. An answer to a parent in skip wiring is among it,
and a late gradient of that answer is still pulled through the component in training mode, with dropout of its own. In
stream wiring an activation that is sent on is part of a step, and an answer is what the step came to: both are in
training mode.

Flags are set one by one: `nn.Module.train` would set those of all submodules, and call what somebody made of it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

MODELESS = frozenset(
    f"torch.nn.modules.{name}"
    for name in (
        *("activation", "container", "conv", "flatten", "fold", "linear", "normalization"),
        *("padding", "pixelshuffle", "pooling", "sparse", "upsampling"),
    )
)
"""Where modules of torch are that do the same in either mode, but for `MINDING`. A network of others costs more where
`staleness.late` is stash: what a parent is told, and the graph that is kept of it, are then computed apart.
"""
MINDING = (nn.MultiheadAttention, nn.RReLU)


def minding(network: nn.Module) -> tuple[nn.Module, ...]:
    """Modules that may look at their mode: all but those known not to. None of a built-in family."""
    return tuple(each for each in network.modules() if minds(each))


def minds(module: nn.Module) -> bool:
    """Whether it may look at its mode: it is neither torch's, known, nor our own, or has a hook, which may do so for it
    (`torch.nn.utils.spectral_norm`).
    """
    kind = type(module)
    known = (kind.__module__ in MODELESS and kind not in MINDING) or kind.__module__.partition(".")[0] == "mach"
    return not known or bool(module._forward_pre_hooks or module._forward_hooks) or "forward" in vars(module)


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Those of them that are in training mode are in evaluation mode meanwhile."""
    on = [module for module in modules if module.training]
    for module in on:
        module.training = False
    try:
        yield
    finally:
        for module in on:
            module.training = True
