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


def test_a_question_waits_for_its_turn_but_not_for_long_where_that_may_never_come() -> None:
    _, relays, _ = chain_of("ddg")
    first, middle = relays[0], relays[1]
    first.begin(7)
    asked = first.ask("c1", 0.0)
    assert asked is not None
    for learnt, now in ((5, 0.0), (0, middle.patience_s)):
        middle.wait("c0", asked, 5, 0.0)
        middle.due(4, middle.patience_s - 1e-6)
        assert middle.line
        middle.due(learnt, now)
        assert not middle.line


def test_where_batches_are_soon_learnt_from_a_question_waits_for_all_that_came_before_it() -> None:
    """However slow the steps: else the last examination is not of the weights that are saved."""
    _, relays, _ = chain_of("dgl")
    first, last = relays[0], relays[-1]
    first.begin(7)
    asked = first.ask("c1", 0.0)
    assert asked is not None
    last.wait("c1", Activation(asked.id, 7, torch.zeros(len(asked.inputs), *(last.incoming or ())), owes=False), 5, 0.0)
    assert not last.due(4, 1e6)
    assert len(last.due(5, 1e6)) == 1


def test_a_part_is_asked_about_again_ever_more_rarely() -> None:
    _, relays, _ = chain_of("dgl")
    first, now, waits = relays[0], 0.0, []
    first.begin(7)
    while len(waits) < 3:
        while first.ask("c1", now) is not None:
            continue
        asked_s = now
        while not first.has("c1", now):
            now += first.retry_s / 4
        waits.append((now - asked_s) / first.retry_s)
    assert waits == [1.25, 2.25, 4.25]


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
    components, relays, dataset = chain_of("mach-hop")
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
    components, relays, dataset = chain_of("mach-hop")
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
    _, relays, _ = chain_of("mach-hop")
    relays[0].begin(7)
    first = relays[0].ask("c1", 0.0)
    relays[0].begin(7)
    second = relays[0].ask("c1", 0.0)
    assert first is not None
    assert second is not None
    assert (second.id - first.id) % len(relays[0].inputs) == 1  # the next part, not the first again


def started(relay: Relay, version: int) -> int:
    """Begin; how many parts were judged at once."""
    parts: list[int] = []
    relay.begin(version, pulse=lambda: parts.append(1))
    return len(parts)


def test_the_deepest_component_of_all_is_judged_at_once() -> None:
    config = load("digits", ("recipe=mach-hop", "n_components=1", "train.batch_size=64"), RECIPES)
    dataset = load_data(config.data)
    learner = learner_of(config, 0, [], dataset, CPU)
    relay = exam_of(config, learner, dataset)
    assert isinstance(relay, Relay)
    net = learner.component
    for version in (3, 5):
        assert started(relay, version) == len(relay.inputs)
        with torch.no_grad():
            whole = accuracy(net.classify(net.embed(net.activation(dataset.test_inputs), {})), dataset)
        assert relay.done
        assert relay.result is not None
        assert (relay.result.step, relay.result.child) == (version, None)
        assert relay.result.student == relay.result.full == pytest.approx(whole)
        assert relay.result.student_bits == relay.result.full_bits
        assert not relay._rounds


def test_component_0_is_judged_with_its_students_though_nobody_answers() -> None:
    components, relays, dataset = chain_of("mach-hop")
    net, relay = components[0], relays[0]
    assert started(relay, 3) == len(relay.inputs)
    with torch.no_grad():
        a = net.activation(dataset.test_inputs)
        alone = accuracy(net.classify(net.embed(a, net.imitate(a))), dataset)
    assert not relay.done
    assert relay.result is not None
    assert (relay.result.step, relay.result.child, relay.result.full) == (3, None, None)
    assert relay.result.student == pytest.approx(alone)
    assert started(relay, 3) == 0  # that one runs
    for version in range(4, 20):
        started(relay, version)
    assert len(relay._rounds) == 1


def test_until_a_new_examination_is_complete_the_answers_of_the_old_one_stand() -> None:
    components, relays, _ = chain_of("mach-hop")
    examine(relays)
    old = relays[0].result
    assert old is not None
    with torch.no_grad():
        for parameter in components[0].parameters():
            parameter.mul_(0.5)
    relays[0].begin(9, ask=False)
    assert relays[0].done
    new = relays[0].result
    assert new is not None
    assert (new.step, new.child, new.full, new.full_bits) == (9, old.child, old.full, old.full_bits)
    assert new.student_bits != old.student_bits


def test_without_heads_of_their_own_students_are_not_judged() -> None:
    _, relays, _ = chain_of("ddg")
    assert started(relays[0], 3) == 0
    assert relays[0].result is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_questions_and_answers_of_another_precision_are_judged(dtype: torch.dtype) -> None:
    _, relays, _ = chain_of("mach-hop")
    relays[0].begin(0)
    asked = relays[0].ask("c1", 0.0)
    assert asked is not None
    assert relays[1].take("c0", Activation(asked.id, 0, asked.inputs.to(dtype), owes=False)) == []
    on = relays[1].ask("c2", 0.0)
    assert on is not None
    ((_, last),) = relays[2].take("c1", Activation(on.id, 0, on.inputs.to(dtype), owes=False))
    assert last.logits is not None
    told = Target(last.id, 0, last.embedding.to(dtype), logits=last.logits.to(dtype))
    ((parent, answer),) = relays[1].keep("c2", told)
    assert parent == "c0"
    assert answer.logits is not None
    assert answer.logits.dtype == answer.embedding.dtype == torch.float32


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300, 1e30])
def test_numbers_of_one_that_diverged_are_no_questions_and_no_answers(value: float) -> None:
    _, relays, _ = chain_of("mach-hop")
    relays[0].begin(0)
    asked = relays[0].ask("c1", 0.0)
    assert asked is not None
    bad = torch.full(asked.inputs.shape, value, dtype=torch.float64)
    assert relays[1].take("c0", Activation(asked.id, 0, bad, owes=False)) == []
    assert not relays[1].has("c2", 0.0)
    e, z = torch.zeros(64, 64, dtype=torch.float64), torch.zeros(64, 10, dtype=torch.float64)
    assert relays[0]._fits("c1", Target(asked.id, 0, e, logits=z), relays[0]._questions[asked.id])
    for answer in (Target(asked.id, 0, e + value, logits=z), Target(asked.id, 0, e, logits=z + value)):
        assert relays[0].keep("c1", answer) == []
        assert asked.id in relays[0]._questions


def test_questions_and_answers_that_do_not_fit_are_no_questions_and_no_answers() -> None:
    _, relays, _ = chain_of("mach-hop")
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
