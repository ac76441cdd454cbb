"""What a learner remembers of its neighbours: batches asked, answers given, and what came back for either.

Laws: bounded by the window, whatever neighbours do; every age is measured when something is taken (law 4); what fits
nothing that we remember is counted and dropped. Knows what each thing is of, and nothing of what is learnt from it.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Sequence

from mach.late import Held
from mach.lesson import Arrived, Late
from mach.messages import Age, Gradient, Target

MEMORY = 4
"""Batches asked, answers given and late gradients kept of one neighbour, in windows: what comes when its batch or
answer has been pushed out by newer ones is dropped, and counted in `forgotten`."""


class Memory:
    """Of one component."""

    def __init__(self, children: Sequence[str], window: int) -> None:
        self.children = tuple(children)
        self.capacity = MEMORY * window
        self.forgotten: Counter[str] = Counter()
        """Messages that came too late for our memory, or twice, by kind."""
        self.unfit: Counter[str] = Counter()
        """Messages whose tensor is not what it must be (`mach/sound.py`), or is missing, by kind: never trained on, so
        that a neighbour that diverged or runs another network ruins only itself."""
        self.arrived: deque[Arrived] = deque()
        self.late: deque[Late] = deque()
        self._asked: dict[str, OrderedDict[int, Held]] = {child: OrderedDict() for child in self.children}
        self._answered: dict[str, OrderedDict[int, Held]] = {}
        self.heard: dict[str, int] = {}
        """By child, the newest version that it said it has."""

    def ask(self, child: str, held: Held) -> None:
        """A batch goes to a child."""
        self._asked[child][held.id] = held
        self._trim(self._asked[child])

    def answer(self, parent: str, held: Held) -> None:
        """A parent's batch was answered, and its gradient may come."""
        answered = self._answered.setdefault(parent, OrderedDict())
        answered[held.id] = held
        self._trim(answered)

    def unanswered(self, child: str) -> Collection[int]:
        """Ids of the batches that a child was asked about and has not answered, oldest first."""
        return self._asked[child].keys()

    @property
    def under_way(self) -> int:
        """Batches that children were asked about and that nothing was learnt from since."""
        return len({each.held.id for each in self.arrived}.union(*self._asked.values()))

    def asked(self, child: str, target: Target) -> Held | None:
        """The batch that an answer is for, which is then remembered no more; None, and counted, if there is none."""
        self.hear(child, target)
        held = self._asked.get(child, OrderedDict()).pop(target.id, None)
        if held is None:
            self.forgotten["target"] += 1
        return held

    def hear(self, child: str, target: Target) -> None:
        """The newest of a child's versions: an edge keeps the order, so a lower one is of a life that went back."""
        self.heard[child] = target.version

    def answered(self, parent: str, gradient: Gradient) -> Held | None:
        """The batch that a gradient is for; as `asked`."""
        held = self._answered.get(parent, OrderedDict()).pop(gradient.id, None)
        if held is None:
            self.forgotten["gradient"] += 1
        return held

    def expects(self, version: int, *, asked: bool) -> bool:
        """Whether a gradient of what we answered at this version of ours may still come, or is at hand; with `asked`,
        of what we asked, too.
        """
        out = (*self._answered.values(), *(self._asked.values() if asked else ()))
        held = [*(each for some in out for each in some.values()), *(each.held for each in self.late)]
        held += [each.held for each in self.arrived if asked]
        return any(each.version == version for each in held)

    def keep_late(self, late: Late) -> None:
        """For the next step."""
        self.late.append(late)
        if len(self.late) > self.capacity * len(self._answered):  # we answer and no longer train
            self.late.popleft()

    def next_arrived(self, *, everybody: bool = False) -> list[Arrived]:
        """Children's answers about the batch answered first; one that comes later makes a lesson of its own.

        `everybody`: only a batch that all children have answered.
        """
        for first in dict.fromkeys(each.held.id for each in self.arrived):
            arrived = {each.child: each for each in self.arrived if each.held.id == first}
            if not everybody or len(arrived) == len(self.children):
                self.arrived = deque(each for each in self.arrived if each.held.id != first)
                return [arrived[child] for child in self.children if child in arrived]
        while len(self.arrived) > self.capacity * len(self.children):  # some child does not answer any more
            self.arrived.popleft()
            self.forgotten["target"] += 1
        return []

    def next_late(self, together: int) -> list[Late]:
        """Late gradients whose turn it is, always in the same order: all, or a multiple of `together`."""
        count = len(self.late) // together * together
        return sorted([self.late.popleft() for _ in range(count)], key=_order)

    def age(self, arrived: Arrived, now: float) -> Age:
        """Of a target at use: at least so many versions, exactly so many seconds since its activation left."""
        versions = max(0, self.heard[arrived.child] - arrived.target.version)
        return Age(versions, arrived.age.seconds + now - arrived.at)

    def _trim(self, memory: OrderedDict[int, Held]) -> None:
        while len(memory) > self.capacity:
            memory.popitem(last=False)


def _order(late: Late) -> tuple[int, str]:
    """Parents by number, c2 before c10: the sum of their gradients must not depend on who came first."""
    return len(late.parent), late.parent
