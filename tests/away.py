"""`away:0`, a device of torch's that is not the CPU and needs no hardware: what it holds lies in ordinary memory.

To torch its tensors are of a backend of their own (PrivateUse1): autograd goes back on a thread of the device,
optimisers take the ways that they take on a GPU, `.numpy()` is refused. Each operation comes down to `_run`, which
lends the CPU the same memory and has it compute. Stricter than CUDA, and as treacherous:

    a tensor of the CPU beside one of the device is refused, but for a single number, as on CUDA; so are indices
    what is drawn comes from a generator of the device's own, whose states are of another length than the CPU's
    a copy to the host that nobody waits for (non_blocking) is garbage until somebody does
    every wait of the host for the device is counted, by the line of ours that waits: `waits`

Importing this changes torch for the whole process: only what `tests/mach/test_away.py` starts may do so.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _from_dlpack, _to_dlpack
from torch.utils._device import _device_constructors
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "away"
ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / floor) for floor in ("mach", "bus", "workers"))
aten = torch.ops.aten
META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
ON_CPU, ON_AWAY = 1, 12
"""What DLPack calls them."""
MARK, MARK_AT = 0x5A5A, 48
"""Bits of a seed by which a generator of ours is known, whatever object of Python's torch makes for it."""
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
}
"""Operations whose result, or its shape, the host must know before it goes on."""

waits: Counter[str] = Counter()
"""Of the host for the device, by file and line of ours."""
_on_the_way: list[tuple[Tensor, Tensor]] = []
"""(where it is to be on the host, what was sent), of copies that nobody has waited for."""

_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_Generator, _empty, _deepcopy = torch.Generator, torch.empty, torch.Tensor.__deepcopy__


class Generator(_Generator):  # type: ignore[misc]
    """Where one of `away` is wanted, that; else torch's."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _Generator.__new__(cls) if torch.device(device).type == NAME else _Generator(device)

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()
        self.manual_seed(0)

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)

    def manual_seed(self, seed: int) -> "Generator":
        super().manual_seed(seed % (1 << MARK_AT) | MARK << MARK_AT)
        return self

    def get_state(self) -> Tensor:
        return torch.cat((super().get_state(), torch.zeros(8, dtype=torch.uint8)))

    def set_state(self, state: Tensor) -> "Generator":
        if len(state) != len(self.get_state()):
            raise RuntimeError("RNG state is wrong size")
        super().set_state(state[:-8])
        return self


class Event:
    """Of the one queue of the device, in which all has happened that was asked for before."""

    def record(self) -> None:
        """Nothing is behind."""

    def synchronize(self) -> None:
        """Wait for it."""
        wait()


class Module:
    """`torch.away`."""

    Event = Event

    def __init__(self) -> None:
        self.generator: Any = None

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.generator.set_state(state)

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def synchronize(self, device: Any = None) -> None:
        wait()

    is_initialized = is_available = lambda self: True
    _is_in_bad_fork = lambda self: False  # noqa: E731
    current_device = lambda self: 0  # noqa: E731
    device_count = lambda self: 1  # noqa: E731


class _About(NamedTuple):
    """What a schema says of an operation."""

    outs: tuple[str, ...]
    draws: bool
    views: bool


def wait() -> None:
    """The host waits for the device: what is on the way arrives."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    where = "tests" if frame is None else f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
    waits[where] += 1
    for to, sent in _on_the_way:
        to.copy_(sent)
    _on_the_way.clear()


def here(tensor: Tensor) -> Tensor:
    """The same memory, as a tensor of the CPU."""
    return _lent(tensor, ON_CPU)


def there(tensor: Tensor) -> Tensor:
    """The same memory, as a tensor of the device."""
    return _lent(tensor, ON_AWAY)


def _lent(tensor: Tensor, device: int) -> Tensor:
    capsule = _to_dlpack(tensor.detach() if tensor.requires_grad else tensor)
    ctypes.c_int32.from_address(_address(capsule, b"dltensor") + 8).value = device  # DLTensor: data*, then its device
    return _from_dlpack(capsule)


@cache
def _about(op: Any) -> _About:
    schema = op._schema
    aliases = [each.alias_info for each in schema.returns]
    return _About(
        tuple(each.name for each in schema.arguments if each.is_out),
        any(each.name == "generator" for each in schema.arguments),
        any(each is not None and not each.is_write for each in aliases),
    )


def _run(op: Any, *args: Any, **named: Any) -> Any:
    """One operation, on lent memory."""
    if op is aten._copy_from.default:
        return _copy(*args, **named)
    if op is aten.copy_.default:
        return _copy(args[1], args[0], *args[2:], **named)
    if op is aten.as_strided.default:  # places count from the beginning of what is ours
        return op.redispatch(META, *args, **named)
    if op is aten.resize_.default:
        return _resize(*args)
    if op in WAITS:
        wait()
    about, lent = _about(op), _Lent(op)
    args, named = lent.lend(args), {name: lent.lend(each) for name, each in named.items()}
    if named.get("device") is not None:
        named["device"] = torch.device("cpu")
    for name in about.outs:
        named[name] = lent.apart(named[name])
    if about.draws:
        drawn = named.get("generator")
        if drawn is not None and drawn.initial_seed() >> MARK_AT != MARK:
            raise RuntimeError(f"{op}: expected a generator of {NAME}, and got one of {drawn.device}")
        named["generator"] = module.generator if drawn is None else drawn
    return lent.back(op(*args, **named), about.views)


class _Lent:
    """Tensors of one operation, and whose memory they have."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.owners: dict[int, tuple[Tensor, Tensor]] = {}
        """By a lent tensor's id: itself, so that no other gets that id, and ours."""
        self.first: tuple[Tensor, Tensor] | None = None

    def lend(self, each: Any) -> Any:
        if isinstance(each, Tensor):
            if each.device.type != NAME:
                if each.ndim:
                    raise RuntimeError(
                        f"{self.op}: expected all tensors on {NAME}, found {each.device} {[*each.shape]}"
                    )
                return each
            lent = here(each)
            self.owners[id(lent)] = lent, each
            self.first = self.first or (lent, each)
            return lent
        return type(each)(map(self.lend, each)) if isinstance(each, list | tuple) else each

    def apart(self, out: Tensor) -> Tensor:
        """Memory of its own for a result that has none yet, or that grows on the way."""
        if out.numel() and self.op is not aten.mse_loss.out:
            return out
        fresh = _empty(0, dtype=out.dtype)
        self.owners[id(fresh)] = fresh, self.owners[id(out)][1]
        return fresh

    def back(self, each: Any, views: bool) -> Any:
        if isinstance(each, list | tuple):
            return type(each)(self.back(one, views) for one in each)
        if not isinstance(each, Tensor):
            return each
        if id(each) in self.owners:
            lent, ours = self.owners[id(each)]
            if not ours.numel() and lent.numel():
                ours.data = there(lent)
            elif ours.data_ptr() != lent.data_ptr():
                here(ours).copy_(lent)
            return ours
        if views and self.first is not None and self.first[0].dtype == each.dtype:
            base, ours = self.first
            ahead = (each.data_ptr() - base.data_ptr()) // each.itemsize if each.numel() else 0
            at = ours.storage_offset() + ahead
            return aten.as_strided.default.redispatch(META, ours, each.shape, each.stride(), at)
        return there(each)


def _copy(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    """From, to, or on the device."""
    if NAME == source.device.type == to.device.type:
        here(to).copy_(here(source))
    elif to.device.type == NAME:
        if not non_blocking:
            wait()
        here(to).copy_(source)
    elif non_blocking:
        _on_the_way.append((to, here(source).clone()))
        to.view(torch.uint8).fill_(0xAA) if to.is_contiguous() and to.ndim else to.fill_(0)
    else:
        wait()
        to.copy_(here(source))
    return to


def _resize(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """To memory of its own, which keeps nothing: what torch resizes is yet to be written."""
    tensor.data = there(_empty(size, dtype=tensor.dtype))
    return tensor


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    return there(aten.convolution(here(x), here(weight), None if bias is None else here(bias), *how))


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *how: Any) -> tuple[Tensor | None, ...]:
    *how, wanted = how
    found = aten.convolution_backward(here(gradient), here(x), here(weight), [len(weight)], *how, wanted)
    return tuple(None if each is None else there(each) for each in found)


def _copied_deep(self: Tensor, memo: dict[int, Any]) -> Any:
    """Torch would make a storage, which a backend of Python's cannot."""
    if self.device.type != NAME or not self.is_leaf:
        return _deepcopy(self, memo)
    if id(self) not in memo:
        memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
        copied.grad = None if self.grad is None else self.grad.detach().clone()
    return memo[id(self)]


def _unpinned(*size: Any, pin_memory: bool = False, **named: Any) -> Tensor:
    """Without a GPU nothing can be pinned."""
    return _empty(*size, **named)


_device_constructors()  # which `with torch.device(…)` changes, by the functions that there are now
module = Module()
_setup_privateuseone_for_python_backend(NAME, backend_module=module)
torch.Generator, torch.empty, torch.Tensor.__deepcopy__ = Generator, _unpinned, _copied_deep  # type: ignore
module.generator = Generator(NAME)
_libraries: Sequence[torch.library.Library] = (
    torch.library.Library("_", "IMPL"),
    torch.library.Library("aten", "IMPL"),
)
_libraries[0].fallback(_run, "PrivateUse1")
_libraries[1].impl("convolution_overrideable", _convolution, "PrivateUse1")
_libraries[1].impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
AWAY = torch.device(NAME, 0)
