"""A whole run in one process and in virtual time: every component's `Life`, unchanged, in a fibre on the virtual bus.

What a component's process does from its first step to its last report (turns or lock-step, examinations over the bus,
serving its parents, saving) is the code of `workers/trainer.py`; here is only what surrounds a process: a control
whose supervisor is the simulation, a journal without TensorBoard, no checkpoints, and a clock that nobody waits for.

Laws: exact and reproducible by seed: two simulations are equal to the last bit on one machine, weights, messages and
reports. The start of a process takes no virtual time, nor does an examination, whose questions take places in windows
as in a launch. Nothing is left when it ends, but the run's directory.
"""

import hashlib
import io
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import msgspec
import torch

from bus.virtual import Actor
from configs.errors import RunError
from configs.tree import Config
from mach.draws import CPU
from mach.learner import Step
from workers.curves import Point
from workers.health import lacking
from workers.journal import Journal
from workers.keeper import Unkept
from workers.plan import ProcessPlan, unanswered
from workers.process import Control
from workers.report import Report
from workers.room import room
from workers.rundir import RunDir
from workers.stage import Stage
from workers.status import ComponentStatus, Status
from workers.stub import Stub
from workers.stub import live as live_as
from workers.timing import Timing
from workers.trainer import Life, remedy
from workers.turns import Trainer
from workers.verdict import DEGRADED, FAILED, FINISHED

LOOK_S = 0.25
"""Real seconds between two looks of somebody who watches."""
STILL_S = 300.0
"""Virtual seconds without a step and without a message, after which a run is given up: it will never end."""
TICK_S = 0.05
"""Virtual seconds between two checks whether it is time for a look; the run itself does not notice them."""

Watcher = Callable[[Status], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation was, in full: equal for equal arguments."""

    timing: Timing
    status: Status
    """As of `mach status`; seconds are virtual, process numbers 0."""
    curves: dict[str, list[Point]]
    """Every examination, by component."""
    symbols: bool
    """Whether the data are symbols, which are judged by bits, others by accuracy."""
    versions: dict[str, dict[str, dict[int, int]]]
    """Staleness at use, whole run: component → `target` or `gradient` → versions → how often."""
    digest: str
    """Of all weights and message counts: equal digests, equal runs."""


class Orders(Control):
    """The end of a process's pair that a simulated life holds: the simulation is its supervisor."""

    def __init__(self, simulation: "Simulation", process: ProcessPlan) -> None:
        self.incarnation = 1
        self.simulation = simulation
        self.process = process

    def send(self, report: Report) -> None:
        """Tell the simulation."""
        self.simulation.take(report)

    def orders(self) -> set[str]:
        """As the supervisor orders: `release` as soon as every trainer has done its steps or was killed, `orphaned` in
        stream wiring when all parents were, or are stubs that have gone silent, `unanswered` when examinations need one
        """
        parents, plan = self.process.parents, self.simulation.stage.plan
        silent = {name for name, stub in self.simulation.stubs.items() if stub.silent}
        stream = self.simulation.stage.config.wiring == "stream"
        orphaned = stream and bool(parents) and all(map(self.simulation.mute, parents))
        orders = {"release": self.simulation.all_done(), "orphaned": orphaned}
        orders["unanswered"] = bool(silent) and unanswered(plan, self.process, silent)
        return {order for order, given in orders.items() if given}


class Diary(Journal):
    """A journal that keeps every age in versions, and draws no TensorBoard events."""

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage.plan, name, incarnation=1)
        self.versions: dict[str, Counter[int]] = {"target": Counter(), "gradient": Counter()}

    def note(self, step: Step, now: float) -> None:
        """Take note of one step."""
        super().note(step, now)
        self.versions["target"].update(age.versions for age in step.target_ages)
        self.versions["gradient"].update(age.versions for age in step.gradient_ages)

    def _draw(self, report: Report) -> None:
        return None


class Examined(Life):
    """A life that keeps every result of its examinations, and when it came."""

    def __init__(
        self, stage: Stage, process: ProcessPlan, trainer: Trainer, diary: Diary, orders: Orders, log: TextIO
    ) -> None:
        super().__init__(stage.plan, process, trainer, diary, Unkept(), orders)
        self.curve: list[Point] = []
        self.log = log

    def say(self, sentence: str) -> None:
        """One line in the simulation's log."""
        print(f"[{self.process.name} - step {self.trainer.learner.version}] {sentence}", file=self.log)

    def note_exam(self) -> None:
        """Take over the newest result, and keep it."""
        before, exam = self.accuracy, self.trainer.exam
        super().note_exam()
        now = self.accuracy
        if exam is not None and now is not None and now is not before:
            seconds = self.trainer.mailbox.now() - self.started
            known = exam.done  # else its child's are still those of an examination before
            self.curve.append(
                Point(
                    seconds=seconds,
                    step=now.step,
                    student=now.student,
                    child=now.child if known else None,
                    student_bits=now.student_bits,
                    child_bits=now.child_bits if known else None,
                )
            )

    def answer_for_its_end(self) -> None:
        """Raise a `RunError` if its weights could not be written: what a simulation is for is not there."""
        if self.unsaved:
            way = remedy("", None, diverged=True) if self.diverged else room(self.errno)
            error = RunError(f"{self.process.name}: {self.unsaved}; {way}")
            error.exit_code = FAILED
            raise error


class Simulation:
    """One run. `run` once, then `outcome`."""

    def __init__(
        self,
        config: Config,
        timing: Timing,
        directory: Path,
        *,
        lockstep: bool = False,
        kind: type[Examined] = Examined,
        device: torch.device = CPU,
    ) -> None:
        """`directory` must not exist yet: it becomes the run's. Lives are of this `kind`, and compute on `device`.

        Raises:
            ConfigError, DataError: as a launch would.
        """
        self.stage = Stage(config, timing, directory, lockstep=lockstep, device=device)
        self.reports: dict[str, Report] = {}
        self.trainers: dict[str, Trainer] = {}
        self.stubs: dict[str, Stub] = {}
        self.lives: dict[str, Examined] = {}
        self.diaries: dict[str, Diary] = {}
        self._kind = kind
        self._training: set[str] = set()
        self._ended_s = 0.0
        self._log: TextIO = io.StringIO()
        RunDir(directory).make()
        for process in self.stage.plan.processes:
            if process.kind == "trainer":
                self._add_trainer(process)
            else:
                self._add_stub(process)

    def run(self, watcher: Watcher | None = None) -> None:
        """From the start to the end of every life; what they say goes to logs/launcher.log."""
        torch.set_num_threads(self.stage.config.threads)
        actors: list[Actor] = [*self.stage.fibres.values(), Watchdog(self)]
        actors += [] if watcher is None else [Observer(self, watcher)]
        log = RunDir(Path(self.stage.plan.directory)).launcher_log
        with log.open("w", encoding="utf-8") as self._log:
            try:
                self.stage.bus.run(actors)
            finally:
                self.stage.close()

    def take(self, report: Report) -> None:
        """What a component says about itself."""
        self.reports[report.component] = report
        if report.state == "finished":
            self._training.discard(report.component)

    def all_done(self) -> bool:
        """Whether every trainer that was not killed has done its steps."""
        return all(map(self.killed, self._training))

    def killed(self, name: str) -> bool:
        """Whether a trainer has ended before it had done its steps."""
        return name in self._training and self.stage.bus.living(name) is None

    def mute(self, name: str) -> bool:
        """Whether nothing more will come from a component that has not done its steps: killed, or silent by script."""
        stub = self.stubs.get(name)
        if stub is None:
            return self.killed(name)
        return stub.silent or self.stage.bus.living(name) is None

    def over(self) -> bool:
        """Whether every body has come to its end, or was killed."""
        return all(fibre.ended or self.stage.bus.living(name) is None for name, fibre in self.stage.fibres.items())

    def status(self) -> Status:
        """The run at this moment of its clock."""
        ended = self.over()
        rows = [self._row(process, 0 if ended else None) for process in self.stage.plan.processes]
        now = self._ended_s if ended else self.stage.bus.clock.now
        why = lacking(rows)
        return Status(
            run=self.stage.plan.run,
            state="finished" if ended else "training",
            reason=why,
            exit_code=(DEGRADED if why else FINISHED) if ended else None,
            lockstep=self.stage.plan.lockstep,
            launcher_pid=0,
            launcher_started="",
            boot="",
            started_at=0.0,
            written_s=now,
            elapsed_s=now,
            components=rows,
        )

    def outcome(self) -> Outcome:
        """What the run was."""
        return Outcome(
            timing=self.stage.timing,
            status=self.status(),
            symbols=self.stage.dataset.symbols > 0,
            curves={name: life.curve for name, life in self.lives.items()},
            versions={
                name: {kind: dict(sorted(ages.items())) for kind, ages in diary.versions.items()}
                for name, diary in self.diaries.items()
            },
            digest=self.digest(),
        )

    def digest(self) -> str:
        """BLAKE2 of all weights, and of all counts of messages."""
        found = hashlib.blake2b(digest_size=16)
        for name, trainer in self.trainers.items():
            learner, counts = trainer.learner, trainer.mailbox.counts
            for key, tensor in learner.component.state_dict().items():
                found.update(f"{name}.{key}".encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            told = [learner.version, *(sorted(each.items()) for each in (counts.sent, counts.received, counts.dropped))]
            found.update(repr(told).encode())
        return found.hexdigest()

    def _add_trainer(self, process: ProcessPlan) -> None:
        mailbox = self.stage.mailbox(process)
        self._training.add(process.name)
        diary = self.diaries[process.name] = Diary(self.stage, process.name)
        orders = Orders(self, process)
        trainer = self.trainers[process.name] = self.stage.trainer(process, mailbox)

        def body() -> None:
            life = self.lives[process.name] = self._kind(self.stage, process, trainer, diary, orders, self._log)
            try:
                life.live()
                diary.close()
            finally:
                mailbox.close()
                self._ended_s = max(self._ended_s, self.stage.bus.clock.now)
            life.answer_for_its_end()

        self.stage.enact(process, body)

    def _add_stub(self, process: ProcessPlan) -> None:
        mailbox = self.stage.mailbox(process)
        stub = self.stubs[process.name] = self.stage.stub(process, mailbox)
        mailbox.counts.faults = self.stage.faults[process.name]
        diary, orders = Diary(self.stage, process.name), Orders(self, process)

        def body() -> None:
            try:
                live_as(stub, diary, orders)
            finally:
                mailbox.close()
                self._ended_s = max(self._ended_s, self.stage.bus.clock.now)

        self.stage.enact(process, body)

    def _row(self, process: ProcessPlan, code: int | None) -> ComponentStatus:
        """By the component's newest report; one that has not reported yet starts."""
        name, kind, device = process.name, process.kind, process.device
        unheard = Report(component=name, kind=kind, incarnation=1, pid=None, device=device, state="starting")
        said = msgspec.structs.asdict(self.reports.get(name, unheard)) | {"pid": None}
        return ComponentStatus(**said, exit_code=code, below=process.below)


class Watchdog:
    """An actor that gives up a run in which nothing happens any more; what waits in vain would wait for ever."""

    name = "watchdog"

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.still_s = max(STILL_S, 2 * simulation.stage.timing.quiet_s)
        self.before: list[int] = []

    def turn(self, now: float) -> float:
        """Compare with `still_s` ago.

        Raises:
            RunError: nobody has made a step or got an answer since; names who waits for what.
        """
        simulation = self.simulation
        if simulation.over():
            return math.inf
        done = [one.learner.version + one.mailbox.counts.received["target"] for one in simulation.trainers.values()]
        if done == self.before:
            rows = [row for row in simulation.status().components if row.state != "finished" or row.reason]
            waiting = "; ".join(f"{row.component} at step {row.step}: {row.state} {row.reason}".strip() for row in rows)
            mute = [name for name in simulation.stubs if simulation.mute(name)]
            why = "this combination of recipe, graph and window waits for itself: change one of them"
            if mute:
                why = f"by script nothing more comes from {', '.join(mute)}: change components.N.stub"
            raise RunError(f"the run stands still since {now - self.still_s:.0f} s of its time ({waiting}); {why}")
        self.before = done
        return self.still_s


class Observer:
    """An actor that shows the run to a watcher now and then, on the real clock. The run does not notice it."""

    name = "observer"

    def __init__(self, simulation: Simulation, watcher: Watcher) -> None:
        self.simulation = simulation
        self.watcher = watcher
        self.looked = time.monotonic()

    def turn(self, now: float) -> float:
        """Look, if it is time; no more once every life has ended."""
        if self.simulation.over():
            return math.inf
        if time.monotonic() - self.looked >= LOOK_S:
            self.looked = time.monotonic()
            self.watcher(self.simulation.status())
        return TICK_S


def simulate(
    config: Config, timing: Timing, directory: Path, *, lockstep: bool = False, watcher: Watcher | None = None
) -> Outcome:
    """Run `config` in virtual time, leaving a run directory; `watcher` is shown its status now and then.

    Raises:
        ConfigError, DataError: as a launch would.
        RunError: it stands still, or has diverged.
    """
    simulation = Simulation(config, timing, directory, lockstep=lockstep)
    simulation.run(watcher)
    return simulation.outcome()
