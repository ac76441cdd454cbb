"""How a run ended, when all its processes are gone: state, root cause, exit code. Knows no process.

`EXITS` is the one table of exit codes of `mach launch`; its help and the documentation are made from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from workers.member import Member
from workers.status import RunState

FINISHED, FAILED, REFUSED, DEGRADED, STOPPED = 0, 1, 2, 3, 130
EXITS: Mapping[int, str] = {
    FINISHED: "every component finished",
    FAILED: "the run failed: no component finished, or one did not where nobody goes on alone",
    REFUSED: "it cannot be run as asked",
    DEGRADED: "some component failed for good, was stopped alone, made no step, could not save its end, or never heard "
    "a child that did well; the others did well",
    STOPPED: "stopped; mach resume goes on from what is saved",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a run."""

    state: RunState
    reason: str
    exit_code: int


def judge(
    members: Sequence[Member],
    *,
    run: str,
    stopped: str,
    together: str,
    gone: Member | None = None,
    unscripted: Mapping[str, str] = MappingProxyType({}),
    lacking: str = "",
) -> Verdict:
    """The verdict on members that have all ended, of `run` as commands are told it; `stopped` says by what the run
    was stopped, if it was, `together` why nobody went on alone (`Plan.together`), and `gone` who was missed first.
    `unscripted`: see `workers/plan.py`; `lacking`: see `workers/health.py`.
    """
    failed = [member for member in members if member.over == "failed"]
    first = min(failed, key=lambda member: member.failed_at, default=None)
    refused = next((member for member in failed if member.refused), None)
    if stopped:
        unsaved = next((member for member in failed if member.unsaved), None)
        if unsaved is not None:
            return Verdict("stopped", f"{stopped}; {unsaved.cause}", DEGRADED)
        return Verdict("stopped", stopped, STOPPED)
    if refused is not None:
        return Verdict("failed", refused.cause, REFUSED)
    missed = first or gone
    cause = first.cause if first is not None else gone.lost if gone is not None else ""
    if missed is not None and together:
        way = f"nobody goes on alone: mach resume {run} does, together"
        if missed.name in unscripted:  # it would end there again
            way = f"nobody goes on without it, which its script ends: mach resume {run} {unscripted[missed.name]}"
        return Verdict("failed", f"{cause}; {together} {way}", FAILED)
    if all(member.over == "finished" for member in members):
        return Verdict("finished", lacking, DEGRADED if lacking else FINISHED)
    alone = next((member for member in members if member.over == "stopped"), None)
    cause = cause or ("" if alone is None else alone.lost)
    others = ", ".join(member.name for member in failed if member is not first)
    cause += f"; {others} failed as well" if others else ""
    cause += f"; {lacking}" if lacking else ""
    if any(member.over == "finished" and member.plan.kind == "trainer" for member in members):
        return Verdict("finished", cause, DEGRADED)
    return Verdict("failed", cause, FAILED)


def exits_help() -> str:
    """`EXITS`, for people."""
    return "Exit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXITS.items())
