"""Which devices there are, and which of them a run shall use. Found without torch: a process of its own asks it.

Devices are strings: the number of a CUDA device as the launcher sees it, or `cpu`.
"""

import subprocess
import sys
from pathlib import Path

from configs.errors import ConfigError

CPU = ("cpu",)
PROBE = "import torch; print(torch.cuda.device_count())"
PROBE_S = 60.0


def find_devices() -> tuple[str, ...]:
    """Numbers of the CUDA devices that are visible. A machine without a driver pays nothing for the question."""
    if not Path("/dev/nvidiactl").exists():
        return ()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return ()
    return tuple(map(str, range(int(done.stdout.split()[-1]))))


def choose(gpus: str | None, found: tuple[str, ...]) -> tuple[str, ...]:
    """Devices to deal to components: those of `--gpus`, else all that were found, else the CPU.

    Raises:
        ConfigError: a device that is not there.
    """
    if gpus is None:
        return found or CPU
    wanted = tuple(part.strip() for part in gpus.split(","))
    if wanted == CPU:
        return CPU
    there = f"there are: {', '.join(found)}" if found else "there is no CUDA device here"
    for device in wanted:
        if device not in found:
            raise ConfigError(f"--gpus {gpus}: there is no device {device!r}; {there}, and cpu")
    return wanted
