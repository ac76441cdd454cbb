"""The plan of a new run as this machine has it, and how it is told before anything starts.

Knows no process.
"""

from pathlib import Path

from bus import address, hosts, keys
from configs.tree import Config
from workers import screen, tryout
from workers.background import unwritable
from workers.instruments import check_probes
from workers.machines import site_of
from workers.plan import Plan, ProcessPlan, make_plan
from workers.rundir import RunDir


def describe(config: Config, runs: Path, name: str, devices: tuple[str, ...], *, lockstep: bool) -> str:
    """The plan, as `--dry-run` prints it, once its place, data and networks have been tried out."""
    keys.check(config.bus)
    try:
        RunDir(runs / name).try_out()
    except OSError as error:
        raise unwritable(runs / name, error) from error
    sockets = address.base() / "mach-…"
    plan = new_plan(config, runs, name, sockets, devices, lockstep=lockstep)
    found = tryout.check(plan)
    lines = [f"# plan of run {name} in {plan.directory}" + (", in lock-step" if lockstep else "")]
    lines += [f"# data: {each}" for each in found.data[:1]] + [f"# {each}" for each in found.data[1:]]
    for process in plan.processes:
        device = f"machine {process.elsewhere}" if process.elsewhere else f"device {process.device}"
        lines.append(
            f"{process.name}  {process.kind}  {device}  "
            f"socket {socket_of(plan, process) if process.parents else 'none'}  "
            f"asks {', '.join(process.children) or 'nobody'}  answers {', '.join(process.parents) or 'nobody'}"
            + (f"  {found.parameters[process.name]:,} parameters" if process.name in found.parameters else "")
        )
    return "\n".join(lines)


def socket_of(plan: Plan, process: ProcessPlan) -> str:
    """Where a component will listen, for people."""
    bus = plan.config.bus
    if bus.hosts:
        return hosts.endpoint(bus, process.index, bind=not process.elsewhere)
    ipc = bus.transport == "ipc"
    return f"{plan.sockets}/{process.name}-1.sock" if ipc else f"tcp://{bus.host}:(chosen by the system)"


def new_plan(config: Config, runs: Path, name: str, sockets: Path, devices: tuple[str, ...], *, lockstep: bool) -> Plan:
    """The plan of a new run, in a directory of sockets; of one over several machines, as this one has it.

    Raises:
        ConfigError: as `make_plan`; or a probe is on that could tell nothing.
    """
    check_probes(config)
    site = site_of(config.bus, name)
    return make_plan(
        config, run=name, directory=runs / name, sockets=sockets, devices=devices, lockstep=lockstep, site=site
    )


def who_is_where(plan: Plan) -> str:
    """What of a run over several machines is here, and what is to be launched elsewhere; empty: it is all here."""
    away = screen.away(plan.elsewhere)
    return "\n".join([f"here: {', '.join(process.name for process in plan.here)}", *away]) if away else ""
