"""The vocabulary and the rules of an edge, as data: states, events, fates. `bus/edge.py` obeys them.

    parent end (asks)     knocking ──hello──▶ open ⇄ silent ──▶ closed      `PARENT_RULES`
    child end (answers)   knocking ──hello──▶ open ⇄ silent ──▶ closed      `CHILD_RULES`

Knows no time and no frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from msgspec import Struct


class State(StrEnum):
    """Of an edge, at one end."""

    KNOCKING = "knocking"  # the peer has not greeted us yet, in its present life
    OPEN = "open"
    SILENT = "silent"  # greeted once, unheard past the time-out or out of reach
    CLOSED = "closed"  # one end said bye


class Fate(StrEnum):
    """Why a message did not count, as keys of `Counts.dropped`."""

    # of activations that left, at the parent's end: each has exactly one of these, or an answer
    TIMEOUT = "timeout"  # unanswered for bus.timeout_ms; its place in the window is free again
    RESET = "reset"  # the child started anew and knows nothing of it
    BYE = "bye"  # still unanswered when one end said bye
    # of frames that came
    LOST = "lost"  # a gap in the peer's sequence: these never came
    DUPLICATE = "duplicate"  # came before
    REORDERED = "reordered"  # came after a later one; until then it counted as lost
    STALE = "stale-incarnation"  # from an earlier life of the peer
    LATE = "late"  # a target whose activation had timed out or was reset
    UNASKED = "unasked"  # a target never asked for, a gradient never owed
    UNANNOUNCED = "unannounced"  # from a peer that has not said hello yet
    CLOSED = "closed"  # after a bye
    # of messages that were to leave
    UNREACHABLE = "unreachable"  # no connection
    FORGOTTEN = "forgotten"  # an answer or a gradient too late to be waited for
    TOO_LARGE = "too-large"  # more than bus.max_message_mb


class Event(StrEnum):
    """What can happen to an edge's state."""

    GREETED = "greeted"  # hello of a peer that has heard ours
    STRANGER = "stranger"  # a new life of the peer, or one that has not heard our hello
    HEARD = "heard"  # any message
    BYE = "bye"  # the peer's
    LEFT = "left"  # our own bye
    UNHEARD = "unheard"  # nothing for a time-out, or no connection
    RECONNECTED = "reconnected"  # a new connection, so perhaps a new peer


Rules = Mapping[tuple[State, Event], State]
"""A pair that is not listed leaves the state as it is, and so does everything after our own bye."""

NO_RULES: Rules = MappingProxyType({})

PARENT_RULES: Rules = {
    (State.KNOCKING, Event.GREETED): State.OPEN,
    (State.KNOCKING, Event.BYE): State.CLOSED,
    (State.KNOCKING, Event.LEFT): State.CLOSED,
    (State.OPEN, Event.STRANGER): State.KNOCKING,
    (State.OPEN, Event.BYE): State.CLOSED,
    (State.OPEN, Event.LEFT): State.CLOSED,
    (State.OPEN, Event.UNHEARD): State.SILENT,
    (State.SILENT, Event.GREETED): State.OPEN,
    (State.SILENT, Event.STRANGER): State.KNOCKING,
    (State.SILENT, Event.HEARD): State.OPEN,
    (State.SILENT, Event.BYE): State.CLOSED,
    (State.SILENT, Event.LEFT): State.CLOSED,
    # a child that left and came back
    (State.CLOSED, Event.STRANGER): State.KNOCKING,
    (State.CLOSED, Event.RECONNECTED): State.KNOCKING,
    (State.OPEN, Event.RECONNECTED): State.SILENT,
}

CHILD_RULES: Rules = {
    (State.KNOCKING, Event.GREETED): State.OPEN,
    (State.KNOCKING, Event.BYE): State.CLOSED,
    (State.KNOCKING, Event.LEFT): State.CLOSED,
    (State.OPEN, Event.STRANGER): State.KNOCKING,
    (State.OPEN, Event.BYE): State.CLOSED,
    (State.OPEN, Event.LEFT): State.CLOSED,
    (State.OPEN, Event.UNHEARD): State.SILENT,
    (State.SILENT, Event.GREETED): State.OPEN,
    (State.SILENT, Event.HEARD): State.OPEN,
    (State.SILENT, Event.BYE): State.CLOSED,
    (State.SILENT, Event.LEFT): State.CLOSED,
    (State.SILENT, Event.STRANGER): State.KNOCKING,
    # a parent's next life
    (State.CLOSED, Event.STRANGER): State.KNOCKING,
    (State.CLOSED, Event.GREETED): State.OPEN,
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every edge of a component. A child's end takes the window from its parent's hello."""

    incarnation: int
    """Our own."""
    window: int
    timeout_s: float
    hello_s: float


class Taken(Struct, frozen=True):
    """A message that counts. `left_s`: when the activation left that it answers, for a target."""

    version: int
    left_s: float | None = None
