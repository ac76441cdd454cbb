"""A learner at its mailbox: a thin shell that carries messages between the two.

`Trainer.turn` is one turn of a component that waits for no answer (law 1); `lockstep_turn` is its twin that waits for
every message. Both call the same ask, answer, keep and step: there is no second implementation of the method.
Knows no socket and no file, and also runs on the virtual bus.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import assert_never

from bus.mailbox import Mailbox
from configs.errors import ConfigError
from mach import state as pack
from mach.data import Batches
from mach.evaluate import Exam
from mach.learner import Learner, Step
from mach.messages import Activation, Batch, Gradient, Letter, Message, Target
from mach.relay import Relay

WAIT_S = 0.1
"""Longest wait for a letter while there is nothing to train: orders of the supervisor are read in between."""
BATCHES_FIRST = 4
"""So many batches go to a child before the next question of an examination, unless there is room for that, too."""


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
        self.passed: set[str] = set()
        """Children whose last question was one that a parent wanted to be asked on."""
        self.paid = True
        """Lock-step only: whether the parents' gradients of our last answers are at hand."""
        self.went: Counter[str] = Counter()
        """Batches that went to a child since the last question of an examination."""
        self.open: dict[str, dict[int, Activation]] = {child: {} for child in self.children}
        """End to end only: what every child was asked and has not answered, by id, oldest first."""
        self.waited_s = 0.0
        """Spent waiting for letters with nothing to train on."""

    def turn(self) -> Step | None:
        """One optimiser step with what is at hand. Waits for nobody (law 1), but for room where it learns by what comes
        back (`Learner.sends_all`); and asks before it pays: the other order costs every round trip a step
        (`tests/workers/test_order.py`).

        None, after a wait at the mailbox, if there is nothing to train on yet: in stream wiring nothing has come, or
        there is no such room.
        """
        post: list[tuple[str, Message]] = [*self.answers(self.mailbox.receive())]  # 1 read what has come, if anything
        if self.learner.waits_for_answers:
            self.ask_anew()
        for child in self.children:
            if self.went[child] >= BATCHES_FIRST:
                self.examine(child)
        batch = self.next_batch()
        if batch is not None:
            for child in self.children:  # 2 ask ahead, while the window has room
                if self.mailbox.room(child):
                    if self.learner.deep.on:
                        self.ask_by_turns(batch, child)
                    else:
                        asked = self.learner.ask(batch, child)
                        post.append((child, asked))
                        self.went[child] += 1
                        if self.learner.waits_for_answers:
                            self.open[child][asked.id] = asked
        for peer, message in post:  # together: the first wakes the bus, the rest find it awake
            self.mailbox.send(peer, message)
        for child in self.children:
            self.examine(child)
        step = self.learner.step(batch, self.mailbox.now())  # 3 learn: from an answered batch, else with the student
        if step is None:
            self.take(self.wait(WAIT_S))
            return None
        self.pay(step)  # 4 a tensor that came owes its gradient (law 3)
        return step

    def wait(self, wait_s: float) -> list[Letter]:
        """Letters that there are, or that come within that time, which counts as idle."""
        before = self.mailbox.now()
        letters = self.mailbox.receive(wait_s)
        self.waited_s += self.mailbox.now() - before
        return letters

    def wanting(self) -> str:
        """What it waits for with nothing to train on; and why that may take long, if messages were lost."""
        stream, edges = self.learner.stream, (edge for ends in self.mailbox.edges().values() for edge in ends)
        if stream is None or stream.draws or (self.learner.sends_all and any(edge.in_flight for edge in edges)):
            return "for its children's answers"
        lost = self.mailbox.counts.dropped["lost"]
        held = f"; {lost:,} never came, each of which holds a place in the window for bus.timeout_ms" if lost else ""
        return f"for its parent's next activation{held}"

    def ask_by_turns(self, batch: Batch, child: str) -> None:
        """Our own question, and one that a parent wants to be asked on; by turns, where there is room for one only."""
        last = child in self.passed
        if not last and self.pass_on(child):
            self.passed.add(child)
        deep, now = self.learner.deep, self.mailbox.now()
        if self.mailbox.room(child) and deep.room(child, self.learner.method.depth, now):
            asked = self.learner.ask(batch, child)
            deep.went(child, asked.id, asked.depth, now)
            self.mailbox.send(child, asked)
            self.went[child] += 1
            self.passed.discard(child)
        if last and self.pass_on(child):
            self.passed.add(child)

    def pass_on(self, child: str) -> bool:
        """Ask a child on behalf of a parent, if one wants that and there is room (`method.depth`)."""
        if not self.learner.deep.busy or not self.mailbox.room(child):
            return False
        question = self.learner.deep.ask(child, self.learner.version, self.mailbox.now())
        return question is not None and self.mailbox.send(child, question)

    def leave(self) -> None:
        """Tell every child that nothing more will be asked; parents are answered without them."""
        self.mailbox.bye()
        self.learner.deep.close()

    def next_batch(self) -> Batch | None:
        """Drawn, or in stream wiring what came from a parent.

        None if nothing came, or if a learner that has to send it on could not.
        """
        if self.learner.sends_all and (
            self.learner.full or any(not self.mailbox.room(child) for child in self.children)
        ):
            return None
        stream = self.learner.stream
        return next(self.batches) if stream is None or stream.draws else stream.next()

    def ask_anew(self) -> None:
        """End to end, put to a child again what it was asked, has not answered and cannot answer any more, as after its
        end, a time-out, or where nothing could be sent: nobody else would ever have it answered, and a parent of ours
        waits for that as long as its own time-out.
        """
        for child, asked in self.open.items():
            unanswered, in_flight = self.learner.memory.unanswered(child), self.mailbox.in_flight(child)
            for id in [id for id in asked if id not in unanswered]:
                del asked[id]
            for question in [asked[id] for id in asked if id not in in_flight]:
                if not self.mailbox.room(child) or not self.mailbox.send(child, question):
                    break

    def examine(self, child: str) -> bool:
        """Put the next question of an examination, if there is one and room for it."""
        if self.exam is None or not self.exam.has(child, self.mailbox.now()) or not self.mailbox.room(child):
            return False
        question = self.exam.ask(child, self.mailbox.now())
        if question is None or not self.mailbox.send(child, question):
            return False
        self.went[child] = 0
        return True

    def lockstep_turn(self, interrupted: Callable[[], bool]) -> Step | None:
        """The same step, every message waited for: this batch's target from every child, and from every parent
        this step's activation and the gradient of the answer before. None if `interrupted` said so meanwhile.
        """
        batch = next(self.batches)
        unasked, questions = set(self.children), dict[str, Activation]()
        due = self.due_letters()
        while due or unasked:
            if interrupted():
                return None
            for child in [child for child in self.children if child in unasked and self.mailbox.room(child)]:
                if child not in questions:  # put into words once, however often it has to be sent
                    questions[child] = self.learner.ask(batch, child)
                if self.mailbox.send(child, questions[child]):  # else it is sent when there is a connection again
                    unasked.remove(child)
            self.take_due(due, wait_s=WAIT_S if due else 0.0)
        step = self.learner.step(batch, self.mailbox.now())
        if step is not None:
            self.pay(step)
        self.paid = not self.parents
        return step

    def hold(self, wait_s: float) -> None:
        """Lock-step: wait between two turns; what comes is of the next one."""
        self.early += self.wait(wait_s)

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
            while self.examine(child) or self.pass_on(child):
                pass

    def take(self, letters: Iterable[Letter]) -> None:
        """Answer what was asked, keep what was answered."""
        for parent, answer in self.answers(letters):
            self.mailbox.send(parent, answer)

    def answers(self, letters: Iterable[Letter]) -> list[tuple[str, Target]]:
        """The answers to what was asked, yet to be sent; keep what was answered."""
        stream, answers = self.learner.stream, list[tuple[str, Target]]()
        for letter in letters:
            match letter.message:
                case Activation(owes=False) as asked if isinstance(self.exam, Relay) and stream is not None:
                    self.exam.wait(letter.sender, asked, stream.came, self.mailbox.now())
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
        if self.learner.deep.on:
            answers += self.learner.due(self.mailbox.now())
        if isinstance(self.exam, Relay) and self.exam.line and stream is not None:
            under_way = self.learner.memory.under_way if self.learner.waits_for_answers else 0
            answers += self.exam.due(stream.came - stream.waiting - under_way, self.mailbox.now())
        return answers

    def dropped(self) -> dict[str, int]:
        """Messages that reached the learner and were not used: of no use to it, or remembered by it no more."""
        return {"unfit": self.learner.unfit.total(), "forgotten": self.learner.forgotten.total()}

    def pay(self, step: Step) -> None:
        """Return what is owed for the tensors that this step was trained on."""
        for peer, message in step.owed:
            self.mailbox.send(peer, message)

    def due_letters(self) -> set[tuple[str, type]]:
        """Lock-step: the (sender, kind of message) that this turn waits for."""
        due: set[tuple[str, type]] = {(child, Target) for child in self.children}
        due |= {(parent, Activation) for parent in self.parents}
        if not self.paid:
            due |= {(parent, Gradient) for parent in self.parents}
        return due

    def take_due(self, due: set[tuple[str, type]], wait_s: float) -> None:
        """Lock-step: take the letters of this turn, put those of the next one aside.

        Raises:
            ConfigError: a message was too large, and somebody waits for it.
        """
        come, self.early = self.early, []
        if not any((letter.sender, type(letter.message)) in due for letter in come):
            come += self.wait(wait_s)
        for letter in come:
            key = (letter.sender, type(letter.message))
            if key in due:
                due.remove(key)
                self.take([letter])
            elif isinstance(letter.message, Activation) and not letter.message.owes:
                self.take([letter])  # a peer that is done already examines us
            else:
                self.early.append(letter)
        if self.mailbox.counts.dropped["too-large"]:  # and would be each time that it is sent
            raise ConfigError(
                "bus.max_message_mb: a message is larger, and in lock-step nobody goes on without it; raise it, or "
                "choose a smaller train.batch_size"
            )
