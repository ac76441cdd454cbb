"""What the commands do: train, go on, stop, read logs.

Knows no option and no torch.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import msgspec

from bus import address, keys
from configs.errors import ConfigError, NoSuchRun, RunError
from configs.load import find_again
from configs.tree import Config
from workers import desk
from workers import devices as devices_of
from workers.attempt import frozen
from workers.background import MAKING, TAKEN, detach, resumed, unwritable
from workers.finding import find_run
from workers.foreground import Opening, opened, supervised
from workers.forkserver import warm
from workers.launcher import Launcher, ended, outcome
from workers.origin import check_path
from workers.plan import Plan, make_plan
from workers.planning import describe, new_plan, who_is_where
from workers.report import SAVING
from workers.resume import check_length, config_of, has_finished, recorded_plan, resumed_plan, same_devices, where
from workers.rundir import RunDir
from workers.status import FINAL, Status, called, launcher_alive, read, rules_of
from workers.supervisor import Supervisor
from workers.vacant import is_vacant

__all__ = ["check_name", "choose_devices", "describe", "detach", "log_lines", "restart", "resumable", "resume"]
__all__ += ["stop", "train", "warm"]

LOOK_S = 0.25
"""Time between two looks into files that somebody else writes."""
PATIENCE_S = 5.0
"""Longest wait for a launcher to do what it was told, beyond the run's grace time."""


def check_name(runs: Path, name: str) -> None:
    """Refuse a name that is no directory's or belongs to another run.

    Raises:
        RunError: it is taken; says by what.
        ConfigError: it is no name of one directory.
    """
    whole = name.isprintable() and name == Path(name).name  # a line break would break every table
    if not name.strip() or not whole or name.startswith((".", "-")):  # a dash: an option of every other command
        raise ConfigError(
            f"--name {name!r}: give the name of one directory, without / or control characters and no leading dot or "
            "dash"
        )
    if not os.path.lexists(runs / name) or (is_vacant(RunDir(runs / name)) and not RunDir(runs / name).locked()):
        return
    try:
        status = read(RunDir(runs / name))
    except RunError as error:
        if RunDir(runs / name).plan.is_file():
            raise RunError(f"{error}; or choose another --name") from None
        what = "is no run of mach, or one that another launch begins just now"
        raise RunError(f"{runs / name} exists and {what}; choose another --name") from None
    doing = f"is running ({called(status)})" if status.state not in FINAL else f"has {ended(status)}"
    over = status.state in FINAL
    way = f"; as other machines know it by this name, move {runs / name} away" if over and status.elsewhere else ""
    stop = "" if over else f", or stop it: mach stop {RunDir(runs / name).called}"
    raise RunError(f"run {name!r} {doing} in {runs}/; choose another --name{stop}{way}")


def choose_devices(gpus: str | None) -> tuple[str, ...]:
    """Devices to deal; asks for CUDA only where it may matter."""
    found = () if gpus == "cpu" else devices_of.find_devices()
    return devices_of.choose(gpus, found)


def train(
    config: Config,
    runs: Path,
    name: str,
    devices: tuple[str, ...],
    *,
    lockstep: bool,
    other: Callable[[], str] | None = None,
    begun: Callable[[bytes], None] | None = None,
) -> int:
    """Run to the end on this terminal; the exit code. `other`: a name in place of one that was taken meanwhile;
    `begun`: called with the words of `workers/background.py`, BEGUN when the run is ours.
    """
    tell = begun or (lambda word: None)

    def plan_at(sockets: Path) -> tuple[Plan, Opening]:
        plan = new_plan(config, runs, name, sockets, devices, lockstep=lockstep)
        return plan, partial(opened, who_is_where(plan), tell)

    tell(MAKING)
    while True:
        try:
            return launched(runs / name, config, plan_at)
        except FileExistsError:
            if other is None:
                tell(TAKEN)
                check_name(runs, name)
                raise
            name = other()


def resume(
    run: RunDir,
    file: str | None,
    settings: Sequence[str],
    gpus: str | None,
    *,
    detach: bool = False,
    begun: Callable[[bytes], None] | None = None,
) -> int:
    """Go on with a run that has ended, however it did; the exit code. `detach`: in the background. `begun`: as of
    `train`.

    Raises:
        RunError: it is running, or its plan is gone.
        ConfigError: its configuration is to be another, and no setting says so; or its steps are done.
    """
    old = recorded_plan(run)
    status = status_of(run)
    if status is not None and status.state not in FINAL:
        raise RunError(f"run {run.name!r} is running ({called(status)}); to stop it: mach stop {run.called}")
    config = config_of(old, file, settings)
    if status is not None and has_finished(status, old.config, config):
        if run.locked():  # by one that could not say so, as on a full disk
            raise busy(run)
        done = max([config.train.steps, *(row.step for row in status.components)])
        length = f"--steps {2 * done}" if config.train.minutes is None else "--minutes M"
        print(f"run {run.name} has finished: nothing is left to do; to train on: mach resume {run.called} {length}")
        return 0
    check_length(old, config)
    check_path(config.data, old.folder)
    if detach:
        keys.check(config.bus)
        return resumed(run, file and find_again(file), settings, gpus)
    warm()
    devices = choose_devices(gpus or same_devices(old))

    def plan_at(sockets: Path) -> tuple[Plan, Opening]:
        plan = resumed_plan(old, config, status, sockets, devices)
        return plan, partial(opened, where(run, plan), begun)

    return launched(run.path, config, plan_at, f"mach resume {run.called}")


def busy(run: RunDir) -> RunError:
    """What to say of a run that is another launcher's."""
    return RunError(f"{run.path}: another launcher is running this run; mach stop {run.called}")


def resumable(runs: Path, name: str | None) -> RunDir:
    """The run called `name`, or the newest.

    Raises:
        ConfigError: there is none; not a NoSuchRun, whose exit code is another thing here.
    """
    try:
        return find_run(runs, name)
    except NoSuchRun as error:
        raise ConfigError(str(error)) from None


def status_of(run: RunDir) -> Status | None:
    """The run's status; None if it cannot be read, which keeps nobody from going on."""
    try:
        return read(run)
    except RunError:
        return None


def launched(directory: Path, config: Config, plan_at: Callable[[Path], tuple[Plan, Opening]], again: str = "") -> int:
    """Supervise the plan that `plan_at` makes for a directory of sockets, with its opening; the exit code.

    Raises:
        FileExistsError: another launch has made the run's directory.
        RunError: the run is another launcher's, or cannot be written down; `again` is the command for when it can.
    """
    keys.check(config.bus)
    address.sweep()
    sockets = address.make_directory()
    plan: Plan | None = None
    try:
        plan, opening = plan_at(sockets)
        return supervised(plan, opening)
    except BlockingIOError as error:
        raise busy(RunDir(directory)) from error
    except OSError as error:
        if isinstance(error, FileExistsError) and plan is not None and not plan.resumed:
            raise  # the name is taken
        raise unwritable(directory, error, again) from error
    finally:
        address.remove(sockets)


def run_quietly(config: Config, runs: Path, name: str, devices: tuple[str, ...]) -> Status:
    """Run to the end without a word; its last status.

    Raises:
        ConfigError: it could not be run as asked.
        RunError: nothing can be written there.
    """
    if config.bus.hosts:
        raise ConfigError("bus.hosts: what is compared runs on one machine; leave it out")
    keys.check(config.bus)
    address.sweep()
    sockets = address.make_directory()
    try:
        plan = make_plan(config, run=name, directory=runs / name, sockets=sockets, devices=devices)
        with Supervisor(plan) as supervisor:
            for _ in supervisor.watch():
                continue
            status = supervisor.status
    except OSError as error:
        raise unwritable(runs, error) from error
    finally:
        address.remove(sockets)
    if status.exit_code == 2:
        raise ConfigError(status.reason)
    return status


def stop(run: RunDir, number: signal.Signals) -> str:
    """Tell the launcher to end and wait until it has, also one that still starts its processes, which hears once they
    are; what to say about it.

    Raises:
        RunError: it does not, and what ends it; it is another user's, or out of sight; or something was lost by it.
    """
    status = read(run)
    if status.state in FINAL or not launcher_alive(run, status):
        why = f": {status.reason}" if status.state == "failed" and status.reason else ""
        return f"run {run.name} has {ended(status)} already{why}"
    try:
        launcher = Launcher(run.name, status.launcher_pid)
    except ProcessLookupError:
        return f"run {run.name} has ended already"
    with closing(launcher):
        launcher.send(number)
        see_end(run, launcher, status.launcher_pid, number)
        launcher.see_helpers_end(PATIENCE_S)
    return outcome(run, status, at_once=number == signal.SIGQUIT)


def see_end(run: RunDir, launcher: Launcher, pid: int, number: signal.Signals) -> None:
    """Wait until the launcher has ended that was sent a signal.

    Raises:
        RunError: it does not, and what ends it.
    """
    patience_s = rules_of(run).grace_ms / 1000 + PATIENCE_S
    until = time.monotonic() + patience_s
    held = frozen(pid)  # nothing is heard until it goes on
    while not select.select([launcher], [], [], 0.0 if held else LOOK_S)[0]:
        if not held and has_reason(status_of(run)):
            until = time.monotonic() + patience_s
        elif held or time.monotonic() >= until:
            raise RunError(f"run {run.name}: {unmoved(run, pid, number, held=held)}")
        held = frozen(pid)


def has_reason(status: Status | None) -> bool:
    """Whether a run that was told to stop takes its time rightly: its processes are yet to be started, or somebody
    writes a checkpoint, which the launcher waits for as well.
    """
    if status is None or status.stale:
        return False
    saving = ("stopping", SAVING)
    return status.state == "starting" or any((row.state, row.reason) == saving for row in status.components)


def unmoved(run: RunDir, pid: int, number: signal.Signals, *, held: bool) -> str:
    """What to say of a launcher that does not end when it is told to, stopped by a signal (`held`) or not."""
    kill = f"kill -9 {pid} ends it, and its components with it, which save nothing"
    if held:
        return f"{halted(pid)}, and end; {kill}"
    if number == signal.SIGQUIT:
        return f"the launcher (pid {pid}) did not end; {kill}"
    return f"the launcher (pid {pid}) did not end; mach stop {run.called} --now"


def halted(pid: int) -> str:
    """What to say of a launcher that hears nothing, and what has it hear again."""
    return f"the launcher (pid {pid}) is stopped (SIGSTOP, or Ctrl-Z); kill -CONT {pid} has it go on"


def restart(run: RunDir, component: str | None) -> str:
    """Have the launcher start a component anew; what it says that it did.

    Raises:
        RunError: the run has ended or is another user's, or it will not.
        ConfigError: nobody said which component.
    """
    status = read(run)
    if status.state in FINAL or not launcher_alive(run, status):
        raise RunError(f"run {run.name} has {ended(status)}; there is nothing to restart")
    if component is None:
        names = [row.component for row in status.components]
        raise ConfigError(
            f"run {run.name}: say which component is to begin anew, of {', '.join(names)}: mach restart {run.called} "
            f"{names[-1]}"
        )
    if frozen(status.launcher_pid):
        raise RunError(
            f"run {run.name}: {halted(status.launcher_pid)}; then mach restart {run.called} {component} once more"
        )
    with suppress(ProcessLookupError):
        Launcher(run.name, status.launcher_pid).close()
    if status.trouble:
        raise RunError(f"run {run.name}: {status.trouble}")
    sockets = Path(msgspec.json.decode(run.plan.read_bytes(), type=Plan).sockets)
    wanted = desk.Ask(restart=component)
    answer = desk.ask(sockets, wanted, rules_of(run).grace_ms / 1000 + PATIENCE_S)
    if not answer.done:
        raise RunError(f"run {run.name}: {answer.text}")
    return answer.text


def log_lines(run: RunDir, only: str | None, *, follow: bool) -> Iterator[str]:
    """Lines of the logs after the name of the component's life, c1.2; all that there are, then, to follow, those that
    come. `only`: a component, or one life of it.

    Raises:
        RunError: there is no such component.
    """
    at: dict[Path, int] = {}
    while True:
        ended = not follow or read(run).state in FINAL  # before reading: what was written until then is all read
        logs = run.logs()
        if only is not None:
            names = [log.stem for log in logs]
            logs = [log for log in logs if only in (log.stem, log.stem.partition(".")[0])]
            if not logs:
                away = read(run).elsewhere.get(only.partition(".")[0])
                why = f"{only} is on {away}" if away else f"there is no log of {only!r}"
                raise RunError(f"run {run.name}: {why}; here are: {', '.join(names) or 'none'}")
        for path in logs:
            for line in new_lines(path, at, whole=not ended):
                yield f"{path.stem}  {line}"
        if ended:
            return
        time.sleep(LOOK_S)


def new_lines(path: Path, at: dict[Path, int], *, whole: bool) -> Iterator[str]:
    """What was written since position `at`; with `whole`, half a line waits for its rest."""
    with path.open("rb") as log:
        log.seek(at.get(path, 0))
        for line in log:
            if whole and not line.endswith(b"\n"):
                return
            at[path] = at.get(path, 0) + len(line)
            yield line.decode(errors="replace").rstrip()


def new_keys(directory: Path) -> str:
    """Make a key pair in a directory; what to say about it.

    Raises:
        ConfigError: there are keys already, or the directory cannot be written.
    """
    from bus import curve  # loads ZeroMQ, which the launcher itself does not need

    keys.save(directory, curve.new_keys())
    return f"{directory}: new keys; use them with --set bus.transport=tcp --set bus.keys={directory}"
