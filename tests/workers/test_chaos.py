"""Which faults, whom and when: exact, without a process and without a clock."""

import signal
from collections import Counter

import pytest

from configs.errors import ConfigError
from workers.chaos import RETRY_S, Chaos, Fault, Spec, rate_of, schedule, slowness_of

NAMES = ("c0", "c1", "c2", "c3")


class Patient:
    """A process that notes what it is sent. Dead ones take nothing; one that is `dying` takes a while to be dead."""

    def __init__(self, pid: int, incarnation: int, log: list[tuple[int, str]]) -> None:
        self.pid = pid
        self.incarnation = incarnation
        self.log = log
        self.alive = True
        self.dying = False
        self.held = 0

    def send(self, number: signal.Signals) -> bool:
        if not self.alive:
            return False
        self.log.append((self.pid, number.name))
        self.alive = self.dying or number != signal.SIGKILL
        return True

    def close(self) -> None:
        self.held -= 1


class Ward:
    """Everybody's present process."""

    def __init__(self) -> None:
        self.log: list[tuple[int, str]] = []
        self.present: dict[str, Patient] = {}
        self.all: list[Patient] = []

    def begin(self, component: str) -> None:
        before = self.present.get(component)
        incarnation = 1 if before is None else before.incarnation + 1
        self.present[component] = Patient(100 + len(self.all), incarnation, self.log)
        self.all.append(self.present[component])

    def find(self, component: str) -> Patient | None:
        patient = self.present.get(component)
        if patient is None or not patient.alive:
            return None
        patient.held += 1
        return patient


@pytest.fixture
def ward() -> Ward:
    ward = Ward()
    for name in NAMES:
        ward.begin(name)
    return ward


def test_a_rate_times_the_duration_is_the_number_and_the_seed_decides_all_else() -> None:
    spec = Spec(seconds=60.0, seed=7, kill=20 / 60, stop=4 / 60)
    faults = schedule(spec, NAMES)
    assert Counter(fault.kind for fault in faults) == {"kill": 20, "stop": 4}
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(0.0 <= fault.at_s <= 60.0 for fault in faults)
    assert {fault.component for fault in faults} == set(NAMES)
    assert schedule(spec, NAMES) == faults
    assert schedule(Spec(seconds=60.0, seed=8, kill=20 / 60, stop=4 / 60), NAMES) != faults


def test_kinds_do_not_disturb_each_other() -> None:
    kills = schedule(Spec(seconds=60.0, seed=1, kill=0.2), NAMES)
    both = schedule(Spec(seconds=60.0, seed=1, kill=0.2, stop=0.5, slow={"c1": 2.0}), NAMES)
    assert tuple(fault for fault in both if fault.kind == "kill") == kills


def test_a_fraction_of_a_fault_happens_that_often() -> None:
    counts = [len(schedule(Spec(seconds=15.0, seed=seed, kill=1 / 60), NAMES)) for seed in range(1000)]
    assert set(counts) == {0, 1}
    assert 200 <= sum(counts) <= 300  # 250 are expected; four standard deviations are 55


def test_times_and_components_are_spread_evenly() -> None:
    faults = schedule(Spec(seconds=100.0, kill=10.0), NAMES)
    assert all(200 <= count <= 300 for count in Counter(fault.component for fault in faults).values())
    assert all(60 <= count <= 145 for count in Counter(int(fault.at_s / 10) for fault in faults).values())


def test_only_those_who_were_named_are_hit() -> None:
    faults = schedule(Spec(seconds=60.0, kill=1.0, stop=1.0, slow={"c3": 20.0}, among=("c0", "c2")), NAMES)
    assert {fault.component for fault in faults if fault.kind != "slow"} == {"c0", "c2"}
    assert {fault.component for fault in faults if fault.kind == "slow"} == {"c3"}


def test_slow_is_a_duty_cycle_over_the_whole_time() -> None:
    faults = schedule(Spec(seconds=30.0, slow={"c1": 3.0}), NAMES)
    assert {fault.component for fault in faults} == {"c1"}
    assert len(faults) == 100
    assert sum(fault.lasts_s for fault in faults) == pytest.approx(20.0)  # two thirds
    ends = [fault.at_s + fault.lasts_s for fault in faults]
    assert all(after.at_s - end == pytest.approx(0.1) for end, after in zip(ends, faults[1:], strict=False))


def test_a_kill_is_made_when_it_is_due_and_recorded_when_it_was_made(ward: Ward) -> None:
    chaos = Chaos((Fault(1.0, "c1", "kill"), Fault(2.0, "c2", "kill")), ward.find)
    chaos.act(0.5)
    assert (chaos.fired, chaos.wake_at(0.5)) == ([], 1.0)
    chaos.act(1.25)
    assert [(fired.at_s, fired.component, fired.pid, fired.kind) for fired in chaos.fired] == [
        (1.25, "c1", 101, "kill")
    ]
    assert chaos.wake_at(1.25) == 2.0
    chaos.act(2.0)
    assert ward.log == [(101, "SIGKILL"), (102, "SIGKILL")]
    assert chaos.wake_at(2.0) == float("inf")


def test_a_fault_without_a_process_waits_for_the_next_one(ward: Ward) -> None:
    chaos = Chaos((Fault(1.0, "c1", "kill"), Fault(1.1, "c1", "kill")), ward.find)
    chaos.act(1.2)
    assert len(chaos.fired) == 1, "the first has left nobody for the second"
    assert chaos.wake_at(1.2) == pytest.approx(1.2 + RETRY_S)
    chaos.act(1.25)
    assert len(chaos.fired) == 1
    ward.begin("c1")
    chaos.act(1.3)
    assert [fired.pid for fired in chaos.fired] == [101, 104]
    assert chaos.waiting == []


def test_a_process_that_takes_a_while_to_die_is_hit_once(ward: Ward) -> None:
    """As a real one does: SIGKILL returns at once, and until its memory is gone it looks alive."""
    ward.present["c1"].dying = True
    faults = (Fault(1.0, "c1", "kill"), Fault(1.0, "c1", "kill"), Fault(1.1, "c1", "stop", 2.0))
    chaos = Chaos((*faults, Fault(1.1, "c1", "slow", 0.5), Fault(1.2, "c2", "kill")), ward.find)
    chaos.act(1.2)
    assert ward.log == [(101, "SIGKILL"), (102, "SIGKILL")]
    assert [(fired.component, fired.incarnation) for fired in chaos.fired] == [("c1", 1), ("c2", 1)]
    assert chaos.waiting == [faults[1], faults[2]], "they wait for the next life"
    ward.begin("c1")
    chaos.act(1.3)
    assert ward.log[2:] == [(104, "SIGKILL")], "one life more, one fault more"
    assert [(fired.pid, fired.incarnation) for fired in chaos.fired] == [(101, 1), (102, 1), (104, 2)]
    chaos.release()
    assert chaos.waiting == [faults[2]], "it never found anybody alive"
    assert [patient.held for patient in ward.all] == [0] * len(ward.all)


def test_who_was_stopped_is_continued_in_time(ward: Ward) -> None:
    chaos = Chaos((Fault(1.0, "c1", "stop", 3.0), Fault(2.0, "c1", "slow", 0.5)), ward.find)
    chaos.act(1.0)
    assert chaos.wake_at(1.0) == 2.0
    chaos.act(2.0)  # a shorter pause within a longer stop does not end it
    assert chaos.wake_at(2.0) == 4.0
    chaos.act(2.5)
    assert ward.log == [(101, "SIGSTOP"), (101, "SIGSTOP")]
    chaos.act(4.0)
    assert ward.log[2:] == [(101, "SIGCONT")]
    assert chaos.wake_at(4.0) == float("inf")


def test_a_new_process_is_not_paused_for_an_old_one(ward: Ward) -> None:
    chaos = Chaos((Fault(1.0, "c1", "stop", 9.0), Fault(2.0, "c1", "kill"), Fault(3.0, "c1", "stop", 1.0)), ward.find)
    chaos.act(1.0)
    chaos.act(2.0)
    assert ward.log == [(101, "SIGSTOP"), (101, "SIGKILL")], "stopped processes can be killed"
    ward.begin("c1")
    chaos.act(3.0)
    chaos.act(4.0)
    assert ward.log[2:] == [(104, "SIGSTOP"), (104, "SIGCONT")]
    chaos.act(10.0)
    assert len(ward.log) == 4


def test_pauses_of_a_slow_component_that_is_away_are_left_out(ward: Ward) -> None:
    ward.present.clear()
    chaos = Chaos(schedule(Spec(seconds=3.0, slow={"c1": 3.0}), NAMES), ward.find)
    chaos.act(2.0)
    ward.begin("c1")
    chaos.act(2.01)
    assert (chaos.fired, chaos.waiting) == ([], [])
    chaos.act(2.5)
    assert [fired.kind for fired in chaos.fired] == ["slow"]


def test_the_end_continues_everybody_and_counts_what_did_not_happen(ward: Ward) -> None:
    faults = (Fault(1.0, "c1", "stop", 9.0), Fault(1.0, "c2", "slow", 9.0), Fault(5.0, "c3", "kill"))
    chaos = Chaos(faults, ward.find)
    chaos.act(1.0)
    chaos.release()
    assert ward.log[2:] == [(101, "SIGCONT"), (102, "SIGCONT")]
    assert chaos.waiting == [faults[2]]


def test_every_process_that_was_held_is_let_go(ward: Ward) -> None:
    spec = Spec(seconds=20.0, seed=3, kill=1.0, stop=1.0, slow={"c1": 3.0})
    chaos = Chaos(schedule(spec, NAMES), ward.find)
    now = 0.0
    while (now := chaos.wake_at(now)) < float("inf"):
        chaos.act(now)
        for name in NAMES:
            if not ward.present[name].alive:
                ward.begin(name)
    chaos.release()
    assert [patient.held for patient in ward.all] == [0] * len(ward.all)
    assert Counter(fired.kind for fired in chaos.fired)["kill"] == 20
    for patient in ward.all:
        last = [what for pid, what in ward.log if pid == patient.pid][-1:]
        assert last in ([], ["SIGKILL"], ["SIGCONT"]), "nobody is left stopped"


@pytest.mark.parametrize(("words", "per_s"), [("20/min", 1 / 3), ("0.5/s", 0.5), ("36/h", 0.01), (None, 0.0)])
def test_rates(words: str | None, per_s: float) -> None:
    assert rate_of("--kill", words) == pytest.approx(per_s)


@pytest.mark.parametrize("words", ["", "20", "20/day", "-1/s", "x/s", "20 / min", "nan/s", "inf/s", "1e9/s", "11/s"])
def test_a_bad_rate_is_one_sentence(words: str) -> None:
    with pytest.raises(ConfigError, match=r"^--kill [^\n]*$"):
        rate_of("--kill", words)


def test_slowness() -> None:
    assert slowness_of(("c1=3x", "c2=1.5x"), NAMES) == {"c1": 3.0, "c2": 1.5}


BAD = ("c1", "c1=3", "c1=x", "c1=1x", "c1=0.5x", "c1=51x", "c9=3x", "c1=-3x", "=3x", "c1=nanx")


@pytest.mark.parametrize("word", BAD)
def test_a_bad_slowness_is_one_sentence(word: str) -> None:
    with pytest.raises(ConfigError, match=r"^--slow [^\n]*$"):
        slowness_of((word,), NAMES)
