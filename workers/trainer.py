"""One component's life: a thin shell that carries messages between a `Learner` and a `Mailbox`.

`Trainer.turn` is one turn of a component that never waits (law 1); `lockstep_turn` is its twin that waits for
every message. Both call the same ask, answer, keep and step: there is no second implementation of the method.
`run` is what a process does: build, train, examine, serve until the parents are done, save. It knows real
sockets and files; `Trainer` knows neither and also runs on the virtual bus.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import assert_never

import torch

from bus.mailbox import EdgeView, Mailbox
from bus.sockets import ZmqMailbox
from configs.load import dump
from configs.tree import Config
from mach import state as pack
from mach.assemble import exam_of, learner_of, samples_of
from mach.checkpoint import save_weights
from mach.data import Batches, Dataset, load
from mach.evaluate import Accuracy, Exam
from mach.learner import Learner, Step
from mach.messages import Activation, Batch, Gradient, Letter, Target
from mach.relay import Relay
from mach.seeds import seed_of
from workers.journal import Journal
from workers.keeper import Keeper, say
from workers.plan import Plan, ProcessPlan, bus_of
from workers.process import Control, device_of
from workers.report import State
from workers.rundir import RunDir

WAIT_S = 0.1
"""Longest wait for a letter while there is nothing to train: orders of the supervisor are read in between."""
EXAM_S = 20.0
"""Longest wait at the end for children's answers to the test set."""


class Trainer:
    """A learner at its mailbox."""

    def __init__(
        self,
        learner: Learner,
        mailbox: Mailbox,
        batches: Batches,
        *,
        children: Sequence[str],
        parents: Sequence[str],
        exam: Exam | Relay | None = None,
    ) -> None:
        self.learner = learner
        self.mailbox = mailbox
        self.batches = batches
        self.children = tuple(children)
        self.parents = tuple(parents)
        self.exam = exam
        self.early: list[Letter] = []
        """Lock-step only: letters of the next turn, from peers that are one step ahead."""
        self.paid = True
        """Lock-step only: whether the parents' gradients of our last answers are at hand."""

    def turn(self) -> Step | None:
        """One optimiser step with what is at hand. Waits for nobody (law 1).

        None, after a wait at the mailbox, if there is nothing to train on yet: in stream wiring nothing has come.
        """
        self.take(self.mailbox.receive())  # 1 read what has come, if anything
        examined = {child for child in self.children if self.examine(child)}
        batch = self.next_batch(examined)
        if batch is not None:
            for child in self.children:  # 2 ask ahead, while the window has room
                if child not in examined and self.mailbox.room(child):
                    self.mailbox.send(child, self.learner.ask(batch, child))
        step = self.learner.step(batch, self.mailbox.now())  # 3 learn: from an answered batch, else with the student
        if step is None:
            self.take(self.mailbox.receive(WAIT_S))
            return None
        self.pay(step)  # 4 a tensor that came owes its gradient (law 3)
        return step

    def next_batch(self, examined: Collection[str]) -> Batch | None:
        """Drawn, or in stream wiring what came from a parent.

        None if nothing came, or if a learner that has to wait for the answer could not send it on.
        """
        if self.learner.waits_for_answers and (
            self.learner.full or any(child in examined or not self.mailbox.room(child) for child in self.children)
        ):
            return None
        stream = self.learner.stream
        return next(self.batches) if stream is None or stream.draws else stream.next()

    def examine(self, child: str) -> bool:
        """Put the next question of an examination, if there is one and room for it."""
        if not self.mailbox.room(child):
            return False
        question = self.question(child)
        return question is not None and self.mailbox.send(child, question)

    def lockstep_turn(self, interrupted: Callable[[], bool]) -> Step | None:
        """The same step, every message waited for: this batch's target from every child, and from every parent
        this step's activation and the gradient of the answer before. None if `interrupted` said so meanwhile.
        """
        batch = next(self.batches)
        unasked = set(self.children)
        due = self.due_letters()
        while due or unasked:
            if interrupted():
                return None
            for child in [child for child in self.children if child in unasked and self.mailbox.room(child)]:
                self.mailbox.send(child, self.learner.ask(batch, child))
                unasked.remove(child)
            self.take_due(due, wait_s=WAIT_S if due else 0.0)
        step = self.learner.step(batch, self.mailbox.now())
        if step is not None:
            self.pay(step)
        self.paid = not self.parents
        return step

    def settle(self, interrupted: Callable[[], bool]) -> bool:
        """Lock-step: take the gradients of the last step, so that nothing is under way that the next one needs.

        Every parent pays right after its own step, so nobody waits in a circle. False if `interrupted` said so.
        """
        due: set[tuple[str, type]] = set() if self.paid else {(parent, Gradient) for parent in self.parents}
        while due:
            if interrupted():
                return False
            self.take_due(due, WAIT_S)
        self.paid = True
        return True

    def state(self) -> pack.State:
        """What a later life needs to go on from here, by reference: between two turns, in lock-step when settled."""
        state = pack.State()
        state.add("learner", self.learner.state(self.mailbox.now()))
        state.add("batches", self.batches.state())
        state.add("generators", pack.of_generators(self.learner.device))
        return state

    def restore(self, state: pack.State) -> None:
        """Go on from there (DataError: it does not fit)."""
        self.learner.restore(state.under("learner"), self.mailbox.now())
        self.batches.restore(state.under("batches"))
        pack.into_generators(self.learner.device, state.under("generators"))

    def serve(self, wait_s: float) -> None:
        """Answer parents without training, and carry on with an examination."""
        self.take(self.mailbox.receive(wait_s))
        for child in self.children:
            while self.examine(child):
                pass

    def take(self, letters: Iterable[Letter]) -> None:
        """Answer what was asked, keep what was answered."""
        answers: list[tuple[str, Target]] = []
        for letter in letters:
            match letter.message:
                case Activation(owes=False) as asked if isinstance(self.exam, Relay):
                    answers += self.exam.take(letter.sender, asked)
                case Activation() as asked:  # law 2: the student answers for our own child
                    answer = self.learner.answer(letter.sender, asked, self.mailbox.now())
                    if answer is not None:
                        answers.append((letter.sender, answer))
                case Target() as target if self.exam is not None and self.exam.owns(target):
                    answers += self.exam.keep(letter.sender, target)
                case Target() | Gradient():
                    self.learner.keep(letter, self.mailbox.now())
                case _:
                    assert_never(letter.message)
        for parent, answer in answers:  # together: code and buffers of the bus are warm after the first
            self.mailbox.send(parent, answer)

    def dropped(self) -> dict[str, int]:
        """Messages that reached the learner and were not used: of no use to it, or remembered by it no more."""
        return {"unfit": self.learner.unfit.total(), "forgotten": self.learner.forgotten.total()}

    def pay(self, step: Step) -> None:
        """Return what is owed for the tensors that this step was trained on."""
        for peer, message in step.owed:
            self.mailbox.send(peer, message)

    def question(self, child: str) -> Activation | None:
        """The next part of a running examination for `child`, if any."""
        if self.exam is None or not self.exam.has(child, self.mailbox.now()):
            return None
        return self.exam.ask(child, self.mailbox.now())

    def due_letters(self) -> set[tuple[str, type]]:
        """Lock-step: the (sender, kind of message) that this turn waits for."""
        due: set[tuple[str, type]] = {(child, Target) for child in self.children}
        due |= {(parent, Activation) for parent in self.parents}
        if not self.paid:
            due |= {(parent, Gradient) for parent in self.parents}
        return due

    def take_due(self, due: set[tuple[str, type]], wait_s: float) -> None:
        """Lock-step: take the letters of this turn, put those of the next one aside."""
        come, self.early = self.early, []
        if not any((letter.sender, type(letter.message)) in due for letter in come):
            come += self.mailbox.receive(wait_s)
        for letter in come:
            key = (letter.sender, type(letter.message))
            if key in due:
                due.remove(key)
                self.take([letter])
            elif isinstance(letter.message, Activation) and not letter.message.owes:
                self.take([letter])  # a peer that is done already examines us
            else:
                self.early.append(letter)


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
        self.fed = False
        """Whether a parent has been heard of: who never was cannot have left."""
        self.pulse = partial(self.report_if_due, "training", "examines itself")  # it may take longer than many steps
        self.first = 1
        """Version after the first step of this life."""

    def live(self) -> None:
        """Go on, train, examine, save, serve. An order to stop shortens each of them but the saving."""
        self.go_on()
        self.train()
        self.checkpoint(last=True)
        stopped = self.stopped()
        if not stopped:
            self.examine()
        run = RunDir(Path(self.plan.directory))
        learner = self.trainer.learner
        about = {"component": self.process.name, "version": str(learner.version), "config": dump(self.config)}
        save_weights(learner.component, run.weights(self.process.name), about)
        self.say("stopped; weights are saved" if stopped else "has done its steps; weights are saved")
        if not stopped:
            self.trainer.mailbox.bye()
            self.serve_parents()
        self.report("stopped" if stopped else "finished", "asked to stop" if stopped else "")

    def train(self) -> None:
        """Turns until the steps, or the minutes, are done."""
        learner, exam = self.trainer.learner, self.trainer.exam
        self.journal.begin(self.trainer.mailbox.now())
        while not self.stopped() and not self.trained():
            step = self.trainer.lockstep_turn(self.interrupted) if self.plan.lockstep else self.trainer.turn()
            now = self.trainer.mailbox.now()
            if step is None:
                self.note_exam()
                self.report_if_due("waiting", "has nothing to train on yet")
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

        A stop in lock-step comes in the middle of a step: the last common checkpoint remains what to go on from.
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
        """Wait for the keeper's writer; a large state on a slow disk is no stall."""
        while not self.keeper.finish(self.trainer.mailbox.now(), WAIT_S):
            self.report_if_due("waiting", "writes its checkpoint")

    def trained(self) -> bool:
        """Whether the run's length is reached; in stream wiring component 0 decides, and says BYE to the next."""
        learner = self.trainer.learner
        if learner.stream is not None and not learner.stream.draws:
            left = self.trainer.mailbox.parents_left()
            self.fed = self.fed or left
            return self.fed and not left
        if self.config.train.minutes is not None:
            return self.trainer.mailbox.now() - self.started >= 60.0 * self.config.train.minutes
        return self.trainer.learner.version >= self.config.train.steps

    def examine(self) -> None:
        """The final accuracy: at once with the student, over the bus with the children, as far as they answer."""
        exam = self.trainer.exam
        if exam is None:
            return
        mailbox = self.trainer.mailbox
        exam.begin(self.trainer.learner.version, pulse=self.pulse)
        start, patience_s = mailbox.now(), 2 * self.config.bus.timeout_ms / 1000
        while not exam.done and not self.stopped():
            reachable = any(edge.role == "child" and edge.state == "open" for edge in every_edge(mailbox))
            if mailbox.now() - start > (EXAM_S if reachable else patience_s):
                break
            self.trainer.serve(WAIT_S)
            self.report_if_due("waiting", "asks its children for the final examination")
        self.note_exam()

    def serve_parents(self) -> None:
        """Answer until every parent said BYE, or the supervisor knows that none will."""
        self.report("finished", "answers its parents until they are done")
        while self.trainer.mailbox.parents_left() and not {"stop", "release"} & self.orders:
            self.trainer.serve(WAIT_S)
            self.report_if_due("finished", "answers its parents until they are done")
            self.orders |= self.control.orders()

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

    def interrupted(self) -> bool:
        """Lock-step's wait: keep reporting, listen for orders."""
        self.report_if_due("waiting", "waits for its neighbours' messages")
        return self.stopped()

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
        saved = self.keeper.record(now)
        self.control.send(self.journal.report(now, mailbox, self.accuracy, state, reason, dropped, saved))


def rate(accuracy: float | None, bits: float | None) -> str:
    """The outcome of an examination, for people."""
    return "not known" if accuracy is None or bits is None else f"{accuracy:.4f} ({bits:.4f} bits)"


def every_edge(mailbox: Mailbox) -> list[EdgeView]:
    """Both ends' views, of all peers."""
    return [edge for edges in mailbox.edges().values() for edge in edges]


def run(plan: Plan, name: str, control: Control) -> None:
    """The body of a trainer's process.

    Raises:
        DataError, ConfigError: before the first step, with a sentence for the user.
    """
    config, process = plan.config, plan.process(name)
    device = torch.device(device_of(process))
    dataset = load(config.data).to(device)
    learner = learner_of(config, process.index, process.children, dataset, device)
    mailbox = ZmqMailbox(
        name,
        run_id=plan.run_id,
        incarnation=control.incarnation,
        children=process.children,
        parents=process.parents,
        bus=bus_of(plan),
        directory=Path(plan.sockets),
        samples=samples_of(config, dataset),
    )
    try:
        trainer = assemble(plan, process, learner, mailbox, dataset)
        journal = Journal(plan, name, incarnation=control.incarnation)
        with contextlib.closing(Keeper(plan, name, incarnation=control.incarnation)) as keeper:
            Life(plan, process, trainer, journal, keeper, control).live()
        journal.close()
    except BaseException:
        mailbox.close(farewell=False)  # its next life is due, and its neighbours expect it
        raise
    mailbox.close()


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
    batches = Batches(
        dataset,
        config.train.batch_size,
        seed=seed_of(config.seed, process.index, "data"),
        noise=config.data.noise,
    )
    exam = exam_of(config, learner, dataset)
    return kind(learner, mailbox, batches, children=process.children, parents=process.parents, exam=exam)
