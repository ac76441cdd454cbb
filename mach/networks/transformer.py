"""Pre-norm transformers with causal attention (arXiv 1706.03762, 2002.04745), over sequences of symbols x [T].

A section is `model.blocks` blocks of `model.heads` heads at width E; a place sees itself and what came before it.

    skip     the encoder is a table of symbols and places; the joiner is a section over activation and targets
    stream   component 0's encoder is table and section, every other's a section; the joiner is a perceptron

A student is one block, and so sees the past as its child does. Every embedding ends in a LayerNorm without weights.
Shapes: B batch, T time, E embedding, H heads, K classes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import ConfigError
from configs.tree import Model
from mach.component import Component
from mach.networks.mlp import perceptron
from mach.networks.place import Place

WIDEN = 4
"""Hidden width of a block's perceptron, in E."""
SPREAD = 0.02
"""Deviation of the tables' first values, as in GPT-2."""


def transformer(place: Place) -> Component:
    """A component of causal transformer blocks.

    Raises:
        ConfigError: the data are no sequences of symbols, or E does not divide into the heads.
    """
    model, width = place.model, place.model.embedding
    check(place)
    joined = width * (1 + len(place.children))
    if place.wiring == "stream":
        encoder: nn.Module = Encoder(place)
        joiner: nn.Module = perceptron(joined, model.joiner, width)
    else:
        encoder = Table(place)
        joiner = nn.Sequential(nn.Linear(joined, width), section(model), norm(width))
    return Component(
        encoder=encoder,
        joiner=joiner,
        head=nn.Linear(width, place.classes),
        students={
            child: nn.Sequential(Block(model), perceptron(width, model.student, width)) for child in place.children
        },
        tokens=place.tokens,
    )


def check(place: Place) -> None:
    """Raise a ConfigError where no transformer can be built."""
    model = place.model
    if not place.symbols or len(place.sample_shape) != 1:
        raise ConfigError(
            "model.family: transformer takes sequences of symbols [T], and the data's samples are "
            f"{'symbols' if place.symbols else 'quantities'} {list(place.sample_shape)}; "
            "choose data.source bytes, or another family"
        )
    if model.embedding % model.heads:
        raise ConfigError(
            f"model.heads: {model.heads} heads do not divide an embedding of {model.embedding}; choose a divisor of it"
        )


class Table(nn.Module):
    """Symbols x [B, T] → [B, T, E]: a learned vector for the symbol and one for its place.

    A number that is no symbol, which only a broken neighbour sends, is read as the nearest one.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.symbols = nn.Embedding(place.symbols, place.model.embedding)
        self.places = nn.Embedding(place.sample_shape[0], place.model.embedding)
        for table in (self.symbols, self.places):
            nn.init.normal_(table.weight, std=SPREAD)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] → [B, T, E]."""
        known = x.long().clamp(0, self.symbols.num_embeddings - 1)
        e: Tensor = self.symbols(known) + self.places.weight[: x.shape[1]]
        return e


class Encoder(nn.Module):
    """A section of a stream: x [B, T], or an activation [B, T, E] with x where it comes along, → a [B, T, E]."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.table = Table(place) if place.incoming is None or place.context else None
        self.section = section(place.model)

    def forward(self, *come: Tensor) -> Tensor:
        """What comes is added up at the width of the section."""
        *a, last = come
        h = last if self.table is None else self.table(last)  # [B, T, E]
        e: Tensor = self.section(a[0] + h if a else h)
        return e

    def opening(self) -> nn.Module:
        """The first block."""
        return self.section[0]


class Block(nn.Module):
    """h += attention(norm(h)); h += perceptron(norm(h))."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        width = model.embedding
        self.heads = model.heads
        self.before_attention = nn.LayerNorm(width)
        self.ask = nn.Linear(width, 3 * width)
        self.tell = nn.Linear(width, width)
        self.before_perceptron = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, WIDEN * width), nn.GELU(), nn.Linear(WIDEN * width, width))

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, E] → [B, T, E]."""
        h = h + self.attend(self.before_attention(h))
        added: Tensor = h + self.perceptron(self.before_perceptron(h))
        return added

    def attend(self, h: Tensor) -> Tensor:
        """Every place over itself and those before it."""
        q, k, v = self.ask(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, E/H]
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        told: Tensor = self.tell(seen.transpose(1, 2).flatten(2))
        return told


def section(model: Model) -> nn.Sequential:
    """Blocks, [B, T, E] → [B, T, E]."""
    return nn.Sequential(*(Block(model) for _ in range(model.blocks)))


def norm(width: int) -> nn.LayerNorm:
    """LayerNorm without weights."""
    return nn.LayerNorm(width, elementwise_affine=False)
