"""Shapes, and the order in which a joiner takes its targets."""

import pytest
import torch
from torch import nn

from built import build
from configs.tree import Model
from mach.component import Component

B, E, K = 5, 6, 3
MODEL = Model(embedding=E, joiner=(7, 9), student=(8,))


@pytest.mark.parametrize("children", [(), ("c1",), ("c2", "c0", "c1")])
def test_shapes(children: tuple[str, ...]) -> None:
    component = build(MODEL, (4, 2), K, children)
    x = torch.randn(B, 4, 2)
    a = component.activation(x)
    s = component.imitate(a)
    e = component.embed(a, s)
    assert a.shape == (B, 8)
    assert tuple(s) == component.children_names == children
    assert all(imitation.shape == (B, E) for imitation in s.values())
    assert e.shape == (B, E)
    assert component.classify(e).shape == (B, K)
    assert all(component.target_shape(child, x) == (B, E) for child in children)


def test_targets_join_sequences_place_by_place() -> None:
    component = Component(
        nn.Embedding(4, 2), nn.Linear(2 + 3, 3), nn.Linear(3, K), {"c1": nn.Linear(2, 3)}, tokens=True
    )
    x = torch.randint(4, (B, 7))
    a = component.activation(x)
    s = component.imitate(a)
    assert component.classify(component.embed(a, s)).shape == (B, 7, K)
    assert component.target_shape("c1", x) == s["c1"].shape == (B, 7, 3)
    assert component.takes(x)
    assert not component.takes(x.float())


def test_targets_are_taken_by_name_in_the_order_of_the_children() -> None:
    students = {"c2": nn.Identity(), "c0": nn.Identity()}
    component = Component(nn.Identity(), nn.Identity(), nn.Identity(), students)
    a = torch.zeros(1, 1)
    e = component.embed(a, {"c0": torch.full((1, 1), 3.0), "c2": torch.full((1, 1), 5.0)})
    assert e.tolist() == [[0.0, 5.0, 3.0]]


def test_embeddings_and_imitations_keep_their_scale() -> None:
    component = build(MODEL, (8,), K, ("c1",))
    a = component.activation(100 * torch.randn(B, 8))
    for embedding in (component.embed(a, component.imitate(a)), component.imitate(a)["c1"]):
        assert embedding.mean(dim=1).abs().max() < 1e-5
        assert (embedding.var(dim=1, correction=0) - 1).abs().max() < 1e-3


def test_a_residual_join_adds_the_mean_of_the_targets() -> None:
    torch.manual_seed(0)
    component = build(Model(embedding=E), (5,), 3, ("c1", "c2"))
    a, d = torch.randn(B, 5), {name: torch.randn(B, E) for name in ("c1", "c2")}
    plain = component.embed(a, d)
    component.residual = True
    assert torch.equal(component.embed(a, d), plain + (d["c1"] + d["c2"]) / 2)
