"""Where the time of a message goes: microseconds of a thread by stage, both ends of one edge in this process.

    python -m benchmarks.stages [--json] [--messages 400]

An activation is sent and taken, its target is sent and taken, over ipc, through the socket and through
shared memory. `warm` is code that ran just before; `cold` is after as much other work as a training step
does, here a sum over 16 MB: then every function is fetched from memory anew, as it is once in every step. Shown are
medians. What libzmq's own threads do is not in them.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import mach_mailbox
from bus import address, wire
from bus.mailbox import Parcel, Peer, Relay, Transport
from bus.memory import Pool
from bus.wire import Frames, Header, Rejected, Stamp
from configs.tree import Bus
from mach.messages import Activation, Target

SIZES = {"1KB": 1 << 10, "25KB": 25 << 10, "256KB": 1 << 18}
STAGES = {
    "send": "send: all of it",
    "write": "  message → frames",
    "hand over": "  transport: ZeroMQ, or ring and slot",
    "receive": "receive: all of it",
    "fetch": "  transport: ZeroMQ, or ring and slot",
    "check": "  checks of frames",
    "read": "  frames → message",
}
"""The rest of `send` and of `receive` are window, sequence, counts and ages."""
EVICT = np.ones(1 << 21)
WAIT_S = 10.0

Times = dict[str, list[float]]


class Watch(Relay):
    """A transport that writes down what it takes, and keeps what came last."""

    def __init__(self, inner: Transport, times: Times) -> None:
        super().__init__(inner)
        self.times = times
        self.came: list[Parcel] = []

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Pass on, timed."""
        start = time.perf_counter()
        sent = self.inner.send(peer, frames)
        self.times["hand over"].append(time.perf_counter() - start)
        return sent

    def receive(self) -> list[Parcel]:
        """Pass on, timed if something came."""
        start = time.perf_counter()
        self.came = self.inner.receive()
        if self.came:
            self.times["fetch"].append(time.perf_counter() - start)
        return self.came


def measure(nbytes: int, lane: str, messages: int, *, cold: bool) -> dict[str, float]:
    """Median microseconds by stage of messages of so many bytes."""
    times: Times = defaultdict(list)
    bus = Bus(lane=lane, timeout_ms=60_000)  # type: ignore[arg-type]
    directory = address.make_directory()
    parent, child = mach_mailbox("c0", bus, directory), mach_mailbox("c1", bus, directory)
    inputs, pool = torch.randn(nbytes // 4), Pool()
    try:
        while not parent.room("c1"):
            parent.receive(0.01)
            child.receive(0.01)
        watches = Watch(parent._transport, times), Watch(child._transport, times)
        parent._transport, child._transport = watches

        def timed(stage: str, work: Callable[[], object]) -> object:
            if cold:
                EVICT.sum()
            start = time.perf_counter()
            done = work()
            times[stage].append(time.perf_counter() - start)
            return done

        for id in range(messages):
            asked, answer = Activation(id, 0, inputs, owes=False), Target(id, 0, inputs)
            for sender, receiver, peer, message, watch in (
                (parent, child, "c1", asked, watches[1]),
                (child, parent, "c0", answer, watches[0]),
            ):
                timed("send", lambda s=sender, p=peer, m=message: s.send(p, m))  # type: ignore[misc]
                watch.wait(WAIT_S)
                timed("receive", receiver.receive)
                stamp = Stamp("bench", sender.name, 1, 1)
                timed("write", lambda m=message, s=stamp: wire.encode(m, s, cap=watches[0].inline_cap))  # type: ignore[misc]
                ((_, frames),) = watch.came
                assert not isinstance(frames, Rejected)
                header = timed("check", lambda f=frames: wire.inspect(f, "bench"))  # type: ignore[misc]
                assert isinstance(header, Header)
                timed("read", lambda h=header, f=frames: wire.message_of(h, f, pool))  # type: ignore[misc]
    finally:
        parent._transport.close()
        child._transport.close()
        address.remove(directory)
    warmed = {stage: taken[len(taken) // 4 :] for stage, taken in times.items()}  # a slot is in use from the second on
    return {stage: round(1e6 * statistics.median(warmed[stage]), 1) for stage in STAGES}


def measure_all(messages: int) -> dict[str, dict[str, float]]:
    """Every size, through the socket and through memory, warm and cold."""
    torch.set_num_threads(1)
    ways = [(size, lane) for lane in ("inline", "shared") for size in SIZES]
    return {
        f"{size} {lane} {state}": measure(SIZES[size], lane, messages, cold=state == "cold")
        for size, lane in ways
        for state in ("warm", "cold")
    }


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
@click.option("--messages", default=400, show_default=True, type=click.IntRange(min=20))
def main(as_json: bool, messages: int) -> None:
    """Measure, print."""
    found = measure_all(messages)
    if as_json:
        print(json.dumps(found))
        return
    table = Table("µs", *found, title="a message's way, by stage")
    for stage, words in STAGES.items():
        table.add_row(words, *(f"{figures[stage]:.1f}" for figures in found.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
