"""A stranger for tests and benchmarks: feeds a live component over tcp with what nobody should send.

    with Hostile(endpoint, run_id, seed=1) as hostile:       # a thread; `hostile.sent` says what it sent

Seeded. Knows the wire format as well as an attacker who has read it. Laws: what it sends is counted by kind in
`sent`; when it is closed nothing of it is left.
"""

import math
import random
import socket
import threading
from collections import Counter
from types import TracebackType
from typing import Self

import torch
import zmq

from bus import wire
from bus.wire import Stamp
from mach.messages import Activation

X = torch.zeros(128, 64)
NAN = torch.full((128, 64), math.nan)
OVERSIZED = 1 << 50
"""Bytes that a frame claims to have."""


class Hostile(threading.Thread):
    """Sends to the component bound at `endpoint`, every `every_s` seconds, one of the kinds that its methods are.

    Args:
        endpoint: `tcp://host:port`, as the component published it.
        run_id: of the run, which a stranger that reads the plan knows.
        victim: a parent of the component, in whose name it speaks.
        seed: of the kinds and their bytes.
        every_s: seconds between two of them.
    """

    def __init__(
        self, endpoint: str, run_id: str, *, victim: str = "c0", seed: int = 0, every_s: float = 0.002
    ) -> None:
        super().__init__(name="hostile", daemon=True)
        self.endpoint = endpoint
        self.run_id = run_id
        self.victim = victim
        self.every_s = every_s
        self.sent: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Begin."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait for the thread."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """The thread."""
        kinds = [self.noise, self.cut, self.foreign, self.misfit, self.stranger, self.nan, self.flood]
        with (
            zmq.Context() as context,
            self._dealer(context, "c9:1") as other,
            self._dealer(context, f"{self.victim}:0") as old,
        ):
            while not self._ended.wait(self.every_s):
                kind = self._random.choice(kinds)
                for frames in kind():
                    other.send_multipart(frames)
                    self.sent[kind.__name__] += 1
                if self._random.random() < 0.1:
                    old.send_multipart(self.true(incarnation=0))
                    self.sent["old"] += 1
                if self._random.random() < 0.02:
                    self.by_hand("bare", b"\x01\x00\x06\x00hello")
                    self.by_hand("oversized", b"\xff" + OVERSIZED.to_bytes(8, "big") + b"\x7f")

    def true(self, *, run_id: str | None = None, incarnation: int = 1, inputs: torch.Tensor = X) -> list[bytes]:
        """An activation as the victim might have sent it."""
        stamp = Stamp(run_id or self.run_id, self.victim, incarnation, self._random.randrange(1, 1000))
        return [bytes(frame) for frame in wire.encode(Activation(1, 1, inputs), stamp)]

    def noise(self) -> list[list[bytes]]:
        """Random bytes in random frames."""
        return [[self._random.randbytes(self._random.randrange(400)) for _ in range(self._random.randrange(1, 6))]]

    def cut(self) -> list[list[bytes]]:
        """A true message without its end."""
        (frame,) = self.true()
        return [[frame[: 8 * self._random.randrange(len(frame) // 8)]]]

    def foreign(self) -> list[list[bytes]]:
        """Of another run."""
        return [self.true(run_id="another run's id")]

    def misfit(self) -> list[list[bytes]]:
        """A true head before a payload of another length."""
        (frame,) = self.true()
        return [[frame + bytes(8)]]

    def stranger(self) -> list[list[bytes]]:
        """A true message of a neighbour, replayed over a connection that is not the neighbour's."""
        return [self.true()]

    def nan(self) -> list[list[bytes]]:
        """The same, and nothing in it is finite."""
        return [self.true(inputs=NAN)]

    def flood(self) -> list[list[bytes]]:
        """Many empty frames in one message."""
        return [[b""] * 50]

    def by_hand(self, kind: str, words: bytes) -> None:
        """Bytes on a bare connection: ZMTP 1.0 needs no handshake."""
        host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(words)
            self.sent[kind] += 1

    def _dealer(self, context: "zmq.Context[zmq.Socket[bytes]]", identity: str) -> "zmq.Socket[bytes]":
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IDENTITY, identity.encode())
        dealer.connect(self.endpoint)
        return dealer
