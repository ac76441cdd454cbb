"""A scripted neighbour without a model: speaks the bus protocol, answers with noise, misbehaves on command.

As a child it answers activations after a set latency; as a parent it asks and pays: in either wiring, with what a
component in its place would send (`workers/part.py`). Everything random is seeded. `Stub.turn` knows no process and no
wall clock, so the same stub runs in a process of its own, on the virtual bus and in the `neighbourhood` fixture. What
it does to messages on their way out (drop, duplicate, reorder, corrupt) lies in `bus/faults.py`, wrapped around the
transport; every fault that fires is counted.
"""

import heapq
import itertools
import math
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from msgspec.structs import replace
from torch import Tensor

from bus.faults import Faults, FaultyTransport
from bus.mailbox import Mailbox
from bus.sockets import ZmqMailbox
from configs import tree
from mach.assemble import samples_of
from mach.data import load
from mach.messages import Activation, Gradient, Letter, Message, Target
from mach.seeds import seed_of
from workers.common import wire_id
from workers.journal import Journal
from workers.part import Part, part_of
from workers.plan import Plan, endpoints_of
from workers.process import Control
from workers.report import State

WAIT_S = 0.05
"""Longest wait for a letter: orders of the supervisor are read in between."""
OWING = 256
"""Most unanswered questions it remembers: answers that never come do not fill its memory."""
ANSWERING: tuple[State, str] = ("waiting", "a stub: answers by script")
SILENT: tuple[State, str] = ("finished", "a stub: silent from here on, by script")
"""What it says about itself."""

M = TypeVar("M", Activation, Target, Gradient)


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
        part: Part,
        *,
        fired: Counter[str] | None = None,
        crash: Callable[[], None] = die,
    ) -> None:
        """`part`: what it asks and answers. `fired` counts what it spoiled itself, as `nonfinite`."""
        self.script = script
        self.mailbox = mailbox
        self.part = part
        self.fired = Counter() if fired is None else fired
        self.random = random.Random(part.generator.initial_seed())
        self.crash = crash
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
        due += [self.ask_at] if self.part.questions and self.ask_at > now else []
        return max(0.0, min([WAIT_S, *(at - now for at in due)]))

    def take(self, letter: Letter, now: float) -> None:
        """Count, crash if the script says so, and put the reply into the outbox."""
        self.taken += 1
        if self.script.crash_at is not None and self.taken >= self.script.crash_at:
            self.crash()
        match letter.message:
            case Activation() as asked:
                answer = self.spoiled(self.part.answer(asked, self.answered))
                self.answered += 1
                self.post(now + self.latency_s(), letter.sender, answer)
            case Target() as target if (letter.sender, target.id) in self.owing:
                del self.owing[letter.sender, target.id]
                gradient = self.part.gradient(target)
                if gradient is not None:
                    self.post(now, letter.sender, self.spoiled(gradient))
            case Target() | Gradient():
                pass  # a gradient is for a model, and a stub has none

    def ask(self, now: float) -> None:
        """Fill every child's window; with a rate, one activation a child, and the next when it is due."""
        paced = self.script.rate > 0
        for child, question in self.part.questions.items():
            while self.mailbox.room(child):
                asked = self.spoiled(replace(question, id=next(self.ids), version=self.answered))
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

    def spoiled(self, message: M) -> M:
        """As it is or, as often as the script says, with one entry of a tensor that is not finite."""
        if not self.script.nonfinite:
            return message
        tensors = {name: each for name in message.__struct_fields__ if quantities(each := getattr(message, name))}
        if not tensors or self.random.random() >= self.script.nonfinite:
            return message
        self.fired["nonfinite"] += 1
        value = self.random.choice((math.nan, math.inf, -math.inf))
        name = next(iter(tensors)) if len(tensors) == 1 else self.random.choice(list(tensors))
        tensor = tensors[name].clone()
        tensor.view(-1)[self.random.randrange(tensor.numel())] = value
        return replace(message, **{name: tensor})

    def latency_s(self) -> float:
        """Latency of one answer."""
        jitter = float(torch.rand((), generator=self.part.generator)) * self.script.jitter_ms
        return (self.script.latency_ms + jitter) / 1000.0


def quantities(field: object) -> bool:
    """Whether a field of a message is a tensor in which some entry may fail to be finite."""
    return isinstance(field, Tensor) and field.is_floating_point() and field.numel() > 0


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
        run_id=wire_id(plan, dataset),
        incarnation=plan.life(control.incarnation),
        children=process.children,
        parents=process.parents,
        bus=config.bus,
        directory=Path(plan.sockets),
        wrap=lambda transport: FaultyTransport(transport, faults_of(script), seed, fired),
        samples=samples_of(config, dataset),
        endpoints=endpoints_of(plan, process),
    )
    journal = Journal(plan, name, incarnation=control.incarnation)
    try:
        stub = Stub(
            script,
            mailbox,
            part_of(config, process.index, dataset, seed),
            fired=fired,
            crash=partial(die, f"its script says so: components.{process.index}.stub.crash_at", control.last_word),
        )
        mailbox.counts.faults = fired
        live(stub, journal, control)
    except BaseException:
        mailbox.close(farewell=False)
        raise
    mailbox.close(farewell="stop" not in control.orders())


def live(stub: Stub, journal: Journal, control: Control) -> None:
    """Turns and reports until the supervisor releases or stops it."""
    mailbox = stub.mailbox
    while not {"stop", "release"} & control.orders():
        stub.turn(stub.idle_s())
        if journal.due(mailbox.now()):
            said = SILENT if stub.silent else ANSWERING
            control.send(journal.report(mailbox.now(), mailbox, None, *said))
    control.send(journal.report(mailbox.now(), mailbox, None, "finished"))
    journal.close()
