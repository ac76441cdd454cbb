"""Answers that a parent wants from further down (`method.depth`): later ones, and nobody waits for them.

A question of depth d > 0 is an errand: every child is asked the same with depth d − 1, and the parent gets our answer
when all have answered. What is in it of theirs is a tensor that crossed the bus: the parent's late gradient of our
answer, pulled through it, pays them (law 3), one hop at a time.

Whoever waits holds a place in a window, and in a circle everybody could wait for a place that another such question
holds. So a question of depth d leaves d places of its window to shallower ones, and those of depth 0, which wait for
nobody, always get on.

In stream wiring there is no such depth, only its two ends: an answer at once, or, by `method.gradient_reach: full`,
when all below have answered. There every batch goes all the way down anyway and is trained on once, so an edge carries
one question a batch, and one answer. If that had to wait for d levels, it would wait for an answer that waits for d
levels itself, and so to the end: that is `full`. Levels counted from each component would need d + 1 answers to every
batch on every edge, all but one for the sake of somebody above: a second protocol, with windows and ages of its own,
for targets between those of `hop` and of `full`. In skip wiring an errand is a question of its own, and an embedding
is made of it without training, so it may come from any level.

Laws: bounded by the window; an errand that takes too long, or is pushed out by newer ones, is answered with the
students of those children that have not answered. The bound is shorter the fewer levels are left, so that an answer
gives way before the one that waits for it does. Knows no network and no clock.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from mach.evaluate import EXAM_IDS
from mach.late import Held
from mach.messages import Activation, Target

DEEP_IDS = EXAM_IDS >> 1
"""Ids from here up to an examination's are errands': a data source would need centuries to count this far."""


@dataclass(slots=True, eq=False)
class Errand:
    """A parent's question that is being asked on."""

    parent: str
    asked: Activation
    held: Held
    until: float
    """When it is answered in any case."""
    unasked: list[str]
    missing: set[str]
    """Children that have not answered."""


class Deep:
    """Errands of one component."""

    def __init__(
        self, children: Sequence[str], window: int, capacity: int, patience_s: float, *, on: bool = False
    ) -> None:
        """`window`: W. `capacity`: most errands at a time. `patience_s`: after which nobody waits for an answer. `on`:
        whether our own questions shall go deeper than one level.
        """
        self.children = tuple(children)
        self.window = window
        self.capacity = capacity
        self.patience_s = patience_s
        self.on = on
        """Whether anything has to be kept in mind here: our questions go deeper, or a parent has had an errand."""
        self.closed = False
        """Whether nobody can be asked any more."""
        self._waiting: OrderedDict[int, Errand] = OrderedDict()
        self._ready: deque[Errand] = deque()
        self._next = DEEP_IDS
        self._out: dict[str, OrderedDict[int, tuple[int, float]]] = {child: OrderedDict() for child in self.children}
        """By child, questions of depth 1 and more that are unanswered: id → depth, and when it went."""

    @property
    def busy(self) -> bool:
        """Whether an errand is under way."""
        return bool(self._waiting)

    def wants(self, asked: Activation) -> bool:
        """Whether a question is to be asked on, and there is somebody to ask."""
        return asked.depth > 0 and bool(self.children) and not self.closed

    def begin(self, parent: str, asked: Activation, held: Held, now: float) -> None:
        """Take up a parent's question."""
        self.on = True
        until = now + self.patience_s * asked.depth / (asked.depth + 1)
        self._waiting[self._next] = Errand(parent, asked, held, until, list(self.children), set(self.children))
        self._next += 1
        if len(self._waiting) > self.capacity:
            self._give_up(next(iter(self._waiting)))

    def room(self, child: str, depth: int, now: float) -> bool:
        """Whether a question of this depth leaves places enough to shallower ones."""
        if depth == 0:
            return True
        out = self._out[child]
        while out and now - next(iter(out.values()))[1] >= self.patience_s:
            out.popitem(last=False)
        return sum(each >= depth for each, _ in out.values()) < self.window - depth

    def went(self, child: str, id: int, depth: int, now: float) -> None:
        """A question went to a child, ours or one that was passed on."""
        if depth > 0:
            self._out[child][id] = depth, now

    def back(self, child: str, id: int) -> None:
        """It was answered."""
        if child in self._out:
            self._out[child].pop(id, None)

    def ask(self, child: str, version: int, now: float) -> Activation | None:
        """The next question for `child` that may go, the oldest first; `version` is ours."""
        for id, errand in self._waiting.items():
            asked, depth = errand.asked, errand.asked.depth - 1
            if child in errand.unasked and self.room(child, depth, now):
                errand.unasked.remove(child)
                self.went(child, id, depth, now)
                return Activation(id, version, asked.inputs, owes=asked.owes, indices=asked.indices, depth=depth)
        return None

    def owns(self, target: Target) -> bool:
        """Whether a target answers an errand, one that is under way or an earlier."""
        return DEEP_IDS <= target.id < EXAM_IDS

    def held(self, child: str, target: Target) -> Held | None:
        """What an answer is about; None: nothing that we still want of this child."""
        errand = self._waiting.get(target.id)
        return errand.held if errand is not None and child in errand.missing and child not in errand.unasked else None

    def keep(self, child: str, target: Target) -> None:
        """An answer has come, and is in what `held` gave."""
        errand = self._waiting[target.id]
        errand.missing.remove(child)
        if not errand.missing:
            self._ready.append(self._waiting.pop(target.id))

    def due(self, now: float) -> list[Errand]:
        """Errands to be answered now: all children have answered, or it has taken too long."""
        for id in [id for id, errand in self._waiting.items() if self.closed or now >= errand.until]:
            self._give_up(id)
        due = list(self._ready)
        self._ready.clear()
        return due

    def close(self) -> None:
        """Nobody can be asked any more: what waits is due, what comes is no errand."""
        self.closed = True

    def _give_up(self, id: int) -> None:
        self._ready.append(self._waiting.pop(id))
