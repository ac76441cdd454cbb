"""Which CUDA devices there are, and which of them a run takes. Loads no torch: a process of its own asks it.

Devices are strings: what `CUDA_VISIBLE_DEVICES` calls a CUDA device, or `cpu`.
Laws: a machine without a driver pays nothing. `CUDA_VISIBLE_DEVICES` is honoured, and its own names are passed on:
with `CUDA_VISIBLE_DEVICES=2,3` the devices are 2 and 3, so that what a child sets it to is the same device.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from configs.errors import ConfigError
from workers import interpreter

CPU = ("cpu",)
DRIVERS = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
"""One of these is there wherever CUDA can work; the last under WSL."""
ANSWER = "CUDA devices:"
"""Begins the line with the number: what modules print when they are imported stands before it."""
PROBE = f"import torch; print('\\n{ANSWER}', torch.cuda.device_count())"
PROBE_S = 120.0
"""Longest wait for the process that asks torch, whose import from a cold disk or over a network takes a minute."""


def has_driver() -> bool:
    """Whether there is an NVIDIA driver at all; costs a few system calls."""
    return any(driver.exists() for driver in DRIVERS)


@cache
def find_devices() -> tuple[str, ...]:
    """The CUDA devices that torch can use; empty without any. Asked once: torch takes seconds to answer.

    Raises:
        ConfigError: there is a driver, and torch did not say.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "" or not has_driver():
        return ()
    count = ask_torch()
    names = [str(i) for i in range(count)] if visible is None else visible.split(",")
    return tuple(name.strip() for name in names[:count])


def ask_torch() -> int:
    """How many CUDA devices torch can use.

    Raises:
        ConfigError: it did not say: that is no reason to train on the CPU without a word.
    """
    try:
        command = [sys.executable, *interpreter.options(), "-c", PROBE]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        raise unanswered(f"did not answer within {PROBE_S:g} s; try again, now that more of it may be cached") from None
    except OSError as error:
        raise unanswered(f"could not be started ({error}); try again") from None
    said = [line.removeprefix(ANSWER).strip() for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if said and said[-1].isdecimal():
        return int(said[-1])
    last = done.stderr.split("\n")[-2:]
    told = f": {' '.join(last).strip()}" if any(last) else ""
    raise unanswered(f"ended with exit code {done.returncode} and told no number{told}; see mach doctor, try again")


def unanswered(what: str) -> ConfigError:
    """The error of a question that found no answer."""
    return ConfigError(
        f"there is a GPU driver, but python -c 'import torch; torch.cuda.device_count()' {what}, or train on the "
        "CPU with --gpus cpu"
    )


def choose(gpus: str | None, found: tuple[str, ...]) -> tuple[str, ...]:
    """Devices to deal to components: those of `--gpus`, else all of `found`, else the CPU.

    Raises:
        ConfigError: a device that is not there or is named twice, or no list of devices.
    """
    if gpus is None:
        return found or CPU
    wanted = tuple(word.strip() for word in gpus.split(","))
    if wanted == CPU:
        return CPU
    there = what_there_is(found)
    if not all(word.isdecimal() or word in found for word in wanted):
        raise ConfigError(f"--gpus {gpus}: give numbers of devices, like 0,1, or cpu; {there}")
    if not found:
        raise ConfigError(f"--gpus {gpus}: there is no CUDA device here; use --gpus cpu")
    chosen = tuple(word if word in found else str(int(word)) for word in wanted)
    if not set(chosen) <= set(found):
        raise ConfigError(f"--gpus {gpus}: there is no such device; {there}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"--gpus {gpus}: a device is named twice; components share devices by themselves")
    return chosen


def check_here(had: Sequence[str], found: Sequence[str]) -> None:
    """Raise a ConfigError if not all devices that a run is recorded on are there: nobody has typed them now."""
    gone = [device for device in had if device not in found]
    if gone:
        which, are = ("GPU", "is") if len(gone) == 1 else ("GPUs", "are")
        raise ConfigError(
            f"the run was recorded on {which} {', '.join(gone)}, which {are} not here; {what_there_is(found)}: give "
            f"--gpus {','.join(found) or 'cpu'}"
        )


def what_there_is(found: Sequence[str]) -> str:
    """To choose from, for people."""
    return f"there are: {', '.join(found)}" if found else "there is no CUDA device here"
