"""Faults on the way out, wrapped around any transport: what a bad network or a bad neighbour does to messages.

Seeded, so a script misbehaves in the same way twice. Knows nothing of what the frames say. Every fault that
fires is counted in `fired`: a test of a fault can show that the fault happened.
"""

import random
from collections import Counter
from dataclasses import dataclass

from bus.mailbox import Parcel, Peer, Relay, Transport
from bus.wire import PREFIX, Frames

HOLD_S = 0.2
"""No message is held back for longer to be overtaken."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares of outgoing messages, 0 to 1, that meet each fault."""

    drop: float = 0.0
    """Never leave."""
    duplicate: float = 0.0
    """Leave twice."""
    reorder: float = 0.0
    """Leave after the next one, or after HOLD_S where none follows."""
    corrupt: float = 0.0
    """Leave with one bit of their head changed, or cut short in their last frame."""


class FaultyTransport(Relay):
    """Passes everything on, but for the faults."""

    def __init__(self, inner: Transport, faults: Faults, seed: int, fired: Counter[str]) -> None:
        super().__init__(inner)
        self.faults = faults
        self.fired = fired
        self._random = random.Random(seed)
        self._held: list[tuple[Peer, Frames]] = []
        self._held_at = 0.0

    def send(self, peer: Peer, frames: Frames) -> bool:
        """Send, unless a fault fires. A message that a fault took counts as sent: the sender cannot know."""
        if self._fires("drop", self.faults.drop):
            return True
        if self._fires("corrupt", self.faults.corrupt):
            frames = self._spoiled(frames)
        if self._fires("reorder", self.faults.reorder):
            # a sent buffer may change once its step is over, and this one leaves later: keep a copy
            self._held_at = self._held_at if self._held else self.now()
            self._held.append((peer, [bytes(frame) for frame in frames]))
            return True
        sent = self.inner.send(peer, frames)
        if sent and self._fires("duplicate", self.faults.duplicate):
            self.inner.send(peer, frames)
        self._let_go()
        return sent

    def receive(self) -> list[Parcel]:
        """Pass on; and let go of what nothing has overtaken."""
        if self._held and self.now() - self._held_at >= HOLD_S:
            self._let_go()
        return self.inner.receive()

    def _let_go(self) -> None:
        held, self._held = self._held, []
        for later in held:
            self.inner.send(*later)

    def _fires(self, fault: str, share: float) -> bool:
        # one draw for every fault and message, fired or not: changing one share leaves the others' draws alone
        fires = self._random.random() < share
        self.fired[fault] += fires
        return fires

    def _spoiled(self, frames: Frames) -> list[bytes]:
        spoiled = [bytes(frame) for frame in frames]
        if self._random.random() < 0.5:
            spoiled[-1] = spoiled[-1][: self._random.randrange(len(spoiled[-1]))] if spoiled[-1] else b"\0"
            return spoiled
        header = bytearray(spoiled[0])
        header[self._random.randrange(PREFIX)] ^= 1 << self._random.randrange(8)
        spoiled[0] = bytes(header)
        return spoiled
