"""The whole network equals its components put together by hand; its readings are those of the test set."""

import math

import pytest
import torch
from torch import nn

from configs.load import load
from configs.tree import Config
from mach.component import Component
from mach.controls import whole_of
from mach.data import Dataset
from mach.data import load as load_data
from mach.recipes import RECIPES
from mach.whole import Whole, averaged, first_children, reading, readings


def config(*settings: str) -> Config:
    return load("digits", ("n_components=3", "graph=chain", *settings), RECIPES)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_data(config().data)


def test_in_skip_wiring_children_answer_children(dataset: Dataset) -> None:
    whole = whole_of(config(), dataset)
    c0, c1, c2 = (whole.part(index) for index in range(3))
    x = dataset.test_inputs[:5]
    a = c0.activation(x)
    deepest = c2.embed(a, {})
    with_all = c0.classify(c0.embed(a, {"c1": c1.embed(a, {"c2": deepest})}))
    one_hop = c0.classify(c0.embed(a, {"c1": c1.embed(a, c1.imitate(a))}))
    assert torch.equal(whole(x), with_all)
    assert torch.equal(whole.read(0, (x,), depth=1), one_hop)
    assert torch.equal(whole.read(0, (x,), depth=0), c0.classify(c0.embed(a, c0.imitate(a))))


def test_a_ring_ends_where_the_depth_does(dataset: Dataset) -> None:
    whole = whole_of(config("graph=ring"), dataset)
    c0, c1, c2 = (whole.part(index) for index in range(3))
    x = dataset.test_inputs[:5]
    a = c0.activation(x)
    bottom = c2.embed(a, c2.imitate(a))
    assert torch.equal(whole(x), c0.classify(c0.embed(a, {"c1": c1.embed(a, {"c2": bottom})})))


def test_a_full_graph_of_many_is_quick(dataset: Dataset) -> None:
    whole = whole_of(config("graph=kgraph", "n_components=12", "model.joiner=[8]", "model.student=[8]"), dataset)
    assert whole(dataset.test_inputs[:2]).shape == (2, 10)  # 11! ways down, 12 × 12 embeddings


@pytest.mark.parametrize("context", [False, True])
def test_in_stream_wiring_activations_pass_through_every_encoder(*, context: bool) -> None:
    parts = []
    for index in range(3):
        encoder: nn.Module = Both(3, 3) if context and index else nn.Linear(2 if not index else 3, 3)
        students = {f"c{index + 1}": nn.Linear(3, 4)} if index < 2 else {}
        parts.append(Component(encoder, nn.Linear(3 + 4 * len(students), 4), nn.Linear(4, 5), students))
    whole = Whole(parts, ((1,), (2,), ()), wiring="stream", context=context)
    x = torch.randn(6, 3 if context else 2)
    if context:
        parts[0].encoder = nn.Linear(3, 3)
    a0 = parts[0].encoder(x)
    a1 = parts[1].encoder(a0, x) if context else parts[1].encoder(a0)
    a2 = parts[2].encoder(a1, x) if context else parts[2].encoder(a1)
    assert torch.equal(whole(x), parts[2].head(parts[2].joiner(a2)))
    s2 = parts[1].students["c2"](a1)
    d1 = parts[1].joiner(torch.cat([a1, s2], dim=1))
    assert torch.equal(whole.read(0, (x,), depth=1), parts[0].head(parts[0].joiner(torch.cat([a0, d1], dim=1))))


class Both(nn.Module):
    """An encoder that gets x with the activation."""

    def __init__(self, a: int, x: int) -> None:
        super().__init__()
        self.linear = nn.Linear(a + x, 3)

    def forward(self, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = self.linear(torch.cat([a, x], dim=1))
        return done


def test_readings_name_what_there_is(dataset: Dataset) -> None:
    whole = whole_of(config(), dataset)
    assert set(readings(whole, dataset, 100)) == {"student", "child", "full"}
    assert set(readings(whole, dataset, 100, heads=False)) == {"full"}
    assert set(readings(whole_of(config("n_components=1"), dataset), dataset, 100)) == {"student", "full"}


def test_a_reading_counts_every_label_and_measures_in_bits(dataset: Dataset) -> None:
    def sure(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10) * 1.0

    share = float((dataset.test_labels == 0).float().mean())
    found = reading(sure, dataset, 77)
    assert found.accuracy == pytest.approx(share)
    partition = math.log2(math.e + 9)
    assert found.bits == pytest.approx(share * (partition - math.log2(math.e)) + (1 - share) * partition, rel=1e-5)


def test_the_average_is_of_probabilities() -> None:
    x = torch.zeros(1, 2)
    logits = averaged([lambda _: torch.tensor([[0.0, 100.0]]), lambda _: torch.tensor([[0.0, 0.0]])])(x)
    assert torch.allclose(logits.softmax(dim=-1), torch.tensor([[0.25, 0.75]]))


def test_the_way_down_ends_in_a_ring_too() -> None:
    assert first_children(((1,), (2,), (0,))) == [0, 1, 2]
    assert first_children(((2, 1), (), (1,))) == [0, 2, 1]
    assert first_children(((),)) == [0]
