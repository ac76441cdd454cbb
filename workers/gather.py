"""How a run in lock-step stops: at a step that all reach, so that all save the same one. Knows no process.

    supervisor ── gather ──▶ all      report the step that you are bound to reach, and go no further than that
    supervisor ◀── bound ─── each     the step that it is in, or the one that it has ended
    supervisor ── until N ─▶ all      N is the largest of them: who is in step N has messages under way, and needs the
                                      others' to end it
    supervisor ◀─ stopping ─ each     has saved step N, and waits, so that nobody misses its messages
    supervisor ─── stop ───▶ all      leave

Who does not answer, or dies, must not keep the others: they are then told to stop where they are, and the run goes on
from the step that all have saved before.
"""

from collections.abc import Sequence

from workers.member import Member


class Gathering:
    """What has to be ordered next, once `gather` was. `patience_s`: from now, or the end of the last checkpoint that is
    being written, until the rest is told to stop as it is.
    """

    def __init__(self, members: Sequence[Member], patience_s: float, now: float) -> None:
        self._members = members
        self._patience_s = patience_s
        self._give_up_at = now + patience_s
        self._told = False

    def order(self, now: float) -> str | None:
        """The order that is due now: at last, `stop`."""
        if any(member.saving for member in self._members):
            self._give_up_at = max(self._give_up_at, now + self._patience_s)
        without = any(member.over in ("failed", "stopped") for member in self._members)
        if without or now >= self._give_up_at or all(member.gathered for member in self._members):
            return "stop"
        bounds = [member.bound for member in self._members]
        known = [bound for bound in bounds if bound is not None]
        if self._told or len(known) < len(bounds):
            return None
        self._told = True
        return f"until {max(known)}"
