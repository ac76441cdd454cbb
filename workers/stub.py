"""A scripted neighbour without a model: speaks the bus protocol, answers with noise, misbehaves on command.

As a child it answers activations after a set latency; as a parent it asks and pays. Everything random is
seeded. `Stub.turn` knows no process and no wall clock, so the same stub runs in a process of its own, on the
virtual bus and in the `neighbourhood` fixture. What it does to messages on their way out (drop, duplicate,
reorder, corrupt) lies in `bus/faults.py`, wrapped around the transport; every fault that fires is counted.

Shapes: B batch, E embedding; of sequences of symbols [B, T, E], an embedding for every place.
"""

import heapq
import itertools
import math
import os
import random
import signal
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bus.faults import Faults, FaultyTransport
from bus.mailbox import Mailbox
from bus.sockets import ZmqMailbox
from configs import tree
from mach.assemble import samples_of, target_width
from mach.data import load
from mach.messages import Activation, Gradient, Letter, Message, Target
from mach.seeds import seed_of
from workers.journal import Journal
from workers.plan import Plan
from workers.process import Control

WAIT_S = 0.05
"""Longest wait for a letter: orders of the supervisor are read in between."""
OWING = 256
"""Most unanswered questions it remembers: answers that never come do not fill its memory."""

POOL = 16
"""Different answers that a stub gives in turn."""
GRADIENT = 1e-3
"""Size of a gradient entry, times the batch: about that of a mean loss."""


def die(why: str = "", tell: Callable[[str], None] = lambda why: None) -> None:
    """The crash of `crash_at`: SIGKILL to itself, so that nothing is cleaned up; `tell` hears `why` before."""
    tell(why)
    os.kill(os.getpid(), signal.SIGKILL)


class Stub:
    """The script. `turn()` reads, answers what is due, asks; `idle_s()` says when it is needed again."""

    def __init__(
        self,
        script: tree.Stub,
        mailbox: Mailbox,
        *,
        children: Sequence[str],
        embedding: int,
        sample_shape: Sequence[int],
        batch_size: int,
        seed: int,
        symbols: int = 0,
        fired: Counter[str] | None = None,
        crash: Callable[[], None] = die,
        targeted: Callable[[int], bool] = lambda id: True,
    ) -> None:
        """`symbols`: of how many samples are made. `fired` counts what it spoiled itself, as `nonfinite`.
        `targeted`: of which batches a target is wanted; the others get a receipt.
        """
        self.script = script
        self.mailbox = mailbox
        self.children = tuple(children)
        self.embedding = embedding
        self.generator = torch.Generator().manual_seed(seed)
        shape = (batch_size, *sample_shape)
        self.question = (  # [B, ...]
            torch.randint(symbols, shape, generator=self.generator)
            if symbols
            else torch.randn(shape, generator=self.generator)
        )
        self.fired = Counter() if fired is None else fired
        self.random = random.Random(seed)
        self.crash = crash
        self.targeted = targeted
        self.taken = 0
        """Messages received so far."""
        self.answered = 0
        """Its version: a stub moves on by one with every answer, as a component does with every step."""
        self.ids = itertools.count()
        self.owing: dict[tuple[str, int], None] = {}
        """(child, id) of the questions whose answers will be paid, oldest first."""
        self.outbox: list[tuple[float, int, str, Message]] = []
        self.order = itertools.count()
        self.ask_at = 0.0
        self.pools: dict[tuple[torch.Size, float], deque[Tensor]] = {}

    @property
    def silent(self) -> bool:
        """Whether the script has reached its `silent_at`."""
        return self.script.silent_at is not None and self.taken >= self.script.silent_at

    def turn(self, wait_s: float = 0.0) -> None:
        """Read, waiting up to `wait_s` for a first letter; send what is due by then; ask."""
        letters = self.mailbox.receive(wait_s)
        now = self.mailbox.now()
        for letter in letters:
            self.take(letter, now)
        if self.silent:
            return
        while self.outbox and self.outbox[0][0] <= now:
            _, _, peer, message = heapq.heappop(self.outbox)
            self.mailbox.send(peer, message)
        if now >= self.ask_at:
            self.ask(now)

    def idle_s(self) -> float:
        """Seconds until the next answer or question is due, at most WAIT_S."""
        if self.silent:
            return WAIT_S
        now = self.mailbox.now()
        due = [self.outbox[0][0]] if self.outbox else []
        due += [self.ask_at] if self.children and self.ask_at > now else []
        return max(0.0, min([WAIT_S, *(at - now for at in due)]))

    def take(self, letter: Letter, now: float) -> None:
        """Count, crash if the script says so, and put the reply into the outbox."""
        self.taken += 1
        if self.script.crash_at is not None and self.taken >= self.script.crash_at:
            self.crash()
        match letter.message:
            case Activation() as asked:
                rows = asked.inputs.shape[:1] if asked.inputs.is_floating_point() else asked.inputs.shape
                said = torch.Size((*rows, self.embedding) if self.targeted(asked.id) else (0,))
                answer = Target(asked.id, self.answered, self.noise(said))
                self.answered += 1
                self.post(now + self.latency_s(), letter.sender, answer)
            case Target() as target if (letter.sender, target.id) in self.owing:
                del self.owing[letter.sender, target.id]
                shape = target.embedding.shape
                gradient = self.noise(shape, GRADIENT / shape[:-1].numel())
                self.post(now, letter.sender, Gradient(target.id, target.version, gradient))
            case Target() | Gradient():
                pass  # a gradient is for a model, and a stub has none

    def ask(self, now: float) -> None:
        """Fill every child's window; with a rate, one activation a child, and the next when it is due."""
        paced = self.script.rate > 0
        for child in self.children:
            while self.mailbox.room(child):
                asked = Activation(next(self.ids), self.answered, self.spoiled(self.question))
                self.owing[child, asked.id] = None
                if not self.mailbox.send(child, asked) or paced:
                    break
        while len(self.owing) > OWING:
            del self.owing[next(iter(self.owing))]
        if paced:
            self.ask_at = now + 1.0 / self.script.rate

    def post(self, due: float, peer: str, message: Message) -> None:
        """Into the outbox, to leave at `due`."""
        heapq.heappush(self.outbox, (due, next(self.order), peer, message))

    def noise(self, shape: torch.Size, scale: float = 1.0) -> Tensor:
        """Of a small pool, made once: a stub's own work should not slow its neighbours down."""
        pool = self.pools.setdefault((shape, scale), deque())
        if len(pool) < POOL:
            pool.append(scale * torch.randn(shape, generator=self.generator))
        pool.rotate()
        return self.spoiled(pool[0])

    def spoiled(self, tensor: Tensor) -> Tensor:
        """As it is or, as often as the script says, with one entry that is not finite."""
        share = self.script.nonfinite if tensor.is_floating_point() else 0.0
        if not share or not tensor.numel() or self.random.random() >= share:
            return tensor
        self.fired["nonfinite"] += 1
        tensor = tensor.clone()
        value = self.random.choice((math.nan, math.inf, -math.inf))
        tensor.view(-1)[self.random.randrange(tensor.numel())] = value
        return tensor

    def latency_s(self) -> float:
        """Latency of one answer."""
        jitter = float(torch.rand((), generator=self.generator)) * self.script.jitter_ms
        return (self.script.latency_ms + jitter) / 1000.0


def faults_of(script: tree.Stub) -> Faults:
    """The part of a script that befalls messages on their way out."""
    return Faults(drop=script.drop, duplicate=script.duplicate, reorder=script.reorder, corrupt=script.corrupt)


def run(plan: Plan, name: str, control: Control) -> None:
    """The body of a stub's process: turns until the supervisor releases it."""
    config, process = plan.config, plan.process(name)
    script = config.components[process.index].stub
    if script is None:
        raise ValueError(f"{name} is no stub: the plan says so and the configuration does not")
    seed = seed_of(config.seed, process.index, "stub")
    fired: Counter[str] = Counter()
    dataset = load(config.data)
    mailbox = ZmqMailbox(
        name,
        run_id=plan.run_id,
        incarnation=control.incarnation,
        children=process.children,
        parents=process.parents,
        bus=config.bus,
        directory=Path(plan.sockets),
        wrap=lambda transport: FaultyTransport(transport, faults_of(script), seed, fired),
        samples=samples_of(config, dataset),
    )
    journal = Journal(plan, name, incarnation=control.incarnation)
    try:
        stub = Stub(
            script,
            mailbox,
            children=process.children,
            embedding=target_width(config, dataset),
            sample_shape=dataset.sample_shape,
            batch_size=config.train.batch_size,
            seed=seed,
            symbols=dataset.symbols,
            fired=fired,
            targeted=config.method.targeted,
            crash=partial(die, f"its script says so: components.{process.index}.stub.crash_at", control.last_word),
        )
        mailbox.counts.faults = fired
        live(stub, journal, control)
    except BaseException:
        mailbox.close(farewell=False)
        raise
    mailbox.close()


def live(stub: Stub, journal: Journal, control: Control) -> None:
    """Turns and reports until the supervisor releases or stops it."""
    mailbox = stub.mailbox
    while not {"stop", "release"} & control.orders():
        stub.turn(stub.idle_s())
        if journal.due(mailbox.now()):
            control.send(journal.report(mailbox.now(), mailbox, None, "waiting", "a stub: answers by script"))
    control.send(journal.report(mailbox.now(), mailbox, None, "finished"))
    journal.close()
