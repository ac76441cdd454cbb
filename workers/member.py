"""A component over all its lives, as its supervisor sees it: state, reason, restarts, verdict. Knows no other member.

    starting ─▶ training ⇄ waiting ─▶ finished             what it says itself
        └──────────┴─▶ stalled ─┐                          no progress: stacks into its log, SIGKILL
        └──────────┴────────────┴─▶ restarting ─▶ starting      `workers/policy.py` says when, or
                                        └──────▶ failed         that it has failed for good
    stopping ─▶ stopped                                    what everybody was told

Laws: it acts on itself alone. Nothing waits: what is due later is a time that `wake_at` names. Times are seconds of
the supervisor's clock.
"""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import msgspec

from configs.errors import RunError
from configs.tree import Supervise
from workers.attempt import Attempt
from workers.desk import Answer, Promise
from workers.policy import GiveUp, Restarts, patience_s
from workers.report import SAVING, Report, State, older
from workers.rundir import RunDir
from workers.status import ComponentStatus, Failure

DUMP_S = 0.5
"""Time to write stacks into the log, between the judgement that it is stalled and SIGKILL."""
LEAVE_S = 5.0
"""Longest silence of one that has nothing left to do but its goodbyes."""
KEPT = 100
"""Durations of restarts that are kept."""
Final = Literal["finished", "stopped", "failed"]


class Member:
    """One component. `start(incarnation, now)` begins a life of it."""

    def __init__(
        self,
        start: Callable[[int, float], Attempt],
        first: int,
        rules: Supervise,
        run: RunDir,
        now: float,
        *,
        mends: bool = True,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        """`mends`: whether it may be restarted at all; `first`: the incarnation of its first life; `before`: what it
        had come to in earlier launches (`status.reached`), shown until it speaks.
        """
        self.run = run
        self.rules = rules
        self.mends = mends
        self.attempt = start(first, now)
        self.plan = self.attempt.plan
        self.incarnation = first
        self.restarts = 0
        """All of them, asked for or not."""
        self.over: Final | None = None
        """How it ended, once it has for good."""
        self.failed_at = float("inf")
        """When it ended for good, if it failed."""
        self.failure: Failure | None = None
        """The newest."""
        self.restart_s: deque[float] = deque(maxlen=KEPT)
        """From noticing an end to the first step of the next life, newest last."""
        self._start = start
        self._account = Restarts(rules.max_restarts)
        self._report: Report | None = None
        self._before = dict(before or {})
        self._reported_at = now
        self._why = ""
        self._next_at = float("inf")
        self._kill_at = float("inf")
        self._ended_at: float | None = None
        self._told = ""
        self._asked = False
        self._said: dict[str, int] = {}
        """By what it was told of its neighbours, the life that was."""

    @property
    def name(self) -> str:
        """The component's."""
        return self.plan.name

    @property
    def steps(self) -> int:
        """Optimiser steps that it reported last."""
        return self._report.step if self._report is not None else 0

    @property
    def done(self) -> bool:
        """Whether nobody has to wait for it: it has done its steps, it is a stub, or it has ended for good."""
        return self.over is not None or self.plan.kind == "stub" or (self.attempt.alive and self.attempt.done)

    @property
    def silent(self) -> bool:
        """Whether it is a stub that says it has nothing more to say, and nobody has asked for a new life of it."""
        said = self.attempt.report
        return self.plan.kind == "stub" and said is not None and said.state == "finished" and not self._asked

    @property
    def lost(self) -> str:
        """Why nothing more comes of it, for a verdict on a run in which others depend on that."""
        if self.over == "failed":
            return self.cause
        if self.over == "stopped":
            return f"{self.name} was stopped alone" if self.attempt.left_well else f"{self.name}: {self._why}"
        return f"stub {self.name} sends nothing more"

    @property
    def bound(self) -> int | None:
        """Told to gather: the step that its present life said it is bound to reach."""
        said = self.attempt.report
        return None if said is None else said.step if said.state == "finished" else said.bound

    @property
    def gathered(self) -> bool:
        """Whether it is where all stop, and has saved what it could."""
        said = self.attempt.report
        return self.over is not None or (said is not None and said.state in ("stopping", "stopped", "finished"))

    @property
    def saving(self) -> bool:
        """Whether it says that it writes its checkpoint, which no deadline cuts short: gigabytes take long. One that
        hangs meanwhile falls silent, and is killed for that.
        """
        said = self.attempt.report
        writes = said is not None and (said.state, said.reason) == ("waiting", SAVING)
        return writes and self.attempt.alive and not self.attempt.killed

    @property
    def trained(self) -> bool:
        """Whether it has made a step in any life of this launch."""
        return self._account.trained

    @property
    def refused(self) -> bool:
        """Whether it found, before its first step, that the configuration or the data cannot be run: so will all."""
        return self.over == "failed" and self.attempt.refused and not self.trained

    @property
    def unsaved(self) -> bool:
        """Whether it ended, and what it has learnt could not be written down."""
        return self.over == "failed" and self.attempt.unsaved

    @property
    def cause(self) -> str:
        """One sentence on why it failed."""
        if self.refused:
            return self.attempt.verdict()
        return f"{self.name} failed: {self._why}; see {self.run.log(self.name, self.incarnation)}"

    def wake_at(self) -> float:
        """When `look` has something to do, if nothing happens before."""
        return min(self._next_at, self._kill_at)

    def look(self, now: float) -> None:
        """Take what it has said, notice its end, and do what is due."""
        if self.attempt.alive:
            self.attempt.read(now)
            self._heed(now)
            if self.attempt.exit_code is None:
                self._suspect(now)
            else:
                self._settle(now)
        if now >= self._next_at:
            self._begin(now)

    def order(self, order: str) -> None:
        """Tell it to leave; it is not restarted any more."""
        self._told = order
        self.attempt.order(order)
        if self._next_at < float("inf"):
            self._next_at = float("inf")
            self._end("stopped", f"the run ended before its next life began; before, it {self._why}")

    def tell(self, order: str) -> None:
        """Tell its present life, once, how it is with its neighbours; unlike after `order`, it may fail and begin anew,
        and the next life is told again.
        """
        if self._said.get(order) != self.incarnation:
            self._said[order] = self.incarnation
            self.attempt.order(order)

    def kill(self, why: str) -> None:
        """SIGKILL for the present life, whatever it does."""
        self.attempt.kill(why)

    def restart(self, now: float) -> Promise:
        """Somebody wants a new life of it: save, leave and begin. One that is about to begin is that life."""
        refusal = self._refusal()
        if refusal:
            return lambda: Answer(done=False, text=refusal)
        wanted = self.incarnation + 1
        if self.over == "failed":
            self.over, self.failed_at, self._account = None, float("inf"), Restarts(self.rules.max_restarts)
            self._ended_at = self._next_at = now
        elif not self.attempt.alive:
            self._next_at = now
        elif self.attempt.heard_at is None:
            wanted = self.incarnation
        elif not self._asked:
            self._asked = True
            self.attempt.order("stop")
            self._kill_at = min(self._kill_at, now + self.rules.grace_ms / 1000)
        return lambda: self._answer(wanted)

    def _refusal(self) -> str:
        if self.over in ("finished", "stopped") or self._told:
            return f"{self.name} has {self.over or 'been told to leave'}; there is nothing to restart"
        if not self.mends:
            return f"in lock-step nobody can go on without {self.name}; stop the run and go on with mach resume"
        return ""

    def _answer(self, wanted: int) -> Answer | None:
        if self.incarnation >= wanted:
            return Answer(done=True, text=f"{self.name} begins anew, incarnation {self.incarnation}")
        if self.over is not None:
            return Answer(done=False, text=f"{self.name} has {self.over} meanwhile")
        return None

    def close(self, now: float) -> None:
        """Wait for the end of the present life, which was killed, and release what it holds."""
        if self.attempt.alive:
            self.attempt.join(now)

    def status(self, now: float) -> ComponentStatus:
        """For status.json: the newest report, whichever life it is of, and what is known beyond it."""
        report = self._report or Report(
            component=self.name,
            kind=self.plan.kind,
            incarnation=self.incarnation,
            pid=None,
            device=self.plan.device,
            state="starting",
            **self._before,
        )
        state, reason = self._state(now)
        heard = self.attempt.heard_at
        fields = msgspec.structs.asdict(report) | {
            "checkpoint": older(report.checkpoint, now - self._reported_at),
            "state": state,
            "reason": reason,
            "incarnation": self.incarnation,
            "pid": self.attempt.pid if self.attempt.alive else None,
        }
        return ComponentStatus(
            **fields,
            last_seen_s=None if heard is None else now - heard,
            exit_code=None if self.over is None else self.attempt.exit_code,
            log=f"logs/{self.run.log(self.name, self.incarnation).name}",
            restarts=self.restarts,
            restart_s=[round(seconds, 3) for seconds in self.restart_s],
            failure=self.failure,
            below=self.plan.below,
        )

    def _state(self, now: float) -> tuple[State, str]:
        """The one that is shown, and why."""
        said = self.attempt.report
        if self.over is not None:
            anew = self.over == "failed" and not self.refused and not self._refusal()
            way = f"; mach restart {self.run.called} {self.name} has it begin anew"
            return self.over, self._why + (way if anew else "")
        if not self.attempt.alive and self._next_at == float("inf"):
            return "failed", self.attempt.killed or self._why or "ended with its launcher"
        if not self.attempt.alive:
            return "restarting", f"{self._why}; its next life begins in {max(self._next_at - now, 0.0):.1f} s"
        if self.attempt.killed:
            return "stalled", self.attempt.killed
        if self._told not in ("", "release") or self._asked:
            return "stopping", SAVING if self.saving else "told to save and leave"
        if said is None:
            return "starting", ""
        return said.state, said.reason

    def _heed(self, now: float) -> None:
        """What its newest report says about its progress."""
        said = self.attempt.report
        if said is None or said is self._report:
            return
        self._report, self._reported_at = said, now
        self._account.saved(said.checkpoint.step)
        if self.attempt.stepped:
            self._account.began()
            if self._ended_at is not None:
                self.restart_s.append(now - self._ended_at)
                self._ended_at = None

    def _suspect(self, now: float) -> None:
        """No progress: stacks into its log, then SIGKILL. Also the end of one that was asked to leave and does not."""
        if not self.attempt.killed and self.attempt.silence_s(now) > self._patience_s():
            frozen = self.attempt.frozen()
            why = f"made no progress for {self.attempt.silence_s(now):.1f} s"
            why += ", stopped by a signal (SIGSTOP)" if frozen else ": hung; its log ends with its stacks"
            self.attempt.killed = why
            self._note(f"{why}; killed" if frozen else f"made no progress for {self._patience_s():.1f} s; its stacks:")
            if not frozen:
                self.attempt.dump()
            self._kill_at = now if frozen else now + DUMP_S
        if self.saving:  # the time to leave begins when it has
            self._kill_at = max(self._kill_at, now + max(self.rules.grace_ms / 1000, DUMP_S))
        if now >= self._kill_at:
            self._kill_at = float("inf")
            self.attempt.kill("did not leave in time")

    def _patience_s(self) -> float:
        said = self.attempt.report
        if said is None:
            return self.rules.starting_ms / 1000
        limit_s = patience_s(self.rules.stalled_ms, said.step_ms_p99)
        return max(limit_s, LEAVE_S) if said.state in ("finished", "stopped") else limit_s

    def _settle(self, now: float) -> None:
        """A life has ended: was it the last?"""
        attempt = self.attempt
        attempt.close()
        self._kill_at = float("inf")
        said = attempt.report.state if attempt.report is not None else "starting"
        if self._asked and not self._told:
            self._why = "was asked to restart"
            self._ended_at = self._next_at = now
        elif attempt.left_well:
            self._end("finished" if said == "finished" else "stopped", "asked to stop" if said == "stopped" else "")
        elif self._told and attempt.killed:
            self._end("finished" if attempt.done else "stopped", attempt.killed)
        elif self._told == "release" and attempt.done and not attempt.unsaved:
            self._end("finished", f"had finished, and then {attempt.verdict()}")
        else:
            self._fail(attempt.verdict(), now)

    def _fail(self, why: str, now: float) -> None:
        """The present life failed."""
        log = f"logs/{self.run.log(self.name, self.incarnation).name}"
        code = self.attempt.exit_code
        self.failure = Failure(reason=why, incarnation=self.incarnation, at_s=round(now, 3), exit_code=code, log=log)
        self._why = why
        self._ended_at = now
        hopeless = self.attempt.unsaved or (self.attempt.refused and not self._account.trained)
        if self._told or not self.mends or hopeless:
            self._end("failed", why, now)
            return
        verdict = self._account.failed()
        if isinstance(verdict, GiveUp):
            self._end("failed", f"{why}, {verdict.why}", now)
        else:
            self._next_at = now + verdict.after_s

    def _begin(self, now: float) -> None:
        """The next life."""
        self._next_at = float("inf")
        self._asked = False
        self.incarnation += 1
        self.restarts += 1
        try:
            self.attempt = self._start(self.incarnation, now)
        except (OSError, RunError) as error:
            self._fail(f"could not be started ({error})", now)

    def _end(self, over: Final, why: str, now: float = float("inf")) -> None:
        self.over, self._why, self.failed_at = over, why, now

    def _note(self, sentence: str) -> None:
        """One line into its log, which it may be unable to write itself."""
        log = self.run.log(self.name, self.incarnation)
        with suppress(OSError), log.open("a", encoding="utf-8") as file:  # no log, no line: the reason stays in status
            file.write(f"launcher: {self.name} {sentence}\n")
