"""What a launch would be refused for at its start, found without one: `mach launch --dry-run` asks.

Data are loaded and every component is built as in a launch, one after the other, on the CPU; none trains. That needs
torch, so it is done in one process of its own (`python -m workers.tryout`), which finds modules where the launcher
does. Law: a mistake is the same sentence here and there.
"""

import importlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from configs.errors import ConfigError, MachError
from workers.plan import Plan, ProcessPlan, bus_of

if TYPE_CHECKING:
    from bus.mailbox import Mailbox
    from bus.virtual import VirtualBus
    from mach.data import Dataset


def check(plan: Plan) -> None:
    """Try out the data and the networks of a plan.

    Raises:
        ConfigError: a launch of it would be refused, and why.
    """
    command = [sys.executable, "-P", "-m", "workers.tryout"]
    places = os.environ | {"PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}
    done = subprocess.run(command, input=msgspec.json.encode(plan), capture_output=True, env=places)
    if done.stdout:
        raise ConfigError(done.stdout.decode())
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        how = f"with {done.returncode}" if done.returncode > 0 else f"by {signal.Signals(-done.returncode).name}"
        raise ConfigError(
            f"the process that tried out data and networks ended {how}: {last}; launched without --dry-run, it leaves "
            "a log that tells more"
        )


def build(plan: Plan) -> None:
    """Everybody who trains, and what each needs from its first step on.

    Raises:
        ConfigError, DataError: as in a launch.
    """
    import torch

    from bus.virtual import VirtualBus
    from mach.assemble import learner_of
    from mach.data import load
    from workers.trainer import assemble

    torch.set_num_threads(plan.config.threads)
    dataset, bus = load(plan.config.data), VirtualBus(latency_s=0.0, jitter_s=0.0, seed=0)
    for process in plan.processes:
        if process.kind == "trainer":
            learner = learner_of(plan.config, process.index, process.children, dataset, torch.device("cpu"))
            assemble(plan, process, learner, mailbox(plan, process, bus, dataset), dataset)


def mailbox(plan: Plan, process: ProcessPlan, bus: "VirtualBus", dataset: "Dataset") -> "Mailbox":
    """The component's door, to a bus on which nothing travels."""
    from mach.assemble import samples_of

    return bus.mailbox(
        process.name,
        children=process.children,
        parents=process.parents,
        bus=bus_of(plan),
        samples=samples_of(plan.config, dataset),
    )


if __name__ == "__main__":
    importlib.import_module("workers.tether")  # nobody reads the answer of one whose command was killed
    answer = os.dup(1)
    os.dup2(2, 1)  # what a user's own module prints is no answer
    try:
        build(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))
    except MachError as error:
        os.write(answer, str(error).encode())
        sys.exit(error.exit_code)
