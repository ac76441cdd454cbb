"""Which probes can tell anything in a run: one that none of its components could ever take is refused, not dropped.

Knows no process and no torch; what each measures stands in `mach/probes.py`. Those that cost nothing are on by default
and may be silent.
"""

from collections.abc import Callable, Mapping

from configs.errors import ConfigError
from configs.tree import Config
from mach.graph import children_of


def answers(config: Config) -> str:
    """Why no component ever has a child's embedding; empty where one may."""
    if alone := nobody_asks(config):
        return alone
    return "" if config.method.targets != "none" else "with method.targets=none there are none"


def judged(config: Config) -> str:
    """Why no component that has a child's embedding also has a loss against the labels."""
    if why := answers(config):
        return why
    return "" if config.method.heads == "every" else "with method.heads=last nobody who has children has one"


def late(config: Config) -> str:
    """Why no gradient of a neighbour's ever comes late."""
    method = config.method
    if why := nobody_asks(config):
        return why
    if from_parents(config):
        return ""
    if from_children(config):
        in_step = method.gradient_reach == "full" and method.heads == "last" and config.bus.window == 1
        return "end to end with bus.window=1 every batch waits for its own" if in_step else ""
    none = "method.targets=none" if method.targets == "none" else f"method.momentum_head={method.momentum_head}"
    return f"with method.gradient_reach={method.gradient_reach} and {none} there are none"


def descended(config: Config) -> str:
    """Why none that comes is a term of the loss."""
    method, loss = config.method, config.loss
    if why := late(config):
        return why
    paid = from_parents(config) and method.heads == "every"  # who only imitates a target owes zeros for it
    if (paid and loss.late > 0.0) or (from_children(config) and loss.activation > 0.0 and not method.guess):
        return ""
    if not from_children(config):
        return "with loss.late=0 those of targets count for nothing"
    if method.guess:
        return "with method.guess=true they teach the guess alone"
    return "with loss.activation=0 those of activations count for nothing"


def beside_own(config: Config) -> str:
    """Why no component has such a one and a loss of its own besides."""
    if why := descended(config):
        return why
    if config.method.heads == "every" or config.method.targets != "none":
        return ""
    return "with method.heads=last those that gradients come to have none"


def nobody_asks(config: Config) -> str:
    """Why there is neither target nor gradient: there is no edge."""
    edges = any(children_of(config.graph, config.n_components))
    return "" if edges else f"with n_components={config.n_components} nobody has a child"


def from_parents(config: Config) -> bool:
    """Whether parents pay for targets (law 3)."""
    return config.method.targets != "none" and config.method.momentum_head != "chain"


def from_children(config: Config) -> bool:
    """Whether children return the gradient of an activation."""
    return config.wiring == "stream" and config.method.gradient_reach != "none"


NEEDS: Mapping[str, tuple[str, Callable[[Config], str]]] = {
    "weight_gap": ("gradients that come late", late),
    "fresh": ("gradients that come late and are descended", descended),
    "agreement": ("late gradients that are descended, and a loss of one's own beside them", beside_own),
    "cka": ("children's embeddings", answers),
    "r2": ("children's embeddings, which students imitate", answers),
    "reliance": ("children's embeddings and a loss of one's own", judged),
    "salience": ("children's embeddings and a loss of one's own", judged),
}
"""By probe: what it needs, and why a run has none of that."""


def check_probes(config: Config) -> None:
    """Refuse a probe that is on and can tell nothing.

    Raises:
        ConfigError: so it is; by its key, with what it needs.
    """
    for name, (needed, lack) in NEEDS.items():
        if getattr(config.probes, name) and (why := lack(config)):
            raise ConfigError(f"probes.{name}: needs {needed}, and {why}; leave it out, or choose another recipe")
