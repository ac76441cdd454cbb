"""A live run that strangers feed: it goes on, it learns what it would have learnt, and every bad message is counted."""

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import zmq

from bus import address, wire
from bus.wire import Stamp
from conftest import Launched
from mach.messages import Activation

FEED_S = 4.0
X = torch.zeros(128, 64)


class Feeder(threading.Thread):
    """Sends what nobody should, to one component, seeded; counts what it sent by kind."""

    def __init__(self, endpoint: str, run_id: str, seed: int) -> None:
        super().__init__(name="feeder")
        self.endpoint = endpoint
        self.run_id = run_id
        self.random = random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.ended = threading.Event()

    def run(self) -> None:
        kinds = [self.noise, self.cut, self.foreign, self.misfit, self.stranger, self.flood]
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.IDENTITY, b"c9:1")
            dealer.connect(self.endpoint)
            while not self.ended.wait(0.002):
                kind = self.random.choice(kinds)
                for frames in kind():
                    dealer.send_multipart(frames)
                    self.sent[kind.__name__] += 1
                if self.random.random() < 0.02:
                    self.bare()

    def true(self, run_id: str | None = None) -> list[bytes]:
        stamp = Stamp(run_id or self.run_id, "c0", 1, self.random.randrange(1, 1000))
        return [bytes(frame) for frame in wire.encode(Activation(1, 1, X), stamp)]

    def noise(self) -> list[list[bytes]]:
        return [[self.random.randbytes(self.random.randrange(400)) for _ in range(self.random.randrange(1, 6))]]

    def cut(self) -> list[list[bytes]]:
        (frame,) = self.true()
        return [[frame[: 8 * self.random.randrange(len(frame) // 8)]]]

    def foreign(self) -> list[list[bytes]]:
        return [self.true("another run's id")]

    def misfit(self) -> list[list[bytes]]:
        (frame,) = self.true()
        return [[frame + bytes(8)]]

    def stranger(self) -> list[list[bytes]]:
        """A true message of a neighbour, replayed over a connection that is not the neighbour's."""
        return [self.true()]

    def flood(self) -> list[list[bytes]]:
        return [[b""] * 50] * 20

    def bare(self) -> None:
        """ZMTP 1.0 by hand: it needs no handshake."""
        host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(b"\x01\x00\x06\x00hello")
            self.sent["bare"] += 1


def test_a_run_survives_strangers_and_counts_them(launch: Callable[..., Launched]) -> None:
    run = launch("--components", "2", "--steps", "1200", "--set", "bus.transport=tcp", "--set", "report.every_ms=100")
    run.until(lambda status: all(row["step"] > 0 for row in status["components"]))
    plan = json.loads((run.directory / "plan.json").read_text())
    endpoint = address.endpoint_of(Path(plan["sockets"]), "c1")
    assert endpoint is not None
    feeder = Feeder(endpoint, plan["run_id"], seed=1)
    feeder.start()
    until = time.monotonic() + FEED_S
    run.until(lambda status: time.monotonic() > until or not status["components"][1]["step"] < 1200)
    feeder.ended.set()
    feeder.join()
    assert min(feeder.sent[kind] for kind in ("noise", "cut", "foreign", "misfit", "stranger", "flood")) > 10
    assert run.end() == 0, run.output
    rows = {row["component"]: row for row in run.status()["components"]}
    dropped = rows["c1"]["messages"]["dropped"]
    for reason, kinds in {
        "other-run": ("foreign",),
        "bad-sender": ("stranger",),
        "bad-size": ("misfit",),
        "bad-frames": ("flood",),
    }.items():
        assert dropped[reason] >= 0.9 * sum(feeder.sent[kind] for kind in kinds), (reason, dropped, feeder.sent)
    assert sum(dropped.values()) >= 0.9 * feeder.sent.total()
    assert rows["c0"]["messages"]["dropped"] == {}
    for row in rows.values():
        assert row["step"] == 1200
        assert row["accuracy"]["student"] > 0.97
        assert row["accuracy"]["child"] > 0.97
    assert not os.path.exists(plan["sockets"])
