"""What a computation costs: multiply-adds, counted as they happen. Knows no model.

    with Effort() as effort:
        loss.backward()
    effort.multiply_adds

Counts matrix products, convolutions and attention by torch's own formulas (`torch.utils.flop_counter`), and nothing
else: additions and activations are small beside them. What a causal mask spares is counted all the same. Counts what
its own thread does, forward, backward and in the optimiser.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of attention on a CPU, which torch's table leaves out."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of its gradient."""
    flops = sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    return int(flops)


OURS: Mapping[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


class Effort(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; enter it in the thread that computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops = 0

    @property
    def multiply_adds(self) -> int:
        """So far."""
        return self._flops // 2

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether to load torch's compiler, to tell it to look away: it takes a second (`mach/eager.py`)."""
        return False

    def __enter__(self) -> Self:
        """Count from here."""
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do it, and count it."""
        out = func(*args, **(kwargs or {}))
        kind = func._overloadpacket
        if kind in OURS:
            self._flops += OURS[kind](*args, **(kwargs or {}))
        elif kind in flop_registry:
            self._flops += flop_registry[kind](*args, **(kwargs or {}), out_val=out)
        return out
