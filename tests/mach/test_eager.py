"""Torch's optimisers called bare: the same numbers, state and hooks, and no compiler."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from conftest import forbid_compiler
from mach.eager import eager

KINDS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 0.01, "weight_decay": 0.1, "fused": True},
    "SGD": {"lr": 0.1, "momentum": 0.9, "fused": True},
    "NAdam": {"lr": 0.01, "betas": (0.99, 0.999), "decoupled_weight_decay": True},
    "Muon": {"lr": 0.01, "weight_decay": 0.1},
}
kinds = pytest.mark.parametrize("name", [name for name in KINDS if hasattr(torch.optim, name)])


def weight() -> nn.Parameter:
    return nn.Parameter(torch.arange(12.0).view(3, 4).cos())


def descend(optimiser: torch.optim.Optimizer, w: nn.Parameter, steps: int = 3) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        (w.sin() @ w.t()).square().sum().backward()
        optimiser.step()


@kinds
def test_a_bare_optimiser_is_torch_s_own_to_the_last_bit(name: str) -> None:
    kind, ours, theirs = getattr(torch.optim, name), weight(), weight()
    bare, whole = eager(kind)([ours], **KINDS[name]), kind([theirs], **KINDS[name])
    assert isinstance(bare, kind)
    descend(bare, ours)
    descend(whole, theirs)
    assert torch.equal(ours, theirs)
    assert bare.defaults == whole.defaults
    saved, expected = bare.state_dict(), whole.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    for key, value in expected["state"][0].items():
        assert torch.equal(saved["state"][0][key], value)
    bare.load_state_dict(copy.deepcopy(expected))
    descend(bare, ours)
    descend(whole, theirs)
    assert torch.equal(ours, theirs)


@kinds
def test_nothing_that_it_does_needs_the_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_compiler(monkeypatch)
    kind, w = getattr(torch.optim, name), weight()
    optimiser = eager(kind)([w], **KINDS[name])
    descend(optimiser, w)
    optimiser.load_state_dict(optimiser.state_dict())
    optimiser.add_param_group({"params": [weight()]})
    with pytest.raises(ImportError):
        kind([w], **KINDS[name])


def test_who_wants_to_know_of_a_step_is_told() -> None:
    w = weight()
    optimiser = eager(torch.optim.SGD)([w], lr=0.1)
    seen: list[bool] = []
    optimiser.register_step_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    optimiser.register_step_post_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    descend(optimiser, w, 2)
    assert seen == [True] * 4
