"""One real component between stub neighbours in virtual time: the harness that users get, and what a turn does."""

import inspect
import pydoc
import re
from collections.abc import Callable

import pytest
import torch

from configs.errors import ConfigError
from mach.assemble import stream_of
from mach.data import load as load_data
from mach.messages import Activation, Gradient, Target
from workers.neighbourhood import CHILD, PARENT, Neighbourhood

Make = Callable[..., Neighbourhood]
QUICK = "train.batch_size=16"
"""Where it matters how often, and not on how much at once."""
SMALL = ("data.train_samples=64", "data.test_samples=8", "model.embedding=16", "train.batch_size=4")


def weights(near: Neighbourhood) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in near.component.parameters()]


def test_it_asks_answers_and_pays(neighbourhood: Make) -> None:
    near = neighbourhood(settings=(QUICK,))
    steps = near.run(steps=50)
    assert [step.version for step in steps] == list(range(1, 51))
    assert len(near.sent(Activation, to=CHILD)) >= 45
    assert len(near.sent(Target, to=PARENT)) >= 45
    paid, received = near.sent(Gradient, to=CHILD), near.received(Target, CHILD)
    assert len(paid) == sum(step.on_child for step in steps) >= 45
    assert [(g.id, g.of_version) for g in paid] == [(t.id, t.version) for t in received[: len(paid)]]
    assert len(near.received(Gradient, PARENT)) >= 40


def test_it_speaks_of_sequences_where_the_data_are_such(neighbourhood: Make) -> None:
    near = neighbourhood("bytes-lm", SMALL)
    steps = near.run(steps=40)
    assert sum(step.on_child for step in steps) > 0
    assert near.received(Gradient, PARENT)
    assert not near.trainer.dropped()["unfit"]


def test_two_equal_neighbourhoods_are_equal_to_the_last_bit(neighbourhood: Make) -> None:
    script = {"latency_ms": 4, "jitter_ms": 9, "drop": 0.2, "reorder": 0.1, "corrupt": 0.1, "duplicate": 0.1}
    one, other = (neighbourhood(settings=(QUICK,), parent=script, child=script) for _ in range(2))
    one.run(steps=60)
    other.run(steps=60)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    assert one.dropped() == other.dropped()
    assert one.faults == other.faults


def test_a_slow_child_costs_targets_and_no_steps(neighbourhood: Make) -> None:
    near = neighbourhood(settings=(QUICK, "bus.window=2"), child={"latency_ms": 98}, compute_ms=5.0, latency_ms=1.0)
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
    near = neighbourhood(settings=(QUICK, "bus.timeout_ms=50"), child=script)
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
    near = neighbourhood(settings=(QUICK, "bus.timeout_ms=50", "bus.hello_ms=20"), parent=script, child=script)
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
    near = neighbourhood(settings=(QUICK, "bus.timeout_ms=50"), parent={"nonfinite": 0.3}, child={"nonfinite": 0.3})
    steps = near.run(steps=200)
    assert all(near.faults[name]["nonfinite"] > 20 for name in (PARENT, CHILD))
    unfit = near.trainer.learner.unfit
    assert all(unfit[kind] > 10 for kind in ("activation", "target", "gradient"))
    assert unfit.total() <= sum(near.faults[name]["nonfinite"] for name in (PARENT, CHILD))
    assert sum(step.on_child for step in steps) > 50
    assert all(torch.isfinite(loss) for step in steps for loss in step.losses.values())
    assert all(torch.isfinite(parameter).all() for parameter in near.component.parameters())


def test_an_answer_is_what_the_component_thinks_of_the_question(neighbourhood: Make) -> None:
    near = neighbourhood(
        settings=(QUICK, "optimiser.lr=1e-12", "optimiser.weight_decay=0", "optimiser.schedule=constant")
    )
    near.run(steps=20)
    asked = {question.id: question for question in near.received(Activation, PARENT)}
    for answer in near.sent(Target, to=PARENT):
        a = near.component.activation(asked[answer.id].inputs)
        expected = near.component.embed(a, near.component.imitate(a))
        assert torch.allclose(answer.embedding, expected, atol=1e-5)


def test_a_script_names_its_misspelt_key_and_its_wrong_value_as_a_launch_does(neighbourhood: Make) -> None:
    with pytest.raises(ConfigError, match=r"^child: unknown key '.*latncy_ms'; did you mean '.*latency_ms'\?$"):
        neighbourhood(child={"latncy_ms": 3})
    with pytest.raises(ConfigError, match=r"^parent: components\.0\.stub\.drop: expected a number <= 1\.0$"):
        neighbourhood(parent={"drop": 2})


def test_one_setting_needs_no_list(neighbourhood: Make) -> None:
    assert neighbourhood(settings="bus.window=3").config.bus.window == 3


@pytest.mark.parametrize("setting", ["n_components=5", "graph=kgraph", "components.1.stub.drop=0.1"])
def test_who_is_there_cannot_be_set(neighbourhood: Make, setting: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^settings: {re.escape(setting)}: a neighbourhood is always a chain of c0, c1"
    ):
        neighbourhood(settings=[QUICK, setting])


def test_messages_that_there_cannot_be_any_of_are_no_empty_list(neighbourhood: Make) -> None:
    near = neighbourhood(settings=QUICK)
    for ask in (near.sent, near.received):
        with pytest.raises(ConfigError, match=r"\('Target'\): is no kind of message; give one of Activation, Target, "):
            ask("Target")
        with pytest.raises(ConfigError, match=r"\(Target, 'c9'\): there is none; give c0 or c2"):
            ask(Target, "c9")


def test_help_of_the_fixture_is_that_of_the_neighbourhood(neighbourhood: Make) -> None:
    assert inspect.signature(neighbourhood) == inspect.signature(Neighbourhood)
    assert neighbourhood.__doc__ == Neighbourhood.__doc__
    assert "parent, child: scripts" in pydoc.plain(pydoc.render_doc(neighbourhood))


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        *(("digits", recipe) for recipe in ("dgl", "mach-stream", "mach-hop", "ddg", "dni", "ampnet", "backprop")),
        ("bytes-lm", "mach-hop"),
        ("bytes-lm", "mach-stream"),
    ],
)
def test_in_stream_wiring_it_trains_on_what_the_stubs_send(neighbourhood: Make, config: str, recipe: str) -> None:
    near = neighbourhood(config, (f"recipe={recipe}", *(SMALL if config == "bytes-lm" else ())))
    assert len(near.run(steps=5)) == 5
    steps = near.run(steps=15)
    assert len(steps) == 15
    method, learner = near.config.method, near.trainer.learner
    assert near.trainer.dropped() == {"unfit": 0, "forgotten": 0}
    assert near.dropped() == {}

    below = stream_of(near.config, 2, load_data(near.config.data))
    assert all(below.incoming.fits(asked) for asked in near.sent(Activation, to=CHILD))
    came = {asked.id: asked for asked in near.received(Activation, PARENT)}
    answers, returns = near.sent(Target, to=PARENT), method.gradient_reach != "none"
    assert len(answers) == 20
    for answer in answers:
        asked = came[answer.id]
        assert (answer.gradient is not None) == returns
        assert answer.gradient is None or answer.gradient.shape == asked.inputs.shape
        told = (*asked.labels.shape, near.config.model.embedding) if method.targeted(answer.id) else (0,)
        assert answer.embedding.shape == told
    targets = near.received(Target, CHILD)
    assert len(targets) >= 15
    assert all((target.gradient is not None) == returns for target in targets)
    late = sum(len(step.gradient_ages) for step in steps)
    assert (late >= 15) if returns else (late == 0)
    assert ("guess" if method.guess else "activation") in steps[-1].losses or not returns
    assert bool(near.received(Gradient, PARENT)) == ("late" in steps[-1].losses) == (recipe == "mach-hop")
    assert learner.version == 20 // method.update_every


def test_in_stream_wiring_a_step_may_take_no_time(neighbourhood: Make) -> None:
    assert len(neighbourhood(settings=("recipe=dgl",), compute_ms=0.0).run(steps=5)) == 5


def test_in_stream_wiring_what_is_not_finite_is_refused_wherever_it_lies(neighbourhood: Make) -> None:
    script = {"nonfinite": 0.3}
    near = neighbourhood(settings=(QUICK, "recipe=mach-hop", "bus.timeout_ms=50"), parent=script, child=script)
    steps = near.run(steps=200)
    assert len(steps) == 200
    unfit, fired = near.trainer.learner.unfit, sum(near.faults[name]["nonfinite"] for name in (PARENT, CHILD))
    assert all(unfit[kind] > 10 for kind in ("activation", "target", "gradient"))
    assert unfit.total() <= fired
    spoilt = [each for each in near.received(Target, CHILD) if not torch.isfinite(each.gradient).all()]
    assert 0 < len(spoilt) < near.faults[CHILD]["nonfinite"]
    assert all(torch.isfinite(each.embedding).all() for each in spoilt), "one tensor of a message"
    assert all(torch.isfinite(parameter).all() for parameter in near.component.parameters())


def test_in_stream_wiring_a_run_takes_as_long_as_the_parent_does_and_gives_up_one_that_is_silent(
    neighbourhood: Make,
) -> None:
    near = neighbourhood(settings=("recipe=dgl",), parent={"rate": 20, "silent_at": 12})
    began = near.bus.clock.now
    assert len(near.run(steps=10)) == 10
    assert 9 * 0.05 <= near.bus.clock.now - began < 11 * 0.05
    assert near.ended == ""
    assert 0 < len(near.run(steps=100)) < 10
    assert near.ended.startswith("no step in 10 virtual s: c1 waits for its parent's next activation; see ")
