"""What a launch would be refused for at its start, found without one, and what it would train: `mach launch --dry-run`
asks.

Data are loaded and every component is built as in a launch, one after the other, on the CPU; none trains. That needs
torch, so it is done in one process of its own (`python -m workers.tryout`), which finds modules where the launcher
does. What users' code prints goes to standard error. Laws: a mistake is the same sentence here and there; it ends,
whatever users' code does: what hangs as long as a component may (`supervise.starting_ms`) is given up.
"""

import faulthandler
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import msgspec

from bus import address
from configs.errors import ConfigError, MachError
from workers.plan import Plan, ProcessPlan, bus_of

if TYPE_CHECKING:
    from bus.mailbox import Mailbox
    from bus.virtual import VirtualBus
    from mach.data import Dataset


ELSE = "launched without --dry-run, it leaves a log that tells more"
LONGEST_S = 1e9
"""Thirty years: not much more fits into the timers of a machine."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    refused: str = ""
    """Why a launch would be; empty: it would not."""
    data: tuple[str, ...] = ()
    """What was loaded: a line, and one for each oddity (`mach/data/account.py`)."""
    parameters: dict[str, int] = {}
    """By component: how many numbers it learns."""


def check(plan: Plan) -> Found:
    """Try out the data and the networks of a plan.

    Raises:
        ConfigError: a launch of it would be refused, and why.
    """
    command = [sys.executable, "-P", "-m", "workers.tryout"]
    places = os.environ | {"PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}
    asked = msgspec.json.encode(plan)
    with tempfile.TemporaryFile(
        dir=address.temporary()
    ) as answer:  # no pipe: who was left by users' code would hold its other end
        # in a session of its own it hears no Ctrl-C, and no terminal stops it for what users' code prints
        done = subprocess.run(command, input=asked, stdout=answer, env=places, start_new_session=True)
        answer.seek(0)
        told = answer.read()
    found = msgspec.json.decode(told, type=Found) if told else Found()
    if found.refused:
        raise ConfigError(found.refused)
    if done.returncode:
        how = f"with {done.returncode}" if done.returncode > 0 else f"by {signal.Signals(-done.returncode).name}"
        raise ConfigError(f"the process that tried out data and networks ended {how}; {ELSE}")
    return found


def build(plan: Plan, begin: Callable[[], None] = lambda: None) -> Found:
    """Everybody who trains, and what each needs from its first step on; `begin` is called before each of them.

    Raises:
        ConfigError, DataError: as in a launch.
    """
    import torch

    from bus.virtual import VirtualBus
    from mach.assemble import learner_of
    from mach.data import account, load
    from workers.trainer import assemble

    torch.set_num_threads(plan.config.threads)
    begin()
    dataset, bus = load(plan.config.data), VirtualBus(latency_s=0.0, jitter_s=0.0, seed=0)
    parameters = {}
    for process in plan.processes:
        if process.kind == "trainer":
            begin()
            learner = learner_of(plan.config, process.index, process.children, dataset, torch.device("cpu"))
            assemble(plan, process, learner, mailbox(plan, process, bus, dataset), dataset)
            learnt = (each.numel() for each in learner.component.parameters() if each.requires_grad)
            parameters[process.name] = sum(learnt)
    return Found(data=tuple(account(dataset)), parameters=parameters)


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


def tried(plan: Plan) -> tuple[Found, int]:
    """What came of it, and the exit code of it."""
    limit_s = min(plan.config.supervise.starting_ms / 1000, LONGEST_S)

    def give_up(*_: object) -> NoReturn:
        raise TimeoutError(f"made no progress for {limit_s:.1f} s, supervise.starting_ms: hung")

    def begin() -> None:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        faulthandler.dump_traceback_later(2 * limit_s, exit=True)  # what catches all errors, or lets no Python run

    signal.signal(signal.SIGALRM, give_up)
    try:
        return build(plan, begin), 0
    except MachError as error:
        return Found(refused=str(error)), error.exit_code
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return Found(refused=f"data and networks could not be tried out: {what}; {ELSE}"), 1


if __name__ == "__main__":
    importlib.import_module("workers.tether")  # nobody reads the answer of one whose command was killed
    answer = os.dup(1)
    os.dup2(2, 1)  # what a user's own module prints is no answer
    found, code = tried(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))
    os.write(answer, msgspec.json.encode(found))
    with suppress(OSError):
        sys.stdout.flush()
    if os.getpgrp() == os.getpid():  # processes of a user's own that are left: nobody else would end them
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(0, signal.SIGTERM)
    os._exit(code)  # Python would wait for threads of a user's own
