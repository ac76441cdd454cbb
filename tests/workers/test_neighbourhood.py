"""One real component between stub neighbours in virtual time: the harness that users get, and what a turn does."""

from collections.abc import Callable

import pytest
import torch

from mach.messages import Activation, Gradient, Target
from workers.neighbourhood import CHILD, PARENT, Neighbourhood

Make = Callable[..., Neighbourhood]


def weights(near: Neighbourhood) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in near.component.parameters()]


def test_it_asks_answers_and_pays(neighbourhood: Make) -> None:
    near = neighbourhood()
    steps = near.run(steps=50)
    assert [step.version for step in steps] == list(range(1, 51))
    assert len(near.sent(Activation, to=CHILD)) >= 45
    assert len(near.sent(Target, to=PARENT)) >= 45
    paid, received = near.sent(Gradient, to=CHILD), near.received(Target, CHILD)
    assert len(paid) == sum(step.on_child for step in steps) >= 45
    assert [(g.id, g.of_version) for g in paid] == [(t.id, t.version) for t in received[: len(paid)]]
    assert len(near.received(Gradient, PARENT)) >= 40


def test_it_speaks_of_sequences_where_the_data_are_such(neighbourhood: Make) -> None:
    small = ("data.train_samples=64", "data.test_samples=8", "model.embedding=16", "train.batch_size=4")
    near = neighbourhood("bytes-lm", small)
    steps = near.run(steps=40)
    assert sum(step.on_child for step in steps) > 0
    assert near.received(Gradient, PARENT)
    assert not near.trainer.dropped()["unfit"]


def test_two_equal_neighbourhoods_are_equal_to_the_last_bit(neighbourhood: Make) -> None:
    script = {"latency_ms": 4, "jitter_ms": 9, "drop": 0.2, "reorder": 0.1, "corrupt": 0.1, "duplicate": 0.1}
    one, other = (neighbourhood(parent=script, child=script) for _ in range(2))
    one.run(steps=60)
    other.run(steps=60)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    assert one.dropped() == other.dropped()
    assert one.faults == other.faults


def test_a_slow_child_costs_targets_and_no_steps(neighbourhood: Make) -> None:
    near = neighbourhood(settings=("bus.window=2",), child={"latency_ms": 98}, compute_ms=5.0, latency_ms=1.0)
    steps = near.run(steps=200)
    assert len(steps) == 200
    # law of the window: W answers per round trip of 100 ms and the steps it takes to be noticed, 20 to 22 steps
    on_child = sum(step.on_child for step in steps)
    assert 2 * 200 / 23 <= on_child <= 2 * 200 / 20
    ages = [age.seconds for step in steps for age in step.target_ages]
    assert min(ages) >= 0.100 - 1e-9
    assert max(ages) <= 0.115


@pytest.mark.parametrize("script", [{"silent_at": 10}, {"crash_at": 10}, {"drop": 1.0}])
def test_a_child_that_falls_silent_leaves_the_student_in_its_place(neighbourhood: Make, script: dict[str, int]) -> None:
    near = neighbourhood(settings=("bus.timeout_ms=50",), child=script)
    assert len(near.run(steps=100)) == 100
    before = weights(near)
    tail = near.run(steps=50)
    assert not any(step.on_child for step in tail)
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(near), strict=True))
    if "drop" not in script:
        assert near.dropped()["timeout"] >= 1
    else:
        assert near.faults[CHILD]["drop"] >= 1


def test_every_fault_fires_is_noticed_and_harms_nothing(neighbourhood: Make) -> None:
    script = {"drop": 0.1, "duplicate": 0.1, "reorder": 0.1, "corrupt": 0.1}
    near = neighbourhood(settings=("bus.timeout_ms=50", "bus.hello_ms=20"), parent=script, child=script)
    steps = near.run(steps=400)
    assert all(near.faults[name][fault] > 0 for name in (PARENT, CHILD) for fault in script)
    dropped = near.dropped()
    assert dropped["timeout"] > 0
    assert dropped["duplicate"] > 0
    assert dropped["lost"] > 0
    assert dropped["bad-checksum"] + dropped.get("bad-size", 0) > 0
    assert sum(step.on_child for step in steps) > 50
    assert all(torch.isfinite(parameter).all() for parameter in near.component.parameters())


def test_what_is_not_finite_is_counted_and_never_trained_on(neighbourhood: Make) -> None:
    near = neighbourhood(settings=("bus.timeout_ms=50",), parent={"nonfinite": 0.3}, child={"nonfinite": 0.3})
    steps = near.run(steps=200)
    assert all(near.faults[name]["nonfinite"] > 20 for name in (PARENT, CHILD))
    unfit = near.trainer.learner.unfit
    assert all(unfit[kind] > 10 for kind in ("activation", "target", "gradient"))
    assert unfit.total() <= sum(near.faults[name]["nonfinite"] for name in (PARENT, CHILD))
    assert sum(step.on_child for step in steps) > 50
    assert all(torch.isfinite(loss) for step in steps for loss in step.losses.values())
    assert all(torch.isfinite(parameter).all() for parameter in near.component.parameters())


def test_an_answer_is_what_the_component_thinks_of_the_question(neighbourhood: Make) -> None:
    near = neighbourhood(settings=("optimiser.lr=1e-12", "optimiser.weight_decay=0", "optimiser.schedule=constant"))
    near.run(steps=20)
    asked = {question.id: question for question in near.received(Activation, PARENT)}
    for answer in near.sent(Target, to=PARENT):
        a = near.component.activation(asked[answer.id].inputs)
        expected = near.component.embed(a, near.component.imitate(a))
        assert torch.allclose(answer.embedding, expected, atol=1e-5)


def test_a_script_names_its_misspelt_key(neighbourhood: Make) -> None:
    with pytest.raises(Exception, match="latncy_ms"):
        neighbourhood(child={"latncy_ms": 3})
