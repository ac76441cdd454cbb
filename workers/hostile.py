"""A stranger for tests and benchmarks: feeds a live component over tcp with what nobody should send.

    with Hostile(endpoint, run_id, seed=1) as hostile:       # a thread; `hostile.sent` says what it sent
    python -m workers.hostile ENDPOINT RUN_ID                # a process; prints that as JSON

Seeded. Knows the wire format and the run's id, as an attacker who has read both. Laws: what it sends is counted by
kind in `sent`, and all of that has left when it is closed; nothing of it is left then.
"""

import json
import math
import random
import socket
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

import click
import torch
import zmq

from bus import wire
from bus.wire import Frame, Kind, Stamp
from mach.messages import Activation

X = torch.zeros(128, 64)
NAN = torch.full((128, 64), math.nan)
INF = torch.full((128, 64), -math.inf)
OVERSIZED = 1 << 50
"""Bytes that a frame claims to have."""
LINGER_MS = 10_000
TIMEOUT_S = 5.0


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
        kinds = [self.noise, self.cut, self.foreign, self.misfit, self.stranger, self.nan, self.inf, self.flood]
        names = {"other": "c9:1", "old": f"{self.victim}:0", "heir": f"{self.victim}:99", "alias": f"{self.victim}:01"}
        with zmq.Context() as context, ExitStack() as stack:
            dealers = {kind: stack.enter_context(self._dealer(context, name)) for kind, name in names.items()}
            while not self._ended.wait(self.every_s):
                kind = self._random.choice(kinds)
                dealers["other"].send_multipart(kind())
                self.sent[kind.__name__] += 1
                if self._random.random() < 0.1:
                    self.pose(dealers)
                if self._random.random() < 0.02:
                    self.by_hand("bare", b"\x01\x00\x06\x00hello")
                    self.by_hand("oversized", b"\xff" + OVERSIZED.to_bytes(8, "big") + b"\x00", refused=True)

    def pose(self, dealers: "dict[str, zmq.Socket[bytes]]") -> None:
        """As a life of the victim: one that is over, one that never began, the present one in other letters."""
        dealers["old"].send_multipart(self.true(incarnation=0))
        dealers["heir"].send_multipart(self.control(Kind.HELLO, incarnation=99))
        dealers["alias"].send_multipart(self.control(Kind.BYE, incarnation=1))
        self.sent.update(["old", "heir", "alias"])

    def control(self, kind: Kind, *, incarnation: int) -> list[Frame]:
        """What would open the edge anew, or end it."""
        sequence = self._random.randrange(1 << 40, 1 << 41)
        return wire.encode_control(kind, Stamp(self.run_id, self.victim, incarnation, sequence), window=9, heard=1)

    def true(self, *, run_id: str | None = None, incarnation: int = 1, inputs: torch.Tensor = X) -> list[bytes]:
        """An activation as the victim might have sent it."""
        stamp = Stamp(run_id or self.run_id, self.victim, incarnation, self._random.randrange(1, 1000))
        return [bytes(frame) for frame in wire.encode(Activation(1, 1, inputs), stamp)]

    def noise(self) -> list[bytes]:
        """Random bytes in random frames."""
        return [self._random.randbytes(self._random.randrange(400)) for _ in range(self._random.randrange(1, 6))]

    def cut(self) -> list[bytes]:
        """A true message without its end."""
        (frame,) = self.true()
        return [frame[: 8 * self._random.randrange(len(frame) // 8)]]

    def foreign(self) -> list[bytes]:
        """Of another run."""
        return self.true(run_id="another run's id")

    def misfit(self) -> list[bytes]:
        """A true head before a payload of another length."""
        (frame,) = self.true()
        return [frame + bytes(8)]

    def stranger(self) -> list[bytes]:
        """A true message of a neighbour, replayed over a connection that is not the neighbour's."""
        return self.true()

    def nan(self) -> list[bytes]:
        """The same, and nothing in it is finite."""
        return self.true(inputs=NAN)

    def inf(self) -> list[bytes]:
        """Infinities."""
        return self.true(inputs=INF)

    def flood(self) -> list[bytes]:
        """Many empty frames in one message."""
        return [b""] * 50

    def by_hand(self, kind: str, words: bytes, *, refused: bool = False) -> None:
        """Bytes on a bare connection: ZMTP 1.0 needs no handshake. Some must make the other end hang up."""
        host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as raw:
            raw.sendall(words)
            with suppress(ConnectionResetError):
                while refused and raw.recv(1 << 10):  # its greeting, and then the end
                    continue
            self.sent[kind] += 1

    def _dealer(self, context: "zmq.Context[zmq.Socket[bytes]]", identity: str) -> "zmq.Socket[bytes]":
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, LINGER_MS)
        dealer.setsockopt(zmq.IDENTITY, identity.encode())
        dealer.connect(self.endpoint)
        return dealer


@click.command(help=__doc__)
@click.argument("endpoint")
@click.argument("run_id")
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(endpoint: str, run_id: str, seconds: float, seed: int) -> None:
    """Feed, and print what was sent."""
    with Hostile(endpoint, run_id, seed=seed) as hostile:
        hostile.join(seconds)
    print(json.dumps(hostile.sent))


if __name__ == "__main__":
    main()
