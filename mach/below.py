"""A head that looks all the way down: through copies of everything that follows.

    e_b = joiner(… section_{k+2}(section_{k+1}(a, x), x) …)     of the last component's joiner, over all between
    z_b = head(e_b)                                             and of its head
    copy ← μⁿ·copy + (1 − μⁿ)·shown                             when the child shows what it has, n versions later

A local loss sees no further than its own section, and an end-to-end gradient comes late. Weights that travel up in its
place are late as well, but the gradient is of today's batch: `mach/momentum.py` (MAN, arXiv 2407.05623) carried on to
the end of the chain. A child shows its own section and the copies that it has itself, so that they come up hop by hop,
each hop a little older. Nothing here is learnt: there are only buffers, which are part of the component's state.

With a reach of r (`method.reach`) there are copies of the next r sections alone, and where those do not come to the end
a joiner and a head of the component's own stand there, which are learnt: memory and time are then flat in depth.

Laws: as in `mach/momentum.py`. What law 3 says of targets does not hold here: a parent's joiner and head are trained on
them, now and then, and no gradient goes back, since the section that answered has the chain's own loss already (that
such gradients buy nothing was measured: benchmarks/depth.md). Knows no message, no loss and no optimiser.

Shapes: B batch, D numbers of an activation, E embedding, K classes, P numbers of all weights that a child shows.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from configs.tree import Method
from mach.momentum import Showing, approach, first_layer, frozen, names_of, share_of, tie


class Below(nn.Module):
    """(a [B, D], x [B, …]) → (e [B, E], z [B, K]); for sequences [B, T, …]."""

    shown: Tensor

    def __init__(
        self,
        sections: Mapping[str, nn.Module],
        joiner: nn.Module,
        head: nn.Module,
        decay: float,
        *,
        context: bool,
        ends: bool = True,
    ) -> None:
        """`sections`: the encoders of those that follow, nearest first, as they are in the beginning; `joiner` and
        `head` are the last one's, or, where the copies do not come to the end (`ends`), our own, and learnt.
        `decay`: μ. `context`: whether sections get x as well.
        """
        super().__init__()
        self.child = next(iter(sections))
        self.decay = decay
        self.context = context
        self.sections = nn.ModuleDict({name: frozen(section) for name, section in sections.items()})
        self.ends = ends
        self.joiner = frozen(joiner) if ends else joiner
        self.head = frozen(head) if ends else head
        parts = [*((f"sections.{name}", section) for name, section in sections.items())]
        parts += [("joiner", joiner), ("head", head)] if ends else []
        self.names = [[[f"{part}.{own}" for own in each] for each in names_of(module)] for part, module in parts]
        self.register_buffer("shown", torch.full((1,), -1))  # the child's version when it last showed; −1: never

    def forward(self, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the rest of the chain makes of our activation; an error there says whose part raised it."""
        of = self.child
        try:
            for name, section in self.sections.items():
                of = name
                a = section(a, x) if self.context else section(a)
            of = of if self.ends else ""
            e: Tensor = self.joiner(a)
            z: Tensor = self.head(e)
        except Exception as error:
            if of:
                error.add_note(f"in its copy of {of}'s section")
            raise
        return e, z

    @property
    def children_names(self) -> tuple[str, ...]:
        """The one child."""
        return (self.child,)

    def weights(self, reach: int = 0) -> list[Tensor]:
        """The copies, nearest section first, the head last: those that a parent has as well, which looks down no
        further than `reach` sections, of which the nearest is ours; 0: to the end, all.
        """
        near = self.names if reach == 0 or len(self.sections) < reach else self.names[: reach - 1]
        return [self.get_buffer(name) for names in near for name, *_ in names]

    def shape(self, child: str) -> torch.Size | None:
        """What `child` must show, [P]; None: it is no child of ours."""
        return torch.Size((sum(each.numel() for each in self.weights()),)) if child == self.child else None

    def take(self, child: str, shown: Tensor, version: int) -> None:
        """`child` at this version shows its section and what is below it [P], which fits.

        One that went back to an older checkpoint counts by how far, as in `mach/momentum.py`.
        """
        assert child == self.child, "of another child nothing fits"
        approach(self.weights(), shown, share_of(int(self.shown[0]), version, self.decay))
        for names in self.names:
            tie(self, names)
        self.shown[0] = version


def chain(component: nn.Module, reach: int = 0) -> list[Tensor]:
    """What a component shows: its section, then what follows it within reach, or its own joiner and head at the end."""
    below = getattr(component, "below", None)
    own = list(component.get_submodule("encoder").parameters())
    if isinstance(below, Below):
        return [*own, *below.weights(reach)]
    return [*own, *(each for part in ("joiner", "head") for each in component.get_submodule(part).parameters())]


SHOWN: Mapping[str, Callable[[nn.Module], list[Tensor]]] = {"layer": first_layer, "chain": chain}
"""What a parent's head is made of, by `method.momentum_head`."""


def showing_of(component: nn.Module, method: Method, *, has_parent: bool) -> Showing:
    """What a component shows its parent, and when."""
    shown = SHOWN.get(method.momentum_head)
    weights = partial(chain, component, method.reach) if shown is chain else partial(shown or chain, component)
    return Showing(weights, method.momentum_every, on=shown is not None and has_parent)
