"""Random kills over a minute: nobody but the killed notices, nothing is lost but what was on its way, nothing leaks."""

import statistics
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from chaos.storm import Row, Storm, on_path, statuses, weather
from conftest import Launched
from witness import Evidence

Launch = Callable[..., Launched]
WINDOW = 2
PACE_S = "0.04"
"""A step takes about so long: most of it is sleep, so that two runs at a time find room on two cores."""
SETTINGS = (
    *("bus.timeout_ms=20000", f"bus.window={WINDOW}", "report.every_ms=100", "checkpoint.every_s=0.5"),
    *("supervise.stalled_ms=30000", "model.family=witness:mlp"),
)
WORDS = [word for setting in SETTINGS for word in ("--set", setting)]
LOST = {"timeout", "reset", "bye"}
"""Fates of activations that left and were not answered."""


def begin(launch: Launch, minutes: float, name: str = "test") -> Launched:
    """Four components in training, everybody answered."""
    run = launch("--components", "4", "--minutes", str(minutes), "--seed", "2", *WORDS, name=name)
    next(status for status in statuses(run) if all(row["child_steps"] > 10 for row in status["components"]))
    return run


@pytest.mark.slow
@pytest.mark.chaos
def test_twenty_kills_in_a_minute(launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same run without kills, whose accuracy is the measure, goes on at the same time."""
    on_path(monkeypatch, PACE_S=PACE_S, WITNESS=str(tmp_path / "witness"))
    calm = begin(launch, 1.2, name="calm")
    storm = weather(begin(launch, 1.2), "--kill", "20/min", "--seconds", "60", "--seed", "4")
    print(f"\nback in training: {storm.account['restart_s']}")
    assert calm.end() == 0
    everybody_came_back(storm, kills=20)
    only_the_killed_began_anew(storm)
    nobody_went_back_beyond_a_checkpoint(storm)
    what_was_lost_is_accounted_for(storm)
    told = Evidence(tmp_path / "witness" / storm.run_id)
    the_witnesses_tell_what_the_reports_tell(storm, told)
    a_kill_costs_an_edge_a_window_of_each_kind(storm, told)
    nothing_grew(storm)
    print(f"accuracy: {accuracy(storm.status):.4f}, without kills {accuracy(calm.status()):.4f}")
    assert abs(accuracy(storm.status) - accuracy(calm.status())) <= 0.01


@pytest.mark.nightly
def test_ten_minutes_with_two_restarts_a_minute(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(monkeypatch, PACE_S=PACE_S)
    storm = weather(begin(launch, 10.2), "--kill", "2/min", "--seconds", "600", "--seed", "5")
    everybody_came_back(storm, kills=20)
    only_the_killed_began_anew(storm)
    nothing_grew(storm)


def test_a_witness_names_the_two_lives_between_which_a_message_was_lost(tmp_path: Path) -> None:
    told = {
        "c0.1": "sent gradient 7 1, sent gradient 8 1, refused gradient 8 1, sent gradient 9 1",
        "c0.2": "sent gradient 9 1, sent gradient 10 1, sent gradient 11 1, taken target 9 1",
        "c1.1": "taken gradient 7 1, taken gradient 9 2, taken gradient 10 2, taken gradient 5 2",
    }
    for name, lines in told.items():
        (tmp_path / name).write_text(lines.replace(", ", "\n") + "\n")
    passage = Evidence(tmp_path).passage("gradient", "c0", "c1")
    assert (passage.sent, passage.taken, passage.lost) == (5, 3, {(1, 1): 1, (2, 1): 1})
    assert [line.id for line in passage.unsent] == [5]
    assert Evidence(tmp_path).counts("c0", 1) == {("sent", "gradient"): 2}


def everybody_came_back(storm: Storm, *, kills: int) -> None:
    """Every kill fired, every one was one restart, and the run finished."""
    assert storm.kills.total() == kills
    assert len(storm.kills) == 4, "every component was hit"
    assert (storm.account["missed"], storm.account["lost"], storm.account["interrupted"]) == (0, {}, False)
    assert storm.account["restarts"] == dict(storm.kills)
    assert storm.code == 0, storm.run.output
    assert all(row["state"] == "finished" for row in storm.status["components"])


def only_the_killed_began_anew(storm: Storm) -> None:
    """A component's process is another one after its own kills, and after nobody else's."""
    for row in storm.status["components"]:
        name = row["component"]
        killed = [fired["pid"] for fired in storm.account["faults"] if fired["component"] == name]
        lives = storm.lives(name)
        assert row["restarts"] == storm.kills[name]
        assert [{report["pid"] for report in life} for life in lives if len({r["pid"] for r in life}) != 1] == []
        pids = [life[0]["pid"] for life in lives]
        assert pids[:-1] == [pid for pid in killed if pid in pids], "a life may be killed before its first report"
        assert pids[-1] not in killed


def nobody_went_back_beyond_a_checkpoint(storm: Storm) -> None:
    """A life begins at the newest checkpoint that the one before has told of, or at a newer one."""
    for row in storm.status["components"]:
        lives = storm.lives(row["component"])
        for before, after in pairwise(lives):
            told = before[-1]["checkpoint"]["step"]
            assert after[0]["step"] > (told or 0)
            assert after[0]["step"] <= before[-1]["step"] + 100, "nor does it invent steps"
        assert row["step"] == lives[-1][-1]["step"]


def what_was_lost_is_accounted_for(storm: Storm) -> None:
    """In every report of every life, each activation that left is answered, on its way, or lost for one reason. In all
    lives together, a killed child costs a window of activations, and of no other reason there are more than a window
    for each end of an edge that began anew."""
    names = [row["component"] for row in storm.status["components"]]
    for i, name in enumerate(names):
        lives = storm.lives(name)
        for report in (report for life in lives for report in life):
            sent, received, dropped = (report["messages"][key] for key in ("sent", "received", "dropped"))
            lost = sum(dropped.get(fate, 0) for fate in LOST)
            assert sent.get("activation", 0) == received.get("target", 0) + lost + report["window"]["in_use"], report
        total = sum((Counter(life[-1]["messages"]["dropped"]) for life in lives), Counter())
        child, parent = storm.kills[names[(i + 1) % 4]], storm.kills[names[i - 1]]
        print(f"{name}: killed {storm.kills[name]}, child {child}, parent {parent}, dropped {dict(total)}")
        assert total["timeout"] + total["reset"] <= WINDOW * child
        for reason, count in total.items():
            assert count <= WINDOW * (storm.kills[name] + child + parent), (name, reason, count)


def a_kill_costs_an_edge_a_window_of_each_kind(storm: Storm, told: Evidence) -> None:
    """Of the messages of each kind over each edge, as both ends wrote them down one by one: sent = taken + lost, lost
    only where a kill has parted two lives that were in touch, and then at most a window of them. Of gradients one more:
    an activation leaves before the gradient that is due, so a child can take it alone, and answer it;
    `tests/workers/test_order.py` says why it does.
    """
    lost: Counter[str] = Counter()
    names = [row["component"] for row in storm.status["components"]]
    for parent, child in zip(names, [*names[1:], names[0]], strict=True):
        last = {name: told.lives(name)[-1] for name in (parent, child)}
        for kind, sender, receiver in (
            ("activation", parent, child),
            ("target", child, parent),
            ("gradient", parent, child),
        ):
            passage = told.passage(kind, sender, receiver)
            print(f"{kind}s {sender} → {receiver}: {passage.sent} sent, {passage.taken} taken, lost {passage.lost}")
            assert passage.unsent == []
            assert passage.sent == passage.taken + passage.lost.total()
            at_the_end = passage.lost.pop((last[sender], last[receiver]), 0)
            assert at_the_end <= (WINDOW if kind == "target" else 0), "who has all its steps needs no more targets"
            assert len(passage.lost) <= storm.kills[sender] + storm.kills[receiver]
            most = WINDOW + (kind == "gradient")
            assert all(count <= most for count in passage.lost.values()), (kind, sender, receiver, passage.lost)
            lost[kind] += passage.lost.total()
    assert min(lost[kind] for kind in ("activation", "target", "gradient")) > 0, "kills cost something of each kind"


def the_witnesses_tell_what_the_reports_tell(storm: Storm, told: Evidence) -> None:
    """Counters of every life: of one that was killed its newest report is a little older than its last message."""
    for row in storm.status["components"]:
        lives = storm.lives(row["component"])
        for life in lives:
            witnessed, report = told.counts(row["component"], life[-1]["incarnation"]), life[-1]
            for what, key in (("sent", "sent"), ("taken", "received")):
                for kind, count in report["messages"][key].items():
                    assert count <= witnessed[what, kind]
                    assert count == witnessed[what, kind] or life is not lives[-1], (row["component"], what, kind)


def nothing_grew(storm: Storm) -> None:
    """Descriptors and memory of a process that others' restarts went past: its second half holds no more than its
    first."""
    watched = {pid: use for pid, use in storm.use.items() if len(use.descriptors) >= 6}
    assert len(watched) >= 4
    assert storm.status["launcher_pid"] in watched
    for pid, use in watched.items():
        half = len(use.descriptors) // 2
        assert max(use.descriptors[half:]) <= max(use.descriptors[:half]) + 2, (pid, use)
        assert max(use.bytes[half:]) <= max(use.bytes[:half]) + (16 << 20), (pid, use)


def accuracy(status: Row) -> float:
    """Mean over the components, with the students and with the children."""
    values = [row["accuracy"][key] for row in status["components"] for key in ("student", "child")]
    return statistics.mean(value for value in values if value is not None)
