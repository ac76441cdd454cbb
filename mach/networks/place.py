"""Where in a run a component stands: all that a factory of networks may build by."""

import math
from dataclasses import dataclass
from typing import Literal

from configs.tree import Model

Wiring = Literal["skip", "stream"]
"""What is sent forward: the raw input x, or the encoder's activation (method.md, "Two wirings")."""


@dataclass(frozen=True, slots=True)
class Place:
    """One component of a run, before it is built. Shapes are of one sample, without the batch."""

    model: Model
    sample_shape: tuple[int, ...]
    """Of x, as the data set has it."""
    classes: int
    """K."""
    children: tuple[str, ...] = ()
    """Names; the component needs a student for each."""
    wiring: Wiring = "skip"
    index: int = 0
    """The component's number: 0 reads the data in both wirings."""
    incoming: tuple[int, ...] | None = None
    """Of what the encoder gets where that is a parent's activation; None where it is x."""
    context: bool = False
    """Whether x comes along with a parent's activation: the encoder is then called with (activation, x)."""
    symbols: int = 0
    """Of how many symbols x is made; 0 where x is quantities."""
    ahead: int | None = None
    """How many numbers the child's first layer makes of our activation, which the joiner gets in its place where the
    method wants that (`method.momentum_head`); None: it gets the activation."""
    labels: tuple[int, ...] | None = None
    """Of a sample's labels: () where it has one, (T,) where every place of a sequence has; None: they are not known, as
    when a network is read back from a file. Nothing may be built by it."""
    judged: bool = True
    """Whether the head has a loss, and so must give logits for every label."""
    rows: int = 2
    """Samples of a batch that it is trained on. Nothing may be built by it."""

    @property
    def reads_data(self) -> bool:
        """Whether the encoder gets x itself."""
        return self.incoming is None

    def joined(self, features: int) -> int:
        """How many numbers the joiner gets before those of the targets; `features`: of an activation."""
        return features if self.ahead is None else self.ahead

    @property
    def features(self) -> int:
        """Numbers in one x."""
        return math.prod(self.sample_shape)

    @property
    def tokens(self) -> bool:
        """Whether what the encoder gets are whole numbers that stand for symbols."""
        return self.reads_data and self.symbols > 0
