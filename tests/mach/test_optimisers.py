"""Optimisers and schedules: what each does to which weights, and that all are saved and loaded like torch's own."""

import copy
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config, Optimiser
from mach.component import Component
from mach.optimisers import FALLS, FLOOR, OPTIMISERS, hidden_weights, optimiser_of, schedule_of, student_pull_of
from mach.recipes import RECIPES

NAMES = list(OPTIMISERS)


def component() -> Component:
    """A table, a convolution, a linear layer, a norm and a head: all kinds of weights."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Embedding(7, 4), nn.Conv1d(5, 6, 3), nn.Flatten())  # [B, 5] → [B, 12]
    joiner = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8))
    return Component(encoder, joiner, nn.Linear(8, 3), {})


def loss(network: Component) -> Tensor:
    x = torch.arange(10).view(2, 5) % 7
    return nn.functional.cross_entropy(network.classify(network.embed(network.activation(x), {})), torch.tensor([0, 2]))


def descend(network: Component, optimiser: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network).backward()
        optimiser.step()


def named(network: Component) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def config(*settings: str) -> Config:
    return load("digits", settings, RECIPES)


def test_every_name_that_the_tree_allows_has_its_function() -> None:
    hints = get_type_hints(Optimiser)
    assert set(get_args(hints["name"])) == set(OPTIMISERS)
    assert set(get_args(hints["schedule"])) == set(FALLS)


@pytest.mark.parametrize(
    ("name", "kind", "set_to"),
    [
        ("adamw", torch.optim.AdamW, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.75}),
        ("nadam", torch.optim.NAdam, {"betas": (0.99, 0.999), "decoupled_weight_decay": True}),
    ],
)
def test_the_optimiser_is_the_configured_one(name: Any, kind: type, set_to: dict[str, object]) -> None:
    made = optimiser_of(Optimiser(name=name, lr=0.5, weight_decay=0.25, momentum=0.75), component())
    assert isinstance(made, kind)
    (group,) = made.param_groups
    expected = {"lr": 0.5, "weight_decay": 0.25, **set_to}
    assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_moves_every_weight_and_lowers_the_loss(name: Any) -> None:
    network = component()
    before, first = named(network), loss(network).item()
    optimiser = optimiser_of(Optimiser(name=name, lr=1e-2), network)
    descend(network, optimiser, 20)
    still = [key for key, weight in named(network).items() if torch.equal(weight, before[key])]
    assert not still
    assert loss(network).item() < 0.9 * first


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_is_tensors_and_plain_numbers_and_goes_on_bit_for_bit(name: Any) -> None:
    settings = Optimiser(name=name, lr=1e-2)
    network, twin = component(), component()
    optimiser = optimiser_of(settings, network)
    descend(network, optimiser, 3)
    saved = copy.deepcopy(optimiser.state_dict())  # as from a file: it holds the living tensors
    assert all(isinstance(value, Tensor) for slots in saved["state"].values() for value in slots.values())
    for group in saved["param_groups"]:
        for value in group.values():
            flat = value if isinstance(value, list | tuple) else (value,)
            assert all(each is None or isinstance(each, bool | int | float | str) for each in flat)
    twin.load_state_dict(network.state_dict())
    again = optimiser_of(settings, twin)
    again.load_state_dict(saved)
    descend(network, optimiser, 3)
    descend(twin, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_set_in_the_groups_is_the_rate_of_all_weights(name: Any) -> None:
    network = component()
    optimiser = optimiser_of(Optimiser(name=name, lr=0.5), network)
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    before = named(network)
    descend(network, optimiser)
    assert all(torch.equal(weight, before[key]) for key, weight in named(network).items())


def test_muon_has_what_is_inside_and_adamw_the_rest() -> None:
    network = component()
    inside = {id(weight) for weight in hidden_weights(network)}
    assert [key for key, weight in network.named_parameters() if id(weight) in inside] == [
        "encoder.1.weight",
        "joiner.0.weight",
    ]


@pytest.mark.parametrize(("name", "usual"), [("sgd", 0.9), ("muon", 0.95)])
def test_momentum_is_what_was_set_or_what_is_usual(name: str, usual: float) -> None:
    for momentum, expected in ((None, usual), (0.8, 0.8)):
        optimiser = optimiser_of(Optimiser(name=name, momentum=momentum), component())  # type: ignore[arg-type]
        assert [group["momentum"] for group in optimiser.param_groups if "momentum" in group] == [expected]


def test_a_muon_step_is_torchs_own_on_matrices_and_on_flattened_kernels() -> None:
    network = component()
    before = named(network)
    optimiser = optimiser_of(Optimiser(name="muon", lr=0.1, weight_decay=0.0), network)
    descend(network, optimiser)
    for key in ("encoder.1.weight", "joiner.0.weight"):
        parameter = network.get_parameter(key)
        assert parameter.grad is not None
        alone = before[key].flatten(1).requires_grad_()
        alone.grad = parameter.grad.flatten(1)
        torch.optim.Muon([alone], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        assert torch.equal(parameter.detach().flatten(1), alone.detach())
    optimiser.zero_grad()
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(ValueError, match="takes no closure"):
        optimiser.step(lambda: 0.0)


def test_muon_moves_kernels_in_channels_last_as_it_moves_others() -> None:
    """Such a kernel shares no memory with the matrix that it is seen as."""
    convolution = nn.Conv2d(4, 6, 3)
    plain, last = (Component(copy.deepcopy(convolution), nn.Identity(), nn.Linear(6, 2), {}) for _ in range(2))
    last.to(memory_format=torch.channels_last)
    kernels = [network.get_parameter("encoder.weight") for network in (plain, last)]
    assert [kernel.is_contiguous() for kernel in kernels] == [True, False]
    optimisers = [optimiser_of(Optimiser(name="muon", lr=0.1), network) for network in (plain, last)]
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        gradient = torch.randn(kernels[0].shape, generator=generator)
        for kernel, optimiser in zip(kernels, optimisers, strict=True):
            kernel.grad = torch.empty_like(kernel).copy_(gradient)  # lies as the kernel does, which backward sees to
            optimiser.step()
            if step == 1:  # as weights are loaded, or go back to before
                kernel.detach().mul_(0.5)
    assert torch.equal(*kernels)
    assert not torch.equal(kernels[1], convolution.weight)
    assert not kernels[1].is_contiguous(), "in memory it lies as it did"


def test_muon_serves_a_network_without_a_matrix_inside() -> None:
    network = Component(nn.Identity(), nn.LayerNorm(4), nn.Linear(4, 2), {})
    optimiser = optimiser_of(Optimiser(name="muon"), network)
    network.classify(network.embed(torch.ones(3, 4), {})).sum().backward()
    before = named(network)
    optimiser.step()
    assert not torch.equal(named(network)["head.weight"], before["head.weight"])


def test_a_torch_without_muon_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"optimiser\.name: muon needs torch 2\.9 or newer.*choose adamw"):
        optimiser_of(Optimiser(name="muon"), component())


def test_the_cosine_falls_from_lr_to_its_floor_and_stays_there() -> None:
    rate = schedule_of(config("optimiser.lr=0.5", "train.steps=100"))
    assert rate is not None
    assert [rate(version) for version in (0, 50, 100, 200)] == pytest.approx(
        [0.5, 0.5 * (1 + FLOOR) / 2, 0.5 * FLOOR, 0.5 * FLOOR]
    )


def test_the_linear_schedule_warms_up_and_falls_evenly() -> None:
    settings = ("optimiser.lr=0.5", "train.steps=110", "optimiser.schedule=linear", "optimiser.warmup_steps=10")
    rate = schedule_of(config(*settings))
    assert rate is not None
    found = [rate(version) for version in (0, 4, 9, 10, 60, 110, 999)]
    half = 0.5 * (FLOOR + (1 - FLOOR) * 0.5)
    assert found == pytest.approx([0.05, 0.25, 0.5, 0.5, half, 0.5 * FLOOR, 0.5 * FLOOR])


def test_a_timed_run_and_a_constant_schedule_keep_the_rate_after_warming_up() -> None:
    for settings in (("optimiser.schedule=constant",), ("train.minutes=1",)):
        assert schedule_of(config(*settings)) is None
        rate = schedule_of(config(*settings, "optimiser.lr=0.5", "optimiser.warmup_steps=2"))
        assert rate is not None
        assert [rate(version) for version in (0, 1, 2, 10**6)] == pytest.approx([0.25, 0.5, 0.5, 0.5])


def test_a_student_pulls_more_and_more_as_the_rate_falls() -> None:
    fewer = ("train.steps=110", "optimiser.schedule=linear", "optimiser.warmup_steps=10", "method.student_pull=0.6")
    pull = student_pull_of(config(*fewer))
    assert [pull(version) for version in (0, 10, 35, 60, 110, 999)] == pytest.approx([0.0, 0.0, 0.3, 0.6, 0.6, 0.6])
    pull = student_pull_of(config("train.steps=90"))  # of a cosine, after a third, a quarter is gone
    assert [pull(version) for version in (0, 30, 45, 90)] == pytest.approx([0.0, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("setting", ["optimiser.schedule=constant", "train.minutes=1"])
def test_at_a_rate_that_never_falls_a_student_always_pulls_alike(setting: str) -> None:
    pull = student_pull_of(config(setting, "optimiser.warmup_steps=5", "method.student_pull=0.6"))
    assert {pull(version) for version in (0, 4, 5, 10**6)} == {0.6}


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    rate = schedule_of(config("optimiser.lr=0.5", "train.steps=5", "optimiser.warmup_steps=10"))
    assert rate is not None
    assert [rate(version) for version in range(5)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])
