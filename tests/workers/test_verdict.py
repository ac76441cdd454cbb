"""Ends of members in, one sentence and one exit code out."""

from dataclasses import dataclass

import pytest

from configs.load import load
from fakes import plan
from mach.recipes import RECIPES
from workers.plan import unscripted
from workers.verdict import EXITS, exits_help, judge


@dataclass
class FakeMember:
    """What a verdict looks at."""

    name: str
    over: str
    failed_at: float = float("inf")
    refused: bool = False
    unsaved: bool = False
    kind: str = "trainer"

    @property
    def cause(self) -> str:
        return f"{self.name} failed"

    @property
    def lost(self) -> str:
        return f"{self.name} was stopped alone"

    @property
    def plan(self) -> object:
        return plan(self.kind, self.name)


def finished(name: str = "c0", kind: str = "trainer") -> FakeMember:
    return FakeMember(name, "finished", kind=kind)


def failed(name: str = "c1", at: float = 1.0, **more: object) -> FakeMember:
    return FakeMember(name, "failed", at, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "stopped", "lockstep", "verdict"),
    [
        ([finished(), finished("c1")], "", False, ("finished", "", 0)),
        ([finished(), failed("c1", 2.0), failed("c2")], "", False, ("finished", "c2 failed; c1 failed as well", 3)),
        ([finished(), failed("c1", kind="stub")], "", False, ("finished", "c1 failed", 3)),
        ([finished(), FakeMember("c1", "stopped")], "", False, ("finished", "c1 was stopped alone", 3)),
        ([failed(f"c{i}") for i in range(3)], "", False, ("failed", "c0 failed; c1, c2 failed as well", 1)),
        ([finished("c0", "stub"), failed("c1")], "", False, ("failed", "c1 failed", 1)),
        ([FakeMember("c0", "stopped"), failed("c1", refused=True)], "", False, ("failed", "c1 failed", 2)),
        ([FakeMember("c0", "stopped"), failed("c1")], "by SIGINT", False, ("stopped", "by SIGINT", 130)),
        (
            [FakeMember("c0", "stopped"), failed(unsaved=True)],
            "by SIGINT",
            False,
            ("stopped", "by SIGINT; c1 failed", 3),
        ),
        ([finished(), failed("c1", unsaved=True)], "", False, ("finished", "c1 failed", 3)),
    ],
)
def test_the_table(members: list[FakeMember], stopped: str, lockstep: bool, verdict: tuple[str, str, int]) -> None:
    found = judge(members, run="r", stopped=stopped, together="in lock-step" if lockstep else "")  # type: ignore[arg-type]
    assert (found.state, found.reason, found.exit_code) == verdict
    assert found.exit_code in EXITS


def test_a_trainer_without_a_step_is_no_success() -> None:
    found = judge([finished(), finished("c1")], run="r", stopped="", together="", lacking="c1: nothing")  # type: ignore[list-item]
    assert (found.state, found.reason, found.exit_code) == ("finished", "c1: nothing", 3)
    found = judge([finished(), finished("c1"), failed("c2")], run="r", stopped="", together="", lacking="c1: nothing")  # type: ignore[list-item]
    assert (found.reason, found.exit_code) == ("c2 failed; c1: nothing", 3)


def test_in_lockstep_one_failure_is_the_runs_and_the_way_on_is_named() -> None:
    found = judge([finished(), failed()], run="r", stopped="", together="in lock-step")  # type: ignore[list-item]
    assert (found.state, found.exit_code) == ("failed", 1)
    assert "mach resume r" in found.reason


def test_who_was_missed_is_the_cause_unless_somebody_failed() -> None:
    members = [FakeMember("c0", "stopped"), FakeMember("c1", "stopped")]
    end = {"run": "r", "stopped": "", "together": "with gradients end to end", "gone": members[1]}
    found = judge(members, **end)  # type: ignore[arg-type]
    assert (found.state, found.exit_code) == ("failed", 1)
    assert found.reason.startswith("c1 was stopped alone; with gradients end to end nobody goes on alone: ")
    assert judge([*members, failed("c2")], **end).reason.startswith("c2 failed; ")  # type: ignore[arg-type]


@pytest.mark.parametrize("over", ["finished", "failed"])
def test_where_a_script_ends_a_stub_the_advice_is_to_change_the_script(over: str) -> None:
    """Resumed as it is, the run would end there again."""
    stub = FakeMember("c1", over, 1.0 if over == "failed" else float("inf"), kind="stub")
    config = load("digits", ("components.1.stub={silent_at: 10, crash_at: 20}", "components.2.stub.rate=1"), RECIPES)
    settings = "--set components.1.stub.silent_at=null --set components.1.stub.crash_at=null"
    assert unscripted(config) == {"c1": settings}
    end = {"run": "r", "stopped": "", "together": "with gradients end to end", "unscripted": unscripted(config)}
    found = judge([FakeMember("c0", "stopped"), stub], gone=stub, **end)  # type: ignore[arg-type, list-item]
    assert found.reason.endswith(f"nobody goes on without it, which its script ends: mach resume r {settings}")
    assert "together" not in found.reason


def test_the_help_has_every_code() -> None:
    assert all(f"  {code} " in exits_help() for code in EXITS)
