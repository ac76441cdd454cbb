"""One component's life, from its first step to its last report: train, examine, save, serve until parents are done.

`run` is what a process does: it knows real sockets and files. `Life` is the same in a simulation; its turns are
those of `workers/turns.py`.
"""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from bus.mailbox import EdgeView, Mailbox
from bus.sockets import ZmqMailbox
from configs.errors import Diverged, Unsaved
from configs.tree import Config
from mach import draws
from mach.assemble import exam_of, learner_of, samples_of
from mach.checkpoint import save_weights
from mach.data import Batches, Dataset, load
from mach.evaluate import Accuracy
from mach.export import about
from mach.learner import Learner
from mach.seeds import seed_of
from workers.common import check_common, wire_id
from workers.journal import Journal
from workers.keeper import Keeper, say
from workers.plan import Plan, ProcessPlan, bus_of, endpoints_of
from workers.process import Control, device_of
from workers.report import SAVING, State
from workers.room import room
from workers.rundir import RunDir
from workers.turns import WAIT_S, Trainer

EXAM_S = 20.0
"""Longest wait at the end for a child's next answer about the test set."""


class Life:
    """What a trainer's process does from its first step to its last report."""

    def __init__(
        self, plan: Plan, process: ProcessPlan, trainer: Trainer, journal: Journal, keeper: Keeper, control: Control
    ) -> None:
        self.plan = plan
        self.process = process
        self.config: Config = plan.config
        self.trainer = trainer
        self.journal = journal
        self.keeper = keeper
        self.control = control
        self.accuracy: Accuracy | None = None
        self.orders: set[str] = set()
        self.started = trainer.mailbox.now()
        above = {plan.process(name).kind for name in process.parents}
        self.led = trainer.learner.stream is not None and "trainer" in above
        """Whether somebody above decides how long we train: in stream wiring; but a stub trains for no time."""
        self.fed = False
        """Whether a parent has been heard of: who never was cannot have left."""
        self.idle = False
        """Whether the last turn found nothing to train on."""
        self.pulse = partial(self.report_if_due, "training", "examines itself")  # it may take longer than many steps
        self.unsaved = ""
        """Why the end is not on disk."""
        self.diverged = False
        """Whether that is no fault of the disk: its numbers are ruined."""
        self.errno: int | None = None  # of the error, where it is the system's
        self.bound: int | None = None
        """Lock-step, told to gather: the step that it said it is bound to reach."""
        self.first = 1
        """Version after the first step of this life."""

    def live(self) -> None:
        """Go on, train, examine, save, serve. An order to stop shortens each of them but the saving."""
        self.go_on()
        self.train()
        self.checkpoint(last=True)
        stopped = self.called()
        if not stopped:
            self.examine()
        self.save_end("stopped" if stopped else self.ending())
        if not stopped:
            self.trainer.leave()
            self.serve_parents()
        elif not self.stopped():
            self.see_all_stop()
        if self.unsaved:
            self.save_end("at its very end")
        self.report("stopped" if stopped else "finished", self.unsaved or ("asked to stop" if stopped else ""))

    def ending(self) -> str:
        """How its training ended that nobody stopped: in stream wiring, with what came from above."""
        did, most = self.trainer.learner.version, self.config.train.steps
        timed, orphaned = self.config.train.minutes is not None, "orphaned" in self.orders
        if not (self.led or orphaned) or (did >= most and not timed):
            return "has done its steps"
        of = "" if timed else f" of {most}"
        return f"ends after {did}{of} steps, since nothing more comes from {', '.join(self.process.parents)}"

    def save_end(self, when: str) -> None:
        """The weights, and the last checkpoint, if it is not written yet; `unsaved` is why that could not be."""
        learner, before = self.trainer.learner, self.unsaved
        weights = RunDir(Path(self.plan.directory)).weights(self.process.name)
        said = about(self.process.name, learner.version, self.config, self.trainer.batches.dataset)
        try:
            if self.keeper.failing:
                self.checkpoint(last=True)
            save_weights(learner.examined, weights, said, learner.descent.unbounded)
            self.unsaved, self.diverged, self.errno = self.keeper.failing, self.keeper.diverged, self.keeper.errno
        except Diverged as error:
            self.unsaved, self.diverged = self.keeper.failing or f"training has diverged: {error}", True
        except OSError as error:
            self.unsaved, self.diverged = f"{weights}: cannot be written ({error.strerror or error})", False
            self.errno = error.errno
        if not self.unsaved:
            self.say(f"{when}; weights are saved")
        elif not before:
            self.say(f"{when}, but cannot save that, and tries again: {self.unsaved}")

    def answer_for_its_end(self) -> None:
        """Raise `Unsaved` if it is not on disk, when neighbours have been told good-bye."""
        if not self.unsaved:
            return
        kept = self.keeper.record(self.trainer.mailbox.now()).step
        newest = "it has no checkpoint" if kept is None else f"its newest checkpoint is of step {kept}"
        raise Unsaved(
            f"could not save its end: {self.unsaved}; {newest}; "
            f"{remedy(RunDir(Path(self.plan.directory)).called, kept, diverged=self.diverged, errno=self.errno)}"
        )

    def train(self) -> None:
        """Turns until the steps, or the minutes, are done."""
        learner, exam = self.trainer.learner, self.trainer.exam
        in_turn = partial(self.interrupted, in_turn=True)
        self.journal.begin(self.trainer.mailbox.now())
        while not self.stopped() and not self.trained():
            if self.held():
                continue
            step = self.trainer.lockstep_turn(in_turn) if self.plan.lockstep else self.trainer.turn()
            now = self.trainer.mailbox.now()
            self.idle = step is None
            if step is None:
                self.note_exam()
                if self.journal.due(now):
                    self.report("waiting", self.trainer.wanting())
                continue
            self.journal.note(step, now)
            self.note_exam()
            if exam is not None and step.updated and step.version % self.config.evaluate.every_steps == 0:
                exam.begin(learner.version, ask=exam.done and not self.plan.lockstep, pulse=self.pulse)
                self.note_exam()
            if learner.version == self.first or self.journal.due(now):
                self.report("training")
            if self.keeper.due(learner.version, now):
                self.checkpoint()

    def go_on(self) -> None:
        """From the newest good checkpoint, if there is one."""
        manifest = self.keeper.go_on(self.trainer.restore, self.trainer.mailbox.now())
        if manifest is not None:
            life = manifest.values["life"]
            self.journal.go_on(manifest.version, life["samples"], life["child_steps"])
            self.started -= life["seconds"]
            if self.trainer.exam is not None and life["accuracy"] is not None:
                self.accuracy = self.trainer.exam.result = Accuracy(**life["accuracy"])
        self.first = self.trainer.learner.version + 1

    def checkpoint(self, *, last: bool = False) -> None:
        """Hand a copy of all that there is to the keeper; in lock-step, and at the end, wait until it is written.

        In lock-step an order to stop, other than one to gather before, comes in the middle of a step: the last common
        checkpoint remains what to go on from.
        """
        lockstep, now = self.plan.lockstep, self.trainer.mailbox.now()
        version = self.trainer.learner.version
        if version < self.first or (lockstep and (self.stopped() or not self.trainer.settle(self.interrupted))):
            return
        if last:
            self.see_written()
        state = self.trainer.state()
        state.values["life"] = {
            "samples": self.journal.samples,
            "child_steps": self.journal.child_steps,
            "seconds": now - self.started,
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
        }
        self.keeper.keep(version, state, now)
        if lockstep or last:
            self.see_written()

    def see_written(self) -> None:
        """Wait for the keeper's writer; a large state on a slow disk is no stall. Who is told to leave says so at once:
        it is given the time only if that is known.
        """
        said = False
        while not self.keeper.finish(self.trainer.mailbox.now(), WAIT_S):
            if self.journal.due(self.trainer.mailbox.now()) or (self.called() and not said):
                self.report("waiting", SAVING)
                said = True

    def trained(self) -> bool:
        """Whether the run's length is reached; in stream wiring component 0 decides, and says BYE to the next. Who has
        stubs above decides itself.

        For who cannot say it any more, or said it to an earlier life of ours, the supervisor says it.
        """
        learner, orphaned = self.trainer.learner, "orphaned" in self.orders
        waiting = 0 if learner.stream is None else learner.stream.waiting
        if orphaned and self.idle and not waiting:  # what has come is trained on first
            return True
        if self.led:
            left = self.trainer.mailbox.parents_left()
            self.fed = self.fed or left
            return self.fed and not left and not orphaned
        if self.until is not None and learner.version >= self.until:
            return True
        if self.config.train.minutes is not None:
            return self.trainer.mailbox.now() - self.started >= 60.0 * self.config.train.minutes
        return learner.version >= self.config.train.steps

    def examine(self) -> None:
        """The final accuracy: at once with the student, over the bus with the children, as far as they answer."""
        exam, mailbox = self.trainer.exam, self.trainer.mailbox
        if exam is None:
            return
        exam.begin(self.trainer.learner.version, pulse=self.pulse)
        came, since, patience_s = -1, 0.0, min(EXAM_S, 2 * self.config.bus.timeout_ms / 1000)
        while not exam.done and not self.called() and "unanswered" not in self.orders:
            if came != (came := mailbox.counts.received["target"]):
                since = mailbox.now()
            reachable = any(edge.role == "child" and edge.state == "open" for edge in every_edge(mailbox))
            if mailbox.now() - since > (EXAM_S if reachable else patience_s):
                break
            self.trainer.serve(WAIT_S)
            self.report_if_due("waiting", "asks its children for the final examination")
        self.note_exam()

    def serve_parents(self) -> None:
        """Answer until every parent said BYE, or the supervisor knows that none will."""
        doing = "answers its parents until they are done"
        self.report("finished", f"{doing}; {self.unsaved}" if self.unsaved else doing)
        while self.trainer.mailbox.parents_left() and not {"stop", "release"} & self.orders:
            self.trainer.serve(WAIT_S)
            if self.unsaved and self.journal.due(self.trainer.mailbox.now()):
                self.save_end("there is room again")
            self.report_if_due("finished", f"{doing}; {self.unsaved}" if self.unsaved else doing)
            self.orders |= self.control.orders()

    def see_all_stop(self) -> None:
        """Lock-step: the step at which all stop is saved; stay until all have, for those who are not there yet."""
        doing = "has stopped where all do, and waits for the others"
        self.report("stopping", doing)
        while not self.stopped():
            self.trainer.serve(WAIT_S)
            self.report_if_due("stopping", doing)

    def note_exam(self) -> None:
        """Take over the newest examination result."""
        result = None if self.trainer.exam is None else self.trainer.exam.result
        if result is not None and result != self.accuracy:
            self.accuracy = result
            whole = "" if result.full is None else f", of the whole network {rate(result.full, result.full_bits)}"
            self.say(
                f"test accuracy with the student {rate(result.student, result.student_bits)}, "
                f"with the true children {rate(result.child, result.child_bits)}{whole}"
            )

    def stopped(self) -> bool:
        """Whether the supervisor ordered a stop."""
        self.orders |= self.control.orders()
        return "stop" in self.orders

    def called(self) -> bool:
        """Whether the run is to end before it is done, at once or at a step that all reach."""
        return self.stopped() or "gather" in self.orders

    @property
    def until(self) -> int | None:
        """Lock-step: the step at which all stop, if they do and it is known."""
        return next((int(order.removeprefix("until ")) for order in self.orders if order.startswith("until ")), None)

    def interrupted(self, *, in_turn: bool = False) -> bool:
        """Lock-step's wait: keep reporting, listen for orders; `in_turn`: in a step that others may have seen begin."""
        self.report_if_due("waiting", "waits for its neighbours' messages")
        stopped = self.stopped()
        self.tell_bound(in_turn=in_turn)
        return stopped

    def held(self) -> bool:
        """Lock-step, told to gather: whether to wait here, between two steps, to be told where all stop."""
        if "gather" not in self.orders or self.until is not None or self.trainer.learner.descent.gathered:
            return False
        self.tell_bound()
        self.trainer.hold(WAIT_S)
        self.report_if_due("waiting", "waits to be told at which step all stop")
        return True

    def tell_bound(self, *, in_turn: bool = False) -> None:
        """Told to gather, say once what step will be reached in any case: the one that is begun, or was ended."""
        if self.bound is None and "gather" in self.orders:
            learner = self.trainer.learner
            self.bound = learner.version + (in_turn or learner.descent.gathered > 0)
            self.report("waiting", "is told to stop")

    def report_if_due(self, state: State, reason: str) -> None:
        """Progress heartbeat while nothing is trained."""
        if self.journal.due(self.trainer.mailbox.now()):
            self.report(state, reason)

    def say(self, sentence: str) -> None:
        """One line in the component's log."""
        say(self.process.name, self.trainer.learner.version, sentence)

    def report(self, state: State, reason: str = "") -> None:
        """Write and send what there is to say."""
        mailbox = self.trainer.mailbox
        now, dropped = mailbox.now(), self.trainer.dropped()
        saved, did = self.keeper.record(now), self.trainer.learner.staleness.counts
        waited_s = self.trainer.waited_s
        report = self.journal.report(now, mailbox, self.accuracy, state, reason, dropped, saved, did, waited_s)
        report.bound = self.bound
        self.control.send(report)


def rate(accuracy: float | None, bits: float | None) -> str:
    """The outcome of an examination, for people."""
    return "not known" if accuracy is None or bits is None else f"{accuracy:.4f} ({bits:.4f} bits)"


def remedy(run: str, kept: int | None, *, diverged: bool, errno: int | None = None) -> str:
    """What to do about an unsaved end. `run`: as commands are told it; `kept`: step on disk; `errno`: the system's."""
    if not diverged:
        return f"{room(errno)}, then mach resume {run}"
    again = "begin again" if kept is None else f"mach resume {run}, or launch again,"
    return (
        f"{again} with --set optimiser.lr=SMALLER; if that does not help, look in the data for numbers that are far "
        "too large"
    )


def every_edge(mailbox: Mailbox) -> list[EdgeView]:
    """Both ends' views, of all peers."""
    return [edge for edges in mailbox.edges().values() for edge in edges]


def run(plan: Plan, name: str, control: Control) -> None:
    """The body of a trainer's process.

    Raises:
        DataError, ConfigError: before the first step, with a sentence for the user.
        Unsaved: its end could not be written down.
    """
    config, process = plan.config, plan.process(name)
    device = torch.device(device_of(process))
    dataset = load(config.data).to(device)
    check_common(Path(plan.sockets), name, dataset)
    learner = learner_of(config, process.index, process.children, dataset, device)
    mailbox = ZmqMailbox(
        name,
        run_id=wire_id(plan, dataset),
        incarnation=plan.life(control.incarnation),
        children=process.children,
        parents=process.parents,
        bus=bus_of(plan),
        directory=Path(plan.sockets),
        samples=samples_of(config, dataset),
        endpoints=endpoints_of(plan, process),
    )
    draws.begin(config.seed, process.index)  # not before: data of one's own that are drawn are alike in all processes
    try:
        trainer = assemble(plan, process, learner, mailbox, dataset)
        journal = Journal(plan, name, incarnation=control.incarnation)
        with contextlib.closing(Keeper(plan, name, incarnation=control.incarnation)) as keeper:
            life = Life(plan, process, trainer, journal, keeper, control)
            life.live()
        journal.close()
    except BaseException:
        mailbox.close(farewell=False)  # its next life is due, and its neighbours expect it
        raise
    mailbox.close(farewell=not life.called())  # who is to go on later has not said good-bye
    life.answer_for_its_end()


def assemble(
    plan: Plan,
    process: ProcessPlan,
    learner: Learner,
    mailbox: Mailbox,
    dataset: Dataset,
    kind: Callable[..., Trainer] = Trainer,
) -> Trainer:
    """A trainer, made by `kind`, with its own data order and examination, on any mailbox."""
    config = plan.config
    seed = seed_of(config.seed, process.index, "data")
    batches = Batches(dataset, config.train.batch_size, seed=seed, noise=config.data.noise)
    exam = exam_of(config, learner, dataset)
    return kind(learner, mailbox, batches, children=process.children, parents=process.parents, exam=exam)
