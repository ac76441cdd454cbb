"""The vocabulary of the program: what components say to each other. Knows no socket and no wire format.

Shapes: B batch, E embedding, K classes. A message never changes after it was made, and nobody writes
into a tensor that a message holds: it may still be on its way. They are msgspec's frozen records, not dataclasses:
one is made in 0.1 µs instead of 1.4, and a turn makes a dozen.
"""

from msgspec import Struct
from torch import Tensor


class Batch(Struct, frozen=True, eq=False):
    """What a component may train on: samples of its own data, or in stream wiring what a parent sent."""

    id: int
    inputs: Tensor  # [B, ...] float32
    labels: Tensor  # [B] int64
    indices: Tensor | None = None  # [B] int64
    """Which of `Dataset.samples` the inputs are, bit for bit; None if they are none, as with noise."""
    context: Tensor | None = None  # [B, ...]
    """X, where the inputs are a parent's activation and x came along."""
    sender: str | None = None
    """The parent that sent it, and wants an answer; None: drawn from our own data."""


class Activation(Struct, frozen=True, eq=False):
    """Parent → child: "what do you make of this?" Takes one place in the edge's window until answered."""

    id: int
    version: int
    """The parent's optimiser steps when it left."""
    inputs: Tensor  # [B, ...] the raw input x in skip wiring, the encoder's activation a in stream wiring
    labels: Tensor | None = None  # [B] travel along in stream wiring
    owes: bool = True
    """Whether the parent will return a gradient for the answer; False while it only evaluates."""
    indices: Tensor | None = None  # [B] int64
    """As of a batch: they can travel in place of the inputs (`bus.activation: indices`)."""
    context: Tensor | None = None  # [B, ...] x, along with an activation
    depth: int = 0
    """How many levels further down the answer shall come from (`mach/deep.py`)."""


class Target(Struct, frozen=True, eq=False):
    """Child → parent: the embedding of an activation. The parent learns from it and distils it."""

    id: int
    """Of the activation that it answers."""
    version: int
    """The child's optimiser steps when it answered."""
    embedding: Tensor  # [B, E]; [0] where targets are not wanted
    gradient: Tensor | None = None  # like Activation.inputs; ∂L_child/∂activation in stream wiring
    logits: Tensor | None = None  # [B, K] where they are distilled, and in examinations
    layer: Tensor | None = None  # [P]
    """Now and then weights of the child's, where the parent's head is made of them: of its first layer
    (`mach/momentum.py`), or of its section and of what follows it (`mach/below.py`)."""


class Gradient(Struct, frozen=True, eq=False):
    """Parent → child: ∂L_parent/∂target, one hop, late (law 3)."""

    id: int
    """Of the activation whose answer it is the gradient of."""
    of_version: int
    """The child's version that made that answer."""
    gradient: Tensor  # [B, E]


Message = Activation | Target | Gradient


class Age(Struct, frozen=True):
    """How old a message is. A lower bound in versions for a target, exact in seconds (see design: Staleness)."""

    versions: int
    seconds: float


class Letter(Struct, frozen=True, eq=False):
    """A message as it is taken from the mailbox: who sent it, and how old it is at that moment.

    The age of a target counts from the departure of its activation, on the receiver's own clock. Other
    messages carry None: the clocks of two machines are never compared.
    """

    sender: str
    message: Message
    age: Age | None = None
