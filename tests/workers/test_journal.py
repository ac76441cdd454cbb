"""Steps in, a report out: exact arithmetic with fake steps, and records that survive a full disk."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator

from bus.mailbox import Counts, EdgeView, Role
from configs.load import load
from mach.evaluate import Accuracy
from mach.learner import Step
from mach.messages import Age
from mach.recipes import RECIPES
from workers.journal import RECENT, TREND, Journal, Tally, append, quantile
from workers.plan import make_plan
from workers.report import Peer, Report, Spread, State, Window
from workers.rundir import RunDir


class FakeMailbox:
    """What a journal asks of a mailbox."""

    def __init__(self) -> None:
        self.counts = Counts()

    def edges(self) -> dict[str, list[EdgeView]]:
        return {"c1": [edge("child", 3), edge("parent", 0)], "c2": [edge("child", 1)]}


def edge(role: Role, in_flight: int) -> EdgeView:
    return EdgeView(
        peer="", role=role, state="open", incarnation=1, in_flight=in_flight, window=4, version=7, heard_s=0.5
    )


def step_of(target: float = 1.0, *, on_child: bool = False, ages: tuple[Age, ...] = (), **losses: float) -> Step:
    values = {name: torch.tensor(value) for name, value in {"target": target, **losses}.items()}
    return Step(
        version=1, samples=32, losses=values, on_child=on_child, owed=[], target_ages=list(ages), gradient_ages=[]
    )


class Desk:
    """A journal in a run directory of its own, and the clock in the tester's hand."""

    def __init__(self, path: Path, *settings: str) -> None:
        self.run = RunDir(path / "run")
        self.run.make()
        plan = make_plan(load("digits", settings, RECIPES), run="run", directory=self.run.path, sockets=path)
        self.journal = Journal(plan, "c0", incarnation=2)
        self.mailbox = FakeMailbox()
        self.now = 100.0

    def report(
        self, *steps: Step, after: float = 0.0, accuracy: Accuracy | None = None, state: State = "training"
    ) -> Report:
        for step in steps:
            self.journal.note(step, self.now)
        self.now += after
        return self.journal.report(self.now, self.mailbox, accuracy, state, "because")  # type: ignore[arg-type]

    def lines(self) -> list[Report]:
        decoder = msgspec.json.Decoder(Report)
        return [decoder.decode(line) for line in self.run.metrics("c0").read_bytes().splitlines()]

    def events(self) -> EventAccumulator:
        found = EventAccumulator(str(self.run.tensorboard("c0")), size_guidance={HISTOGRAMS: 0})
        return found.Reload()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_the_first_report_is_due_at_once_and_the_next_after_the_interval(desk: Desk) -> None:
    assert desk.journal.due(100.0)
    desk.report()
    assert not desk.journal.due(100.25)
    assert desk.journal.due(100.5)


def test_rate_is_steps_a_second_since_the_last_report_and_none_while_none_is_taken(desk: Desk) -> None:
    assert desk.report(step_of()).rate is None
    assert desk.report(*[step_of()] * 6, after=0.5).rate == 12.0
    assert desk.report(*[step_of()] * 4, after=2.0).rate == 2.0
    assert desk.report(after=1.0, state="waiting").rate == 0.0
    assert desk.report(step_of(), after=0.5, state="waiting").rate == 2.0
    assert [line.rate for line in desk.lines()] == [None, 12.0, 2.0, 0.0, 2.0]
    assert [point.value for point in desk.events().Scalars("rate")] == [12.0, 2.0, 0.0, 2.0]


def test_a_report_that_comes_early_says_no_new_rate_and_what_it_saw_counts_into_the_next(desk: Desk) -> None:
    rates = [desk.report(*[step_of()] * steps, after=after).rate for steps, after in ((1, 0.0), (4, 0.5), (0, 0.25))]
    assert rates == [None, 8.0, 8.0]
    assert desk.report(step_of(), after=0.25).rate == 2.0
    assert desk.report(after=0.5).rate == 0.0


def test_who_has_made_no_step_in_this_life_or_ever_will_has_no_rate(desk: Desk) -> None:
    desk.journal.go_on(500, 64000, 0)
    assert [desk.report(after=0.5, state="waiting").rate for _ in range(3)] == [None] * 3


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_at_the_end_the_rate_is_that_of_all_steps(desk: Desk, state: State) -> None:
    for _ in range(5):
        desk.report(step_of(), after=0.25)
    assert desk.report(after=10.0, state=state).rate == 4.0


def test_losses_are_means_since_the_last_report(desk: Desk) -> None:
    first = desk.report(step_of(1.0, student=2.0), step_of(3.0, student=4.0, distill=0.5)).loss
    assert (first.target, first.student, first.distill) == (2.0, 3.0, 0.5)
    second = desk.report(step_of(0.25, student=0.75)).loss
    assert (second.target, second.student, second.distill) == (0.25, 0.75, 0.5)
    assert desk.report().loss == second


def test_trend_compares_the_last_ten_reports_with_the_ten_before(desk: Desk) -> None:
    trends = [desk.report(step_of(target)).loss.trend for target in [4.0] * TREND + [3.0] * TREND]
    assert trends == [None] * (2 * TREND - 1) + [-0.25]
    assert desk.report(step_of(3.0)).loss.trend == (10 * 3.0) / (9 * 4.0 + 3.0) - 1.0


def test_steps_samples_and_the_childs_share_are_counted_over_the_whole_life(desk: Desk) -> None:
    report = desk.report(step_of(), step_of(on_child=True), step_of(on_child=True))
    assert (report.step, report.samples, report.child_steps, report.child_share) == (3, 96, 2, 2 / 3)
    assert desk.report(step_of(), after=1.5).child_share == 0.5
    assert desk.report().elapsed_s == 1.5


def test_a_step_of_several_batches_counts_once_however_many_of_them_a_child_answered(desk: Desk) -> None:
    answers = [(True, False), (True, True), (False, False), (False, True), (True, True)]
    report = desk.report(*(replace(step_of(on_child=said), updated=updated) for said, updated in answers))
    assert (report.step, report.child_steps, report.child_share) == (3, 2, 2 / 3)
    assert desk.report(step_of()).child_share == 2 / 4


def test_a_step_lasts_until_all_its_batches_are_in(desk: Desk) -> None:
    desk.journal.begin(desk.now)
    for updated in (False, False, True) * 3:
        desk.now += 0.25
        desk.journal.note(replace(step_of(), updated=updated), desk.now)
    assert desk.report().step_ms_p99 == 750.0


def test_a_report_before_the_first_step_says_nothing_of_steps(desk: Desk) -> None:
    report = desk.report()
    assert (report.step, report.rate, report.loss.target, report.child_share) == (0, None, None, None)
    assert (report.staleness.target, report.accuracy.student) == (Spread(), None)
    assert (report.state, report.reason, report.incarnation, report.device) == ("training", "because", 2, "cpu")


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.51, 3), (0.99, 4), (0.0, 1), (1.0, 4)])
def test_quantiles_are_of_the_nearest_rank(share: float, value: int) -> None:
    assert quantile([1, 2, 3, 4], share) == value


def test_quantiles_forget_and_the_maximum_does_not() -> None:
    tally = Tally()
    tally.add([Age(900, 0.0), Age(0, 8.0)])
    tally.add([Age(i % 4, i / 1000) for i in range(RECENT)])
    assert tally.spread() == Spread(count=RECENT + 2, p50=1, p99=3, max=900, p50_ms=511.0, p99_ms=1013.0, max_ms=8000.0)


def test_staleness_is_told_in_versions_and_milliseconds(desk: Desk) -> None:
    report = desk.report(step_of(ages=(Age(3, 0.25), Age(1, 0.125))))
    assert report.staleness.target == Spread(count=2, p50=1, p99=3, max=3, p50_ms=125.0, p99_ms=250.0, max_ms=250.0)
    assert report.staleness.gradient == Spread()


def test_window_peers_and_messages_are_the_mailboxs(desk: Desk) -> None:
    desk.mailbox.counts.sent["target"] = 5
    desk.mailbox.counts.dropped.update({"closed": 2, "forgotten": 0})
    desk.mailbox.counts.faults["drop"] = 1
    report = desk.report()
    assert report.window == Window(size=8, in_use=4)
    assert report.peers["c1"][1] == Peer(role="parent", state="open", heard_s=0.5)
    desk.mailbox.counts.sent["target"] += 1
    assert (report.messages.sent, report.messages.dropped, report.messages.faults) == (
        {"target": 5},
        {"closed": 2},
        {"drop": 1},
    )


def test_every_report_is_a_line(desk: Desk) -> None:
    reports = [desk.report(step_of(ages=(Age(1, 0.5),)), accuracy=Accuracy(0.5, None, 1)), desk.report(after=1.0)]
    desk.journal.close()
    assert desk.lines() == reports


def test_a_loss_that_is_no_number_is_null_in_the_file(desk: Desk) -> None:
    desk.report(step_of(float("nan"), student=1.0))
    desk.report(step_of(1.0, student=1.0))
    first, second = (line.loss for line in desk.lines())
    assert (first.target, first.student, first.not_finite) == (None, 1.0, ["target"])
    assert (second.target, second.not_finite) == (1.0, [])


def test_tensorboard_reads_scalars_and_histograms_from_the_second_report_on(desk: Desk) -> None:
    desk.report(step_of())
    assert not desk.run.tensorboard("c0").exists()
    ages = tuple(Age(i, i / 100) for i in range(8))
    desk.report(step_of(0.5, student=1.5, ages=ages), after=0.5, accuracy=Accuracy(0.5, 0.75, 2))
    desk.report(step_of(0.25), after=0.5)
    desk.journal.close()
    events = desk.events()
    assert [(point.step, point.value) for point in events.Scalars("loss/target")] == [(2, 0.5), (3, 0.25)]
    expected = {"rate": 2.0, "loss/student": 1.5, "accuracy/child": 0.75, "child_share": 0.0, "window/in_use": 4.0}
    assert {name: events.Scalars(name)[0].value for name in expected} == expected
    assert events.Scalars("staleness/target/p99")[0].value == 7.0
    assert set(events.Tags()["histograms"]) == {"staleness/target/versions", "staleness/target/ms"}
    drawn = events.Histograms("staleness/target/versions")[0].histogram_value
    assert (drawn.min, drawn.max, drawn.num, drawn.sum, sum(drawn.bucket)) == (0.0, 7.0, 8.0, 28.0, 8.0)


@pytest.mark.parametrize("obstacle", ["nothing", "file"])
def test_a_lost_directory_is_told_once_and_stops_nothing(
    desk: Desk, capfd: pytest.CaptureFixture[str], obstacle: str
) -> None:
    desk.report(step_of())
    for folder in ("metrics", "tensorboard"):
        shutil.rmtree(desk.run.path / folder)
        if obstacle == "file":
            (desk.run.path / folder).write_text("in the way")
    for _ in range(3):
        report = desk.report(step_of(), after=1.0)
    assert report.step == 4
    said = capfd.readouterr().err.splitlines()
    assert [line.split(" cannot")[0] for line in said] == ["metrics", "TensorBoard events"]
    for folder in ("metrics", "tensorboard"):
        (desk.run.path / folder).unlink(missing_ok=True)
        (desk.run.path / folder).mkdir()
    last = desk.report(step_of(), after=1.0)
    desk.journal.close()
    assert desk.lines() == [last]
    assert [point.step for point in desk.events().Scalars("rate")] == [5]
    assert not capfd.readouterr().err


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does to a write, it does at half of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_nothing_is_written_by_halves(tmp_path: Path) -> None:
    path = tmp_path / "record"
    append(path, b"12345678", b"head")
    with disk_of(16), pytest.raises(OSError, match="No space left"):
        append(path, b"12345678")
    with disk_of(12), pytest.raises(OSError, match="too large"):
        append(path, b"12345678")
    append(path, b"abcdefgh", b"head")
    assert path.read_bytes() == b"head12345678abcdefgh"


def test_records_can_be_read_after_the_disk_was_full(desk: Desk) -> None:
    for _ in range(2):
        desk.report(step_of(), after=1.0)
    size = min(path.stat().st_size for path in (desk.run.metrics("c0"), *desk.run.tensorboard("c0").iterdir()))
    with disk_of(size + 10):
        desk.report(step_of(), after=1.0)
    desk.report(step_of(), after=1.0)
    assert desk.lines()[-1].step == 4
    assert [point.step for point in desk.events().Scalars("rate")][-1] == 4


@pytest.mark.parametrize(("thin", "total"), [("0", 1000), ("0.01", 260)])
def test_the_longer_a_life_the_fewer_of_its_reports_are_written(tmp_path: Path, thin: str, total: int) -> None:
    """All while that share of the age is less than the interval, then 100 · ln 5 in five times the age, of 0.01."""
    desk = Desk(tmp_path, f"report.thin={thin}")
    for _ in range(1000):
        desk.report(step_of(), after=0.5)
    lines = desk.lines()
    assert [line.elapsed_s for line in lines[:100]] == [0.5 * (step + 1) for step in range(100)]
    assert len(lines) == pytest.approx(total, rel=0.2)
    assert [point.step for point in desk.events().Scalars("rate")] == [line.step for line in lines[1:]]


def test_what_a_life_does_at_last_is_written_however_old_it_is(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "report.thin=1")
    desk.report(step_of())
    for state in ("training", "waiting", "finished", "finished", "stopped", "stopped"):
        desk.report(step_of(), after=0.5 if state == "training" else 0.01, state=state)  # type: ignore[arg-type]
    assert [line.state for line in desk.lines()] == ["training", "training", "finished", "stopped"]


def test_probes_and_policies_are_in_the_report_the_metrics_and_tensorboard(desk: Desk) -> None:
    first = replace(step_of(), probes={"r2/c1": 0.5, "fresh/cosine": 0.75})
    desk.journal.begin(desk.now)
    desk.report(first)
    desk.mailbox.counts.bytes.update({"c1": 6400})
    desk.now += 3.0
    desk.journal.note(replace(step_of(), version=9, probes={"r2/c1": 0.25}), desk.now)
    desk.journal.note(replace(step_of(), version=12), desk.now)
    did = {"bound": 3, "clip": 1}
    report = desk.journal.report(desk.now, desk.mailbox, None, "training", policies=did, waited_s=0.75)  # type: ignore[arg-type]
    told = {"r2/c1": 0.25, "fresh/cosine": 0.75, "bytes/c1": 6400 / 96, "idle": 0.25}
    assert report.probes == told, "the newest of each"
    assert report.probed == desk.lines()[-1].probed == {"r2": 8, "fresh": 0}, "and at whose weights that was"
    assert report.staleness.policies == did
    assert (desk.lines()[-1].probes, desk.lines()[-1].staleness.policies) == (told, did)
    drawn = set(desk.events().Tags()["scalars"])
    assert {f"probes/{name}" for name in told} | {"staleness/policies/bound", "staleness/policies/clip"} <= drawn


def test_bytes_a_sample_are_of_this_life(desk: Desk) -> None:
    desk.journal.go_on(9, 1000, 0)
    desk.mailbox.counts.bytes.update({"c1": 320})
    assert desk.report(step_of()).probes["bytes/c1"] == 10.0
