"""Examinations along a stream: questions down, answers up, every component judged; against the network in one piece."""

from collections import deque

import pytest
import torch

from configs.load import load
from mach.assemble import exam_of, learner_of
from mach.component import Component
from mach.data import Dataset
from mach.data import load as load_data
from mach.graph import children_of, name_of
from mach.messages import Activation, Target
from mach.recipes import RECIPES
from mach.relay import Relay

CPU = torch.device("cpu")
N = 3


def chain_of(recipe: str) -> tuple[list[Component], list[Relay], Dataset]:
    config = load("digits", (f"recipe={recipe}", f"n_components={N}", "train.batch_size=64"), RECIPES)
    dataset = load_data(config.data)
    learners = [
        learner_of(config, i, [name_of(j) for j in own], dataset, CPU)
        for i, own in enumerate(children_of(config.graph, N))
    ]
    exams = [exam_of(config, learner, dataset) for learner in learners]
    return [learner.component for learner in learners], [each for each in exams if isinstance(each, Relay)], dataset


def examine(relays: list[Relay], *, lose: int = 0, version: int = 7) -> int:
    """Carry questions and answers until nothing is left to do; the first `lose` answers to c0 are lost."""
    now, lost = 0.0, 0
    relays[0].begin(version)
    post: deque[tuple[str, str, Activation | Target]] = deque()
    for _ in range(1000):
        now += 1.0
        for i, relay in enumerate(relays[:-1]):
            child = name_of(i + 1)
            if relay.has(child, now):
                asked = relay.ask(child, now)
                assert asked is not None
                assert not asked.owes
                post.append((name_of(i), child, asked))
        while post:
            sender, to, message = post.popleft()
            relay = relays[int(to[1:])]
            if isinstance(message, Activation):
                answers = relay.take(sender, message)
            elif to == "c0" and lost < lose:
                lost, answers = lost + 1, []
            else:
                answers = relay.keep(sender, message)
            post += [(to, parent, answer) for parent, answer in answers]
    return lost


def accuracy(z: torch.Tensor, dataset: Dataset) -> float:
    return float((z.argmax(dim=1) == dataset.test_labels).float().mean())


@pytest.mark.parametrize("lose", [0, 4])
def test_end_to_end_recipes_are_judged_by_what_the_last_component_says(lose: int) -> None:
    components, relays, dataset = chain_of("ddg")
    assert examine(relays, lose=lose) == lose
    with torch.no_grad():
        a = dataset.test_inputs
        for component in components:
            a = component.activation(a)
        whole = accuracy(components[-1].classify(components[-1].embed(a, {})), dataset)
    assert all(relay.done for relay in relays)
    for relay in relays[: N - 1] if lose else relays:
        assert relay.result is not None
        assert relay.result.full == pytest.approx(whole)
        assert relay.result.student == pytest.approx(whole)
        assert relay.result.child is None
        assert relay.result.step == 7


def test_with_targets_every_component_is_judged_alone_with_its_child_and_to_the_end() -> None:
    components, relays, dataset = chain_of("mach-stream")
    examine(relays)
    x = dataset.test_inputs
    with torch.no_grad():
        inputs = [(x,)]
        for component in components[:-1]:
            inputs.append((component.activation(*inputs[-1]), x))
        a = [component.activation(*come) for component, come in zip(components, inputs, strict=True)]
        e = [components[2].embed(a[2], {})]
        for k in (1, 0):  # over the true child's answer, which is over its true child's
            e.insert(0, components[k].embed(a[k], {name_of(k + 1): e[0]}))
        full = accuracy(components[2].classify(e[2]), dataset)
        for k, (component, relay) in enumerate(zip(components, relays, strict=True)):
            assert relay.result is not None
            alone = component.classify(component.embed(a[k], component.imitate(a[k])))
            assert relay.result.student == pytest.approx(accuracy(alone, dataset))
            assert relay.result.full == pytest.approx(full)
            expected = None if k == 2 else pytest.approx(accuracy(component.classify(e[k]), dataset))
            assert relay.result.child == expected


def test_a_new_examination_takes_the_place_of_one_that_runs_and_late_answers_to_that_one_count_for_nothing() -> None:
    components, relays, dataset = chain_of("mach-stream")
    relays[0].begin(7)
    answers = []
    for _ in range(3):
        asked = relays[0].ask("c1", 0.0)
        assert asked is not None
        assert relays[1].take("c0", asked) == []
        on = relays[1].ask("c2", 0.0)
        assert on is not None
        ((_, last),) = relays[2].take("c1", on)
        answers += relays[1].keep("c2", last)
    assert len(answers) == 3
    relays[0].keep("c1", answers[0][1])
    with torch.no_grad():  # steps on
        for component in components:
            for parameter in component.parameters():
                parameter.mul_(0.5)
    examine(relays, version=9)
    for _, answer in answers:
        assert relays[0].keep("c1", answer) == []
    with torch.no_grad():
        a = components[0].activation(dataset.test_inputs)
        alone = components[0].classify(components[0].embed(a, components[0].imitate(a)))
    for relay in relays:
        assert relay.result is not None
        assert relay.result.step == 9
    assert relays[0].done
    assert relays[0].result is not None
    assert relays[0].result.student == pytest.approx(accuracy(alone, dataset))


def test_an_examination_of_the_same_version_goes_on() -> None:
    _, relays, _ = chain_of("mach-stream")
    relays[0].begin(7)
    first = relays[0].ask("c1", 0.0)
    relays[0].begin(7)
    second = relays[0].ask("c1", 0.0)
    assert first is not None
    assert second is not None
    assert (second.id - first.id) % len(relays[0].inputs) == 1  # the next part, not the first again


def test_questions_and_answers_that_do_not_fit_are_no_questions_and_no_answers() -> None:
    _, relays, _ = chain_of("mach-stream")
    relays[0].begin(0)
    asked = relays[0].ask("c1", 0.0)
    assert asked is not None
    bad = torch.full_like(asked.inputs, torch.nan)
    assert relays[2].take("c1", Activation(asked.id, 0, bad, owes=False)) == []
    assert relays[2].take("c1", Activation(asked.id, 0, asked.inputs[:, 1:], owes=False)) == []
    e, z = torch.zeros(64, 64), torch.zeros(64, 10)
    for answer in (
        Target(asked.id, 0, e),
        Target(asked.id, 0, e[:, 1:], logits=z),
        Target(asked.id, 0, e, logits=z[1:]),
        Target(asked.id, 0, e, logits=z[:, :3]),
        Target(asked.id + 1, 0, e, logits=z),
    ):
        assert relays[0].keep("c1", answer) == []
        assert not relays[0].done
    assert relays[0].keep("c9", Target(asked.id, 0, e, logits=z)) == []
    assert relays[0].owns(Target(asked.id, 0, e))
