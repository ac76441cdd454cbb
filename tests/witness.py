"""A network like `paced:mlp`, in a process that writes down every message at both ends: `model.family=witness:mlp`.

    $WITNESS/<run id>/c0.1      one line a message of life 1 of c0:   sent activation 17 2
                                                                      refused gradient 16 2
                                                                      taken target 16 2

The number at the end is the peer's life, as far as it is known. A line is in the kernel's hands before the message
leaves, and once it has been taken, so SIGKILL loses none of them: reports tell of a killed life only what it was up to
a moment before.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus.mailbox import MailboxRelay
from mach.messages import Activation, Gradient, Letter, Message, Target
from paced import mlp as mlp

KINDS = {Activation: "activation", Target: "target", Gradient: "gradient"}


class Witness(MailboxRelay):
    """Writes down what goes through a mailbox."""

    def __init__(self, inner: Any, file: Path) -> None:
        super().__init__(inner)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def receive(self, wait_s: float = 0.0) -> list[Letter]:
        letters = self.inner.receive(wait_s)
        for letter in letters:
            self._note("taken", letter.sender, letter.message)
        return letters

    def send(self, peer: str, message: Message) -> bool:
        self._note("sent", peer, message)
        sent = self.inner.send(peer, message)
        if not sent:
            self._note("refused", peer, message)
        return sent

    def _note(self, what: str, peer: str, message: Message) -> None:
        life = max(edge.incarnation or 0 for edge in self.inner.edges()[peer])
        os.write(self._fd, f"{what} {KINDS[type(message)]} {message.id} {life}\n".encode())


def stand_by() -> None:
    """Put a witness at the door of the component whose process this is."""
    from workers import trainer

    opened = trainer.ZmqMailbox

    def watched(name: str, *, run_id: str, incarnation: int, **more: Any) -> Witness:
        inner = opened(name, run_id=run_id, incarnation=incarnation, **more)
        return Witness(inner, Path(os.environ["WITNESS"]) / run_id / f"{name}.{incarnation}")

    trainer.ZmqMailbox = watched  # type: ignore[misc, assignment]


if "WITNESS" in os.environ:
    stand_by()


@dataclass(frozen=True)
class Line:
    """One message at one end."""

    what: str
    kind: str
    id: int
    life: int
    """The peer's."""


@dataclass
class Passage:
    """The messages of one kind from one component to another, over all their lives."""

    sent: int = 0
    taken: int = 0
    lost: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Sent and never taken, by life of the sender and the life of the receiver that it was sent to."""
    unsent: list[Line] = field(default_factory=list)
    """Taken and never sent."""


class Evidence:
    """What the witnesses of a run wrote down."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lives(self, name: str) -> list[int]:
        """The lives of a component that opened a mailbox."""
        return sorted(int(path.name.rpartition(".")[2]) for path in self._folder.glob(f"{name}.*"))

    def lines(self, name: str, life: int) -> Iterator[Line]:
        """Of one life, in order."""
        for line in (self._folder / f"{name}.{life}").read_text(encoding="utf-8").splitlines():
            what, kind, id, peer = line.split()
            yield Line(what, kind, int(id), int(peer))

    def counts(self, name: str, life: int) -> Counter[tuple[str, str]]:
        """How many messages of each kind it (sent, kind), and (taken, kind)."""
        lines = Counter((line.what, line.kind) for line in self.lines(name, life))
        for kind in KINDS.values():
            lines["sent", kind] -= lines.pop(("refused", kind), 0)
        return +lines

    def passage(self, kind: str, sender: str, receiver: str) -> Passage:
        """What became of the messages of a kind from one to the other; each sends that kind to one peer only."""
        found, under_way = Passage(), defaultdict(list)
        for life in self.lives(sender):
            for line in self.lines(sender, life):
                if line.kind == kind and line.what == "sent":
                    under_way[line.id].append((life, line.life))
                elif line.kind == kind and line.what == "refused":
                    under_way[line.id].pop()
        found.sent = sum(map(len, under_way.values()))
        for life in self.lives(receiver):
            for line in self.lines(receiver, life):
                if line.kind == kind and line.what == "taken":
                    # a letter of the sender's earlier life may be taken together with the first ones of the next
                    known = [ends for ends in under_way[line.id] if ends[0] <= line.life and ends[1] <= life]
                    if known:
                        under_way[line.id].remove(max(known))
                        found.taken += 1
                    else:
                        found.unsent.append(line)
        found.lost = Counter(ends for left in under_way.values() for ends in left)
        return found
