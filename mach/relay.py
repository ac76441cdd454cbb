"""How good a stream is: questions about the test set go down the chain, answers come back up it.

Component 0 asks about the test set part by part, as an `Exam` does. Everybody who is asked makes its own activation of
the part, judges itself with its students, asks its child, and answers its parent when the child has answered. So an
examination, unlike training, goes all the way: an answer holds the embedding over the true children's, and the logits
of the deepest component, which are what the whole network says. Every component holds the test set, so labels and x
need not travel: a question's id says which part it is, and its version which examination it belongs to.

A parent's question waits in line with the batches that came before it, so that the last examination, after the last
batch, is of the weights that are left.

Laws: nobody waits here; a question that is never answered is asked again by component 0, under another id, ever more
rarely, for it may stand in a long line. Bounded by the number of parts. With several children the first one's logits
are the deepest.

Shapes: N samples of the test set, B batch, K classes. Of a sequence every place counts.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mach.component import Component
from mach.data.dataset import Dataset
from mach.evaluate import EXAM_IDS, Accuracy, Score, score
from mach.messages import Activation, Target
from mach.onto import onto
from mach.sound import fits


@dataclass(slots=True, eq=False)
class _Question:
    """A part that we were asked about, or ask ourselves, until all children have answered."""

    id: int
    round: int
    part: int
    parent: str | None
    a: Tensor
    open: list[str]
    """Children that were not asked yet."""
    answers: dict[str, Target] = field(default_factory=dict)
    asked_at: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A parent's question that is yet to be taken up."""

    parent: str
    asked: Activation
    behind: int
    """How many batches came before it."""
    latest: float
    """When it is taken up in any case."""


@dataclass(slots=True, eq=False)
class _Round:
    """One examination, part by part."""

    student: dict[int, Score] = field(default_factory=dict)
    child: dict[int, Score] = field(default_factory=dict)
    full: dict[int, Score] = field(default_factory=dict)


class Relay:
    """Examinations of one component of a stream."""

    def __init__(
        self,
        component: Component,
        dataset: Dataset,
        children: Sequence[str],
        batch_size: int,
        retry_s: float,
        patience_s: float,
        *,
        draws: bool,
        judges: bool,
        context: bool,
        incoming: tuple[int, ...] | None,
    ) -> None:
        """`patience_s`: longest that a parent's question may wait for the batches that came before it. `draws`: whether
        we are component 0. `judges`: whether our head is trained. `context`: whether encoders get x. `incoming`: shape
        of what a parent sends, without the batch.
        """
        self.component = component
        self.children = tuple(children)
        self.retry_s = retry_s
        self.patience_s = patience_s
        self.draws = draws
        self.judges = judges
        self.context = context
        self.incoming = incoming
        self.inputs = torch.split(dataset.test_inputs, batch_size)
        self.labels = torch.split(dataset.test_labels, batch_size)
        self._largest = [int(each.max()) for each in self.labels]  # once: read off a device, each is waited for
        self.count = dataset.test_labels.numel()
        self.result: Accuracy | None = None
        """The newest that is complete; of the component that draws and judges, `student` is the newest with students
        alone, whether or not anybody answers."""
        self._rounds: OrderedDict[int, _Round] = OrderedDict()
        self._questions: OrderedDict[int, _Question] = OrderedDict()
        self.line: deque[_Waiting] = deque(maxlen=2 * len(self.inputs))
        """Questions that wait for their turn."""
        self._todo: list[int] = []
        """Of the component that draws: parts not asked about yet."""
        self._tries: Counter[int] = Counter()
        """By part: how often it was asked about in vain."""
        self._round = -1
        self._asked = 0

    @property
    def done(self) -> bool:
        """Whether the examination that we began is over."""
        return self._round not in self._rounds

    def begin(self, version: int, *, ask: bool = True, pulse: Callable[[], None] | None = None) -> None:
        """Component 0 is judged with its students at once and, if `ask`, begins an examination of the chain, in place
        of one of another version that runs; the others wait for questions.

        `pulse` is called after every part that is judged at once, as of an `Exam`.
        """
        if not self.draws or (ask and not self.done and self._round == version):
            return
        if self.judges:
            self._judge_alone(version, pulse)
        if not ask or not self.children:
            return
        self._rounds.pop(self._round, None)
        self._questions.clear()
        self._tries.clear()
        self._round = version
        self._rounds[version] = _Round()
        self._todo = list(range(len(self.inputs)))

    def has(self, child: str, now: float) -> bool:
        """Whether there is something to ask `child` now."""
        self._ask_again(now)
        return bool(self._todo) or any(child in each.open for each in self._questions.values())

    def ask(self, child: str, now: float) -> Activation | None:
        """The next question for `child`."""
        waiting = next((each for each in self._questions.values() if child in each.open), None)
        if waiting is None and self._todo:
            part = self._todo.pop(0)
            waiting = self._question(part, self._round, None, self._activation(part, None))
        if waiting is None:
            return None
        waiting.open.remove(child)
        waiting.asked_at = now
        return Activation(waiting.id, waiting.round, waiting.a, owes=False)

    def owns(self, target: Target) -> bool:
        """Whether a target answers an examination, this one or an earlier."""
        return target.id >= EXAM_IDS

    def wait(self, parent: str, asked: Activation, behind: int, now: float) -> None:
        """A parent's question gets in line, behind as many batches as have come so far."""
        self.line.append(_Waiting(parent, asked, behind, now + self.patience_s))

    def due(self, learnt: int, now: float) -> list[tuple[str, Target]]:
        """Take up the questions whose turn it is, since so many batches are learnt from; answers, as of `take`."""
        answers: list[tuple[str, Target]] = []
        while self.line and (self.line[0].behind <= learnt or self.line[0].latest <= now):
            first = self.line.popleft()
            answers += self.take(first.parent, first.asked)
        return answers

    def take(self, parent: str, asked: Activation) -> list[tuple[str, Target]]:
        """A parent's question; what it gets at once, if we have no children to ask."""
        part = (asked.id - EXAM_IDS) % len(self.inputs)
        shape = torch.Size((len(self.inputs[part]), *(self.incoming or ())))
        if self.incoming is None or asked.id < EXAM_IDS or not fits(asked.inputs, shape):
            return []
        self._rounds.setdefault(asked.version, _Round())
        question = self._question(part, asked.version, parent, self._activation(part, asked.inputs), asked.id)
        while len(self._rounds) > 2:
            self._rounds.popitem(last=False)
        return [] if self.children else [(parent, self._answer(question))]

    def keep(self, child: str, target: Target) -> list[tuple[str, Target]]:
        """A child's answer; the one for our parent, when it was the last."""
        question = self._questions.get(target.id)
        if question is None or child not in self.children or child in question.open:
            return []
        if not self._fits(child, target, question):
            return []
        question.answers[child] = target
        if len(question.answers) < len(self.children):
            return []
        del self._questions[question.id]
        answer = self._answer(question)
        return [] if question.parent is None else [(question.parent, answer)]

    def _judge_alone(self, version: int, pulse: Callable[[], None] | None) -> None:
        """All parts with the students; without children this is what the whole network says, too."""
        alone = Score()
        for part, y in enumerate(self.labels):
            z = self._alone(self._activation(part, None))
            alone += score(z, y.to(z.device))
            if pulse is not None:
                pulse()
        student, bits = alone.right / self.count, alone.bits / self.count
        before = self.result if self.children else Accuracy(student, None, version, full=student, full_bits=bits)
        if before is None:
            before = Accuracy(student, None, version)
        self.result = replace(before, student=student, student_bits=bits, step=version)

    def _alone(self, a: Tensor) -> Tensor:
        """Logits over the students' imitations."""
        with torch.no_grad(), self.component.evaluating():
            return self.component.alone(a)

    def _question(self, part: int, round: int, parent: str | None, a: Tensor, id: int | None = None) -> _Question:
        if id is None:
            id = EXAM_IDS + self._asked * len(self.inputs) + part
            self._asked += 1
        question = _Question(id, round, part, parent, a, list(self.children))
        if self.judges and parent is not None:
            self._note("student", question, self._alone(a))
        if self.children:
            self._questions[id] = question
            while len(self._questions) > 2 * len(self.inputs):
                self._questions.popitem(last=False)
        return question

    def _activation(self, part: int, inputs: Tensor | None) -> Tensor:
        """Of a part of the test set: of x, or of what a parent made of it."""
        weight = next(self.component.parameters())
        x = onto(weight.device, self.inputs[part])
        come = (x,) if inputs is None else (onto(weight.device, inputs, weight.dtype), x)[: 1 + self.context]
        with torch.no_grad(), self.component.evaluating():
            return self.component.activation(*come)

    def _answer(self, question: _Question) -> Target:
        """With the true children's answers, judged."""
        component, a = self.component, question.a
        with torch.no_grad(), component.evaluating():
            s = component.imitate(a)
            d = {name: onto(a.device, question.answers[name].embedding, a.dtype) for name in s}
            e = component.embed(a, {**s, **d})
            z = component.classify(e)
            if component.below is not None:
                e = component.below(a, self.inputs[question.part].to(a.device))[0]
            told = question.answers[self.children[0]].logits if self.children else z
            deep = None if told is None else onto(a.device, told, a.dtype)
        if d and self.judges:
            self._note("child", question, z)
        if deep is not None:
            self._note("full", question, deep)
        self._conclude(question.round)
        return Target(question.id, question.round, e if s or not self.children else a.new_empty(0), logits=deep)

    def _note(self, kind: str, question: _Question, z: Tensor) -> None:
        scores = self._rounds.get(question.round)
        if scores is not None:
            y = self.labels[question.part].to(z.device)
            getattr(scores, kind)[question.part] = score(z, y)

    def _conclude(self, round: int) -> None:
        """Put the result together when every part has been judged."""
        scores, parts = self._rounds.get(round), len(self.inputs)
        if scores is None or len(scores.full) < parts:
            return
        del self._rounds[round]
        full = sum(scores.full.values(), Score())
        student = sum(scores.student.values(), Score()) if self.judges else full
        child = sum(scores.child.values(), Score()) if len(scores.child) == parts else None
        result = Accuracy(
            student.right / self.count,
            None if child is None else child.right / self.count,
            round,
            student.bits / self.count,
            None if child is None else child.bits / self.count,
            full.right / self.count,
            full.bits / self.count,
        )
        if self.draws and self.judges and self.result is not None:  # judged alone already, when it began or later
            alone = self.result
            result = replace(result, student=alone.student, student_bits=alone.student_bits, step=alone.step)
        self.result = result

    def _ask_again(self, now: float) -> None:
        """Component 0 puts questions that nobody answered back on the list."""
        if not self.draws:
            return
        for id, question in list(self._questions.items()):
            if not question.open and now - question.asked_at > self.retry_s * 2 ** self._tries[question.part]:
                del self._questions[id]
                self._tries[question.part] += 1
                self._todo.append(question.part)

    def _fits(self, child: str, target: Target, question: _Question) -> bool:
        """Whether the answer is one: logits, and the embedding where we have a student for it."""
        y, z = self.labels[question.part], target.logits
        if z is None or z.dim() != y.dim() + 1 or z.shape[-1] <= self._largest[question.part]:
            return False
        if not fits(z, torch.Size((*y.shape, z.shape[-1]))):
            return False
        if child not in self.component.students:
            return True
        with torch.no_grad(), self.component.evaluating():
            s = self.component.imitation(child, question.a)
        return fits(target.embedding, s.shape)
