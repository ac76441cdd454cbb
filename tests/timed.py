"""A family of networks for tests in real processes: `mlp` in processes whose steps take a set time, and are timed.

`model.family=timed:mlp`, with this folder on PYTHONPATH. MACH_TEST_PAUSES are milliseconds by component, by which every
step lasts longer than it computes: a device's time, which costs this machine's cores nothing. In the directory
MACH_TEST_STEPS `c0.steps` gets one double a step: when it ended, on the monotonic clock.
"""

import array
import os
import time
from pathlib import Path

from torch.optim import optimizer

from mach.component import Component
from mach.networks.mlp import mlp as plain
from mach.networks.place import Place

timed: set[int] = set()


def mlp(place: Place) -> Component:
    """The component in this place."""
    component = plain(place)
    pauses = os.environ["MACH_TEST_PAUSES"].split()
    if place.index in timed:
        return component  # built once more, to look at
    timed.add(place.index)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    file = os.open(Path(os.environ["MACH_TEST_STEPS"]) / f"c{place.index}.steps", flags)

    def end_step(*_: object) -> None:
        time.sleep(float(pauses[place.index]) / 1000)
        os.write(file, array.array("d", [time.monotonic()]).tobytes())

    optimizer.register_optimizer_step_post_hook(end_step)
    return component


def read(directory: Path, name: str) -> list[float]:
    """When the steps of a component ended."""
    return array.array("d", (directory / f"{name}.steps").read_bytes()).tolist()
