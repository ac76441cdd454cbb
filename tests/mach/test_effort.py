"""Multiply-adds, against what a pencil says."""

import inspect
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import forbid_compiler
from mach.effort import Effort


def test_a_linear_layer_and_its_backward() -> None:
    layer, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    with Effort() as effort:
        z = layer(x)
        assert effort.multiply_adds == 3 * 5 * 7
        z.sum().backward()
    assert effort.multiply_adds == 3 * (3 * 5 * 7)  # the output, ∂x, ∂W


def test_convolutions_and_attention_count_and_additions_do_not() -> None:
    with Effort() as effort:
        nn.Conv1d(2, 4, 3)(torch.randn(5, 2, 10))
    assert effort.multiply_adds == 5 * 8 * 4 * 2 * 3
    q = torch.randn(2, 4, 16, 8, requires_grad=True)
    with Effort() as effort:
        e = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        forward = effort.multiply_adds
        e.sum().backward()
    assert forward == 2 * (2 * 4) * 16 * 16 * 8  # q·k and weights·v, of every head
    assert effort.multiply_adds > 3 * forward  # four products, and q·k once more
    with Effort() as effort:
        torch.relu(q + q).sum()
    assert effort.multiply_adds == 0


def test_other_threads_are_not_counted() -> None:
    x = torch.randn(4, 4)
    with Effort() as effort:
        other = threading.Thread(target=lambda: x @ x)
        other.start()
        other.join()
        x @ x
    assert effort.multiply_adds == 64


def test_to_count_loads_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_compiler(monkeypatch)
    monkeypatch.delattr(inspect.unwrap(Effort.__torch_dispatch__), "__dynamo_disable", raising=False)
    with Effort() as effort:
        torch.ones(2, 3) @ torch.ones(3, 5)
    assert effort.multiply_adds == 2 * 3 * 5
