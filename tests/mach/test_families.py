"""The built-in families in both wirings: shapes, what a place sees, and that what does not fit is one sentence."""

import inspect
import sys
import types
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mach.networks
from built import build
from configs.errors import ConfigError
from configs.tree import Model
from mach.component import Component
from mach.networks import made, place_of
from mach.networks.conv import picture_of
from mach.networks.place import Place

B, E, K, T, V = 3, 8, 5, 6, 11
SIZES: dict[str, Any] = {"embedding": E, "joiner": (7,), "student": (9,), "blocks": 2, "channels": 16, "heads": 2}


def model(family: str, **other: Any) -> Model:
    return Model(family=family, **{**SIZES, **other})


def x_of(shape: tuple[int, ...], symbols: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if symbols:
        return torch.randint(symbols, (B, *shape), generator=generator, dtype=torch.uint8)
    return torch.randn(B, *shape, generator=generator)


FAMILIES = [
    ("mlp", (4, 5), 0),
    ("conv", (40,), 0),
    ("conv", (7, 6), 0),
    ("conv", (3, 8, 8), 0),
    ("transformer", (T,), V),
]


def lead(family: str) -> tuple[int, ...]:
    """What an embedding has in front of its last dimension."""
    return (B, T) if family == "transformer" else (B,)


@pytest.mark.parametrize(("family", "shape", "symbols"), FAMILIES)
@pytest.mark.parametrize("children", [(), ("c1",), ("c2", "c0")])
def test_in_skip_wiring_everybody_reads_x(
    family: str, shape: tuple[int, ...], symbols: int, children: tuple[str, ...]
) -> None:
    component = build(model(family), shape, K, children, symbols=symbols)
    x = x_of(shape, symbols)
    assert component.takes(x)
    a = component.activation(x)
    s = component.imitate(a)
    e = component.embed(a, s)
    assert tuple(s) == children
    assert all(each.shape == e.shape == (*lead(family), E) for each in s.values())
    assert component.classify(e).shape == (*lead(family), K)


@pytest.mark.parametrize(("family", "shape", "symbols"), FAMILIES)
@pytest.mark.parametrize("context", [False, True])
def test_in_stream_wiring_activations_pass_from_section_to_section(
    family: str, shape: tuple[int, ...], symbols: int, context: bool
) -> None:
    x, a = x_of(shape, symbols), None
    for index in range(3):
        children = (f"c{index + 1}",) if index < 2 else ()
        component = build(
            model(family),
            shape,
            K,
            children,
            wiring="stream",
            ancestors=range(index),
            index=index,
            context=context,
            symbols=symbols,
        )
        come = [x] if a is None else [a, x][: 1 + context]
        assert component.takes(come[0])
        a = component.encoder(*come)
        e = component.embed(a, component.imitate(a))
        assert component.classify(e).shape == (*lead(family), K)
        component.classify(e).sum().backward()
        idle = [name for name, weight in component.named_parameters() if weight.grad is None]
        assert not idle, "every weight takes part"
        a = a.detach()


@pytest.mark.parametrize(("family", "shape", "symbols"), FAMILIES)
@pytest.mark.parametrize("context", [False, True])
def test_however_long_the_way_to_a_section_few_are_built_for_it(
    monkeypatch: pytest.MonkeyPatch, family: str, shape: tuple[int, ...], symbols: int, context: bool
) -> None:
    built, factory = list[int](), mach.networks.FAMILIES[family]

    def noting(place: Place) -> Component:
        built.append(place.index)
        return factory(place)

    monkeypatch.setattr(mach.networks, "FAMILIES", {family: noting})
    stream: dict[str, Any] = {"wiring": "stream", "context": context, "symbols": symbols}
    third, last = (place_of(model(family), shape, K, ancestors=range(k), index=k, **stream) for k in (2, 50))
    assert last.incoming == third.incoming
    assert set(built) == {0, 1}


@pytest.mark.parametrize(("family", "shape", "symbols"), FAMILIES)
def test_embeddings_and_imitations_keep_their_scale(family: str, shape: tuple[int, ...], symbols: int) -> None:
    component = build(model(family, embedding=64), shape, K, ("c1",), symbols=symbols)
    a = component.activation(x_of(shape, symbols))
    for embedding in (component.embed(a, component.imitate(a)), component.imitate(a)["c1"]):
        assert embedding.mean(dim=-1).abs().max() < 1e-4
        assert (embedding.var(dim=-1, correction=0) - 1).abs().max() < 0.05


@pytest.mark.parametrize("wiring", ["skip", "stream"])
def test_no_place_sees_what_comes_after_it(wiring: Any) -> None:
    component = build(model("transformer"), (T,), K, ("c1",), wiring=wiring, symbols=V)
    x = x_of((T,), V)
    other = x.clone()
    other[:, 4:] = (other[:, 4:] + 1) % V

    def z(x: Tensor) -> Tensor:
        a = component.activation(x)
        return component.classify(component.embed(a, component.imitate(a)))

    with torch.no_grad():
        changed = (z(x) - z(other)).abs().amax(dim=(0, 2))
    assert changed[:4].max() < 1e-5
    assert changed[4:].min() > 1e-5


def test_attention_is_the_formula() -> None:
    block = build(model("transformer", heads=1, blocks=1), (T,), K, wiring="stream", symbols=V).encoder.section[0]
    h = torch.randn(B, T, E)
    q, k, v = block.ask(h).chunk(3, dim=-1)
    weights = (q @ k.transpose(1, 2) / E**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(block.attend(h), block.tell(weights @ v))


def test_a_number_that_is_no_symbol_does_no_harm() -> None:
    component = build(model("transformer"), (T,), K, symbols=V)
    x = torch.tensor([[-(2**60), 0, 1, V, 255, 2**60]])
    assert torch.isfinite(component.activation(x)).all()


@pytest.mark.parametrize(("family", "symbols", "shape"), [("conv", 0, (40,)), ("transformer", V, (T,))])
def test_a_section_has_as_many_blocks_as_the_model_says(family: str, symbols: int, shape: tuple[int, ...]) -> None:
    sections = [build(model(family, blocks=n), shape, K, wiring="stream", symbols=symbols).encoder for n in (1, 3)]
    assert [len(each.section) for each in sections] == [1, 3]
    block = sections[0].section[0]
    for weight in block.parameters():
        nn.init.zeros_(weight)
    h = torch.randn(B, 16, 20) if family == "conv" else torch.randn(B, T, E)
    assert torch.equal(block(h), h), "what a block adds to nothing is nothing"


@pytest.mark.parametrize(
    ("family", "shape", "symbols", "other", "said"),
    [
        ("mlp", (T,), V, {}, "mlp takes quantities.*choose transformer"),
        ("conv", (T,), V, {}, r"samples are symbols \[6\]"),
        ("conv", (1, 2, 3, 4), 0, {}, r"quantities \[1, 2, 3, 4\]"),
        ("transformer", (40,), 0, {}, "takes sequences of symbols.*data.source bytes"),
        ("transformer", (T,), V, {"heads": 3}, "3 heads do not divide an embedding of 8"),
    ],
)
def test_a_family_that_does_not_serve_the_data_says_so(
    family: str, shape: tuple[int, ...], symbols: int, other: dict[str, int], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        build(model(family, **other), shape, K, symbols=symbols)
    assert "\n" not in str(error.value)


def test_lines_and_pictures_get_their_channels() -> None:
    shapes = [(40,), (7, 6), (3, 8, 8)]
    assert [picture_of(Place(Model(), shape, K)) for shape in shapes] == [(1, 40), (1, 7, 6), (3, 8, 8)]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)
    return module


def example() -> str:
    """The indented code in the docstring."""
    lines = (mach.networks.__doc__ or "").splitlines()
    first = lines.index("    from torch import nn")
    last = next(i for i, line in enumerate(lines) if line.strip().startswith("mach launch"))
    return inspect.cleandoc("\n".join(lines[first:last]))


def test_the_documented_example_works_in_both_wirings(own: types.ModuleType) -> None:
    assert len(example().splitlines()) <= 30
    exec(compile(example(), "own.py", "exec"), own.__dict__)
    x = torch.randn(B, 4, 2)
    skip = build(model("own:wide"), (4, 2), K, ("c1",))
    first = build(model("own:wide"), (4, 2), K, ("c1",), wiring="stream")
    second = build(model("own:wide"), (4, 2), K, wiring="stream", ancestors=[0], index=1)
    assert skip.classify(skip.embed(skip.activation(x), {"c1": torch.randn(B, E)})).shape == (B, K)
    assert second.activation(first.activation(x)).shape == (B, E)


def test_an_encoder_that_takes_no_context_is_told_what_comes_and_how_to_do_without(own: types.ModuleType) -> None:
    exec(compile(example(), "own.py", "exec"), own.__dict__)
    with pytest.raises(ConfigError, match=r"called with \(activation, x\): .* or set method\.context=false"):
        build(model("own:wide"), (4, 2), K, wiring="stream", ancestors=[0], index=1, context=True)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("layer")


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


PARTS: dict[str, Any] = {
    "encoder": lambda: nn.Flatten(),
    "joiner": lambda: nn.Linear(4 + E, E),
    "head": lambda: nn.Linear(E, K),
    "student": lambda: nn.Linear(4, E),
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, ""),
        ({"encoder": nn.Linear(3, 4)}, r"the encoder does not take \[2, 4\]: mat1 and mat2"),
        ({"encoder": Broken()}, r"the encoder does not take \[2, 4\]: KeyError: 'layer'"),
        ({"encoder": nn.Flatten(0)}, r"the encoder gives \[8\] for \[2, 4\], where a batch of 2 vectors"),
        ({"encoder": nn.LSTM(4, 4)}, "the encoder gives a tuple"),
        ({"joiner": nn.Linear(4, E)}, r"the joiner does not take \[2, 4\], \[2, 8\]"),
        ({"student": nn.Linear(5, E)}, r"the student of c1 does not take \[2, 4\]"),
        ({"student": nn.Linear(4, 4)}, r"the joiner does not take \[2, 4\], \[2, 4\]"),
        (
            {"joiner": nn.Linear(4 + E, 4), "head": nn.Linear(4, K)},
            r"student of c1 gives \[2, 8\], and the joiner",
        ),
        ({"head": nn.Linear(E, K - 1)}, r"the head gives \[2, 4\] for an embedding \[2, 8\] and 5 classes"),
        ({"children": ("c7",)}, r"students for \['c7'\], and needs \['c1'\]"),
        ({"head": nn.Linear(E, K).double()}, r"its weight head.weight is float64, and components are float32"),
        ({"head": nn.Linear(E, K, dtype=torch.complex64)}, r"its weight head.weight is complex64"),
        ({"joiner": nn.Linear(4 + E, E).bfloat16()}, r"its weight joiner.weight is bfloat16"),
        ({"encoder": Cast(torch.int64)}, r"the encoder gives int64 \[2, 4\] for \[2, 4\], where quantities are needed"),
        ({"encoder": Cast(torch.float64)}, r"student of c1 does not take float64 \[2, 4\]: .*; what comes before it"),
        ({"tokens": True}, "tokens=True, and the encoder gets torch.float32"),
    ],
)
def test_a_factory_whose_parts_do_not_fit_is_one_sentence(
    own: types.ModuleType, wrong: dict[str, Any], said: str
) -> None:
    def make(place: Place) -> Component:
        parts = {**{name: part() for name, part in PARTS.items()}, **wrong}
        students = dict.fromkeys(wrong.get("children", place.children), parts["student"])
        return Component(parts["encoder"], parts["joiner"], parts["head"], students, tokens=wrong.get("tokens", False))

    own.__dict__["make"] = make
    if not said:
        assert build(model("own:make"), (4,), K, ("c1",)).training
        return
    with pytest.raises(ConfigError, match=said) as error:
        build(model("own:make"), (4,), K, ("c1",))
    assert str(error.value).startswith("model.family: 'own:make' makes no component c0 that works: ")
    assert "\n" not in str(error.value)


class Shifted(nn.Module):
    """x ← (x − 0.3) / 1.1, as somebody may scale his data."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.3).div_(1.1)


RELU, DROPOUT = nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"encoder": Shifted()}, r"the encoder changes \[2, 4\]"),
        ({"encoder": nn.Sequential(nn.Flatten(), RELU)}, r"the encoder changes \[2, 4\]"),  # a view of x
        ({"student": nn.Sequential(RELU, nn.Linear(4, E))}, r"the student of c1 changes \[2, 4\]"),
        ({"head": nn.Sequential(RELU, nn.Linear(E, K))}, r"the head changes \[2, 8\]"),
        ({"head": nn.Sequential(DROPOUT, nn.Linear(E, K))}, r"in training the head changes \[2, 8\]"),
    ],
)
def test_a_part_that_changes_what_it_gets_is_refused(
    own: types.ModuleType, wrong: dict[str, nn.Module], said: str
) -> None:
    """It would change the test set, or what other parts get. What a joiner gets is its own."""
    parts = {**{name: part() for name, part in PARTS.items()}, **wrong}
    joiner = nn.Sequential(nn.ReLU(inplace=True), parts["joiner"])
    own.__dict__["make"] = lambda place: Component(parts["encoder"], joiner, parts["head"], {"c1": parts["student"]})
    with pytest.raises(ConfigError, match=said) as error:
        build(model("own:make"), (4,), K, ("c1",))
    assert "set inplace=False in its layers" in str(error.value)


@pytest.mark.parametrize(
    ("family", "shape", "symbols", "labels", "said"),
    [
        ("transformer", (T,), V, (), rf"gives \[2, {T}, 5\], .* one label a sample, \[2\]: logits must be \[2, 5\];"),
        ("mlp", (T,), 0, (T,), rf"gives \[2, 5\], .* every place, \[2, {T}\]: logits must be \[2, {T}, 5\];"),
    ],
)
def test_a_head_answers_as_often_as_there_are_labels(
    family: str, shape: tuple[int, ...], symbols: int, labels: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        build(model(family), shape, K, ("c1",), symbols=symbols, labels=labels)
    build(model(family), shape, K, ("c1",), symbols=symbols, labels=(T,) if not labels else ())


class Frail(nn.Linear):
    """Works in an examination alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("not so")
        return super().forward(x)


def test_a_part_that_breaks_in_training_alone_is_refused(own: types.ModuleType) -> None:
    own.__dict__["make"] = lambda place: Component(nn.Flatten(), Frail(4, E), nn.Linear(E, K), {})
    with pytest.raises(ConfigError, match=r"works: in training the joiner does not take \[2, 4\]: not so$"):
        build(model("own:make"), (4,), K)


class Scaled(nn.Module):
    """Divides by a running mean of sizes, which it changes in place."""

    def __init__(self, *, clones: bool) -> None:
        super().__init__()
        self.clones = clones
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale.mul_(0.9).add_(0.1 * x.detach().abs().mean())
        return x / (self.scale.clone() if self.clones else self.scale)


@pytest.mark.parametrize("clones", [False, True])
@pytest.mark.parametrize("where", ["joiner", "encoder", "student"])
def test_a_buffer_that_changes_under_a_graph_is_refused_before_the_first_step(
    own: types.ModuleType, where: str, *, clones: bool
) -> None:
    def make(place: Place) -> Component:
        parts = {name: part() for name, part in PARTS.items()}
        parts[where] = nn.Sequential(parts[where], Scaled(clones=clones))
        return Component(parts["encoder"], parts["joiner"], parts["head"], {"c1": parts["student"]})

    own.__dict__["make"] = make
    place = Place(model("own:make"), (4,), K, ("c1",), wiring="stream", index=1, incoming=(4,))
    with nullcontext() if clones else pytest.raises(ConfigError, match=r"modified by an inplace .*: clone the buffer"):
        made(place)


def test_symbols_may_be_passed_on_to_parts_of_their_own_and_to_no_child(own: types.ModuleType) -> None:
    def make(place: Place) -> Component:
        read = nn.Sequential(nn.Embedding(V, E), nn.Flatten(), nn.Linear(T * E, E))
        return Component(nn.Identity(), read, nn.Linear(E, K), {}, tokens=place.tokens)

    own.__dict__["make"] = make
    build(model("own:make"), (T,), K, symbols=V)
    with pytest.raises(ConfigError, match=rf"the encoder gives int64 \[2, {T}\]"):
        build(model("own:make"), (T,), K, symbols=V, wiring="stream")


def test_a_state_that_no_checkpoint_could_keep_is_refused(own: types.ModuleType) -> None:
    class Counting(nn.Flatten):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            raise AssertionError("nothing is ever restored")

    own.__dict__["make"] = lambda place: Component(Counting(), nn.Linear(4, E), nn.Linear(E, K), {})
    with pytest.raises(ConfigError, match=r"its state holds a dict, encoder\._extra_state, .*: register_buffer"):
        build(model("own:make"), (4,), K)


def test_a_network_that_cannot_be_copied_is_tried_out_all_the_same(own: types.ModuleType) -> None:
    class Single(nn.Linear):
        def __deepcopy__(self, memo: object) -> "Single":
            raise RuntimeError("there is but one")

    own.__dict__["make"] = lambda place: Component(nn.Flatten(), Single(4, E), nn.Linear(E, K), {})
    assert build(model("own:make"), (4,), K).training


def test_a_dry_run_leaves_statistics_and_the_generator_alone(own: types.ModuleType) -> None:
    def make(place: Place) -> Component:
        joiner = nn.Sequential(nn.Linear(4, E), nn.BatchNorm1d(E), nn.Dropout(0.5))
        return Component(nn.Flatten(), joiner, nn.Linear(E, K), {})

    own.__dict__["make"] = make
    torch.manual_seed(3)
    make(Place(Model(), (4,), K))
    expected = torch.rand(1)
    torch.manual_seed(3)
    component = build(model("own:make"), (4,), K)
    assert torch.equal(torch.rand(1), expected)
    assert component.joiner[1].num_batches_tracked == 0
