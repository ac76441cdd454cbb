"""How a tensor comes onto the device that a component computes on. Knows no message and no network.

Law: whoever brings something waits for nothing that the device has yet to compute. From memory that is not pinned, as
all that the bus brings, the driver has taken the numbers when this returns, so that the memory may be used again. The
way back is another: what the host reads must be there, and `.cpu()` waits for it.
"""

import torch
from torch import Tensor


def onto(device: torch.device, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same numbers there, as `dtype` if one is given; the tensor itself, if it is that already."""
    return tensor.to(device, dtype, non_blocking=tensor.is_cpu)
