"""Each measure on numbers that were worked out by hand, and all of them of a component's children."""

import pytest
import torch
from torch import Tensor, nn

from built import build
from configs.tree import Model
from mach import salience
from mach.component import Component, Tally
from mach.losses import cross_entropy
from mach.salience import integrated, of_children, pruning

B, E, K = 5, 4, 3


def test_pruning_adds_up_over_the_batch_before_it_forgets_the_sign() -> None:
    d = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    g = torch.tensor([[1.0, 1.0], [-1.0, 4.0]])
    assert pruning(d, g) == abs(1 - 3) + abs(2 - 4)
    assert pruning(d.view(1, 2, 2), g.view(1, 2, 2)) == 4.0, "places count like samples"


def test_pruning_is_what_a_linear_loss_changes_by_without_each_unit() -> None:
    d, w = torch.randn(B, E), torch.randn(E)
    change = sum(abs(float((d[:, unit] * w[unit]).mean())) for unit in range(E))
    assert pruning(d, w.expand(B, E) / B) == pytest.approx(change, rel=1e-5)


def test_the_absolute_gradient_is_of_a_samples_own_loss() -> None:
    per_sample = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert salience.absolute_gradient(per_sample / 2) == 1.5  # of the mean over two: the mean of |1|, |−2|, |3|, |0|


def test_the_weight_magnitude_is_of_a_childs_columns_alone() -> None:
    weight = torch.tensor([[9.0, 1.0, -2.0, 9.0], [9.0, 3.0, 4.0, 9.0]])
    assert salience.weight_magnitude(weight, 1, 2) == 2.5


def test_integrated_gradients_of_a_parabola_are_exact() -> None:
    x, y = torch.tensor([2.0]), torch.tensor([3.0])
    found = integrated(lambda inputs: (inputs[0] ** 2 + inputs[0] * inputs[1]).sum(), [x, y], 1)
    assert [float(each) for each in found] == [4.0 + 3.0, 3.0]  # ∫(2αx + αy)dα·x, ∫αx dα·y


def test_integrated_gradients_add_up_to_what_the_value_gained() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    inputs = [torch.randn(B, 2, dtype=torch.float64), torch.randn(B, 4, dtype=torch.float64)]

    def value(parts: list[Tensor]) -> Tensor:
        total: Tensor = net(torch.cat(parts, dim=1)).sum()
        return total

    gained = float((value(inputs) - value([torch.zeros_like(each) for each in inputs])).detach())
    parts = integrated(value, inputs, 64)  # type: ignore[arg-type]
    assert sum(float(each.sum()) for each in parts) == pytest.approx(gained, rel=1e-4)
    unused = integrated(lambda parts: (parts[0] ** 2).sum(), inputs, 4)
    assert not unused[1].any(), "what the value does not depend on has no part in it"


def component() -> Component:
    torch.manual_seed(0)
    return build(Model(embedding=E, joiner=(8,), student=(8,)), (6,), K, ("c1", "c2")).double()


def test_of_children_is_each_measure_of_each_child() -> None:
    net = component()
    a, y = torch.randn(B, 6, dtype=torch.float64), torch.randint(K, (B,))
    d = {child: torch.randn(B, E, dtype=torch.float64) for child in ("c1", "c2")}
    leaves = {child: each.clone().requires_grad_() for child, each in d.items()}
    loss = cross_entropy(net.classify(net.embed(a, leaves)), y)
    loss.backward()  # type: ignore[no-untyped-call]
    found = of_children(net, a, net.imitate(a), d, y)
    joiner = next(net.joiner.parameters()).detach()  # [8, 6 + 4 + 4]
    for number, (child, leaf) in enumerate(leaves.items()):
        assert leaf.grad is not None
        assert found[f"pruning/{child}"] == pytest.approx(pruning(d[child], leaf.grad))
        assert found[f"gradient/{child}"] == pytest.approx(float(leaf.grad.abs().sum()) / E)
        first = 6 + E * number
        assert found[f"weight/{child}"] == pytest.approx(float(joiner[:, first : first + E].abs().mean()))
    nothing = cross_entropy(net.classify(net.embed(0 * a, {child: 0 * each for child, each in d.items()})), y)
    gained = float((nothing - loss).detach())
    parts = [found[f"integrated/{name}"] for name in ("own", "c1", "c2")]
    assert sum(parts) == pytest.approx(gained, abs=0.05)
    assert set(found) == {
        f"{kind}/{child}" for kind in ("pruning", "gradient", "weight", "integrated") for child in d
    } | {"integrated/own"}


def test_a_child_that_has_not_answered_is_stood_in_for_and_has_no_score() -> None:
    net = component()
    a, y = torch.randn(B, 6, dtype=torch.float64), torch.randint(K, (B,))
    found = of_children(net, a, net.imitate(a), {"c2": torch.randn(B, E, dtype=torch.float64)}, y)
    assert set(found) == {"integrated/own", *(f"{kind}/c2" for kind in ("pruning", "gradient", "weight", "integrated"))}


def test_a_child_whose_columns_are_zero_is_worth_nothing_by_every_measure() -> None:
    net = component()
    with torch.no_grad():
        next(net.joiner.parameters())[:, 6 : 6 + E] = 0.0
    a, y = torch.randn(B, 6, dtype=torch.float64), torch.randint(K, (B,))
    d = {child: torch.randn(B, E, dtype=torch.float64) for child in ("c1", "c2")}
    found = of_children(net, a, net.imitate(a), d, y)
    kinds = ("pruning", "gradient", "weight", "integrated")
    assert [found[f"{kind}/c1"] for kind in kinds] == [0.0] * 4
    assert all(found[f"{kind}/c2"] != 0.0 for kind in kinds)


def test_a_joiner_without_a_linear_layer_says_nothing_of_weights() -> None:
    net = component()
    net.joiner = nn.LayerNorm(6 + 2 * E).double()
    assert salience.weights(net, {"c1": torch.zeros(B, E)}) == {}


def test_weights_of_a_child_whose_target_ends_in_logits_are_those_of_its_embedding() -> None:
    net = component()
    net.tally = Tally(K, 1.0, {"c1": 1.0, "c2": 1.0}, E).double()
    joiner = next(net.joiner.parameters()).detach()  # [8, 6 + 4 + 4]: logits go past it
    found = salience.weights(net, {child: torch.zeros(B, E + K) for child in ("c1", "c2")})
    for number, child in enumerate(("c1", "c2")):
        first = 6 + E * number
        assert found[child] == pytest.approx(float(joiner[:, first : first + E].abs().mean()))
