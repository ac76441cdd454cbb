"""An examination: the student at once, the children over messages, lost ones asked again."""

import math

import pytest
import torch
from torch import nn

from built import build
from configs.tree import Model
from mach.component import Component
from mach.data import Dataset
from mach.evaluate import EXAM_IDS, Exam
from mach.messages import Activation, Target

E, K, N, PART = 6, 3, 10, 4


def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 5, generator=generator), torch.randint(K, (N,), generator=generator)
    return Dataset(x, y, x, y, K)


def exam_of(*children: str) -> Exam:
    torch.manual_seed(0)
    component = build(Model(embedding=E, joiner=(8,), student=(8,)), (5,), K, children)
    return Exam(component, dataset(), children, PART, retry_s=1.0)


def true_embedding(asked: Activation, child: str) -> torch.Tensor:
    return torch.tanh(asked.inputs @ torch.ones(5, E)) * (1 + len(child))


def accuracy(component: Component, targets: dict[str, torch.Tensor]) -> float:
    """Over the whole test set at once."""
    with torch.no_grad():
        a = component.activation(dataset().test_inputs)
        z = component.classify(component.embed(a, component.imitate(a) | targets))
    return float((z.argmax(1) == dataset().test_labels).float().mean())


def bits(component: Component, targets: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        a = component.activation(dataset().test_inputs)
        z = component.classify(component.embed(a, component.imitate(a) | targets))
    return nn.functional.cross_entropy(z, dataset().test_labels).item() / math.log(2)


def ask_all(exam: Exam, child: str, now: float) -> list[Activation]:
    asked = []
    while (question := exam.ask(child, now)) is not None:
        asked.append(question)
    return asked


def tagger() -> Component:
    """Says of every token that it is its own label, 3 : 1 against the others together."""
    z = torch.full((K, K), -math.log(3 * (K - 1))).fill_diagonal_(0.0)
    table = nn.Embedding.from_pretrained(z)
    return Component(table, nn.Identity(), nn.Identity(), {}, tokens=True)


def test_of_a_sequence_every_place_counts_and_bits_are_those_of_one_label() -> None:
    x = torch.tensor([[0, 1, 2], [2, 2, 1]])
    y = torch.tensor([[0, 1, 2], [0, 2, 1]])  # one of six is wrong
    exam = Exam(tagger(), Dataset(x, y, x, y, K), (), 1, retry_s=1.0)
    exam.begin(0)
    assert exam.result is not None
    assert exam.result.student == pytest.approx(5 / 6)
    assert exam.result.student_bits == pytest.approx((5 * math.log2(4 / 3) + math.log2(4 * (K - 1))) / 6)


def test_without_children_the_student_path_is_all_there_is() -> None:
    exam = exam_of()
    exam.begin(7)
    assert exam.done
    assert exam.result is not None
    assert (exam.result.child, exam.result.step) == (None, 7)
    assert exam.result.student == pytest.approx(accuracy(exam.component, {}))


def test_every_part_is_progress() -> None:
    parts: list[int] = []
    exam_of("c1").begin(7, pulse=lambda: parts.append(1))
    assert len(parts) == 3  # of 10 samples in parts of 4


def test_both_accuracies_are_those_of_the_whole_test_set() -> None:
    exam = exam_of("c1", "c2")
    exam.begin(7)
    for child in ("c1", "c2"):
        assert exam.has(child, 0.0)
        for asked in ask_all(exam, child, 0.0):
            assert not asked.owes
            assert asked.version == 7
            assert asked.id >= EXAM_IDS
            answer = Target(asked.id, 0, true_embedding(asked, child))
            assert exam.owns(answer)
            exam.keep(child, answer)
    everything = Activation(0, 0, dataset().test_inputs)
    targets = {child: true_embedding(everything, child) for child in ("c1", "c2")}
    assert exam.done
    assert exam.result is not None
    assert exam.result.student == pytest.approx(accuracy(exam.component, {}))
    assert exam.result.child == pytest.approx(accuracy(exam.component, targets))
    assert exam.result.student_bits == pytest.approx(bits(exam.component, {}))
    assert exam.result.child_bits == pytest.approx(bits(exam.component, targets))


def test_what_was_not_answered_is_asked_again_after_a_while_and_not_before() -> None:
    exam = exam_of("c1")
    exam.begin(0)
    first = ask_all(exam, "c1", now=0.0)
    assert [len(asked.inputs) for asked in first] == [4, 4, 2]
    exam.keep("c1", Target(first[1].id, 0, true_embedding(first[1], "c1")))
    assert not exam.has("c1", now=0.9)
    assert not exam.done
    again = ask_all(exam, "c1", now=1.1)
    assert [asked.inputs.tolist() for asked in again] == [first[i].inputs.tolist() for i in (0, 2)]
    assert not {asked.id for asked in first} & {asked.id for asked in again}, "the old question may still be in flight"
    exam.keep("c1", Target(first[0].id, 0, true_embedding(first[0], "c1")))
    exam.keep("c1", Target(again[0].id, 0, true_embedding(again[0], "c1")))
    exam.keep("c1", Target(again[1].id, 0, true_embedding(again[1], "c1")))
    assert exam.done, "the late answer to the first question counts, and no part counts twice"


def test_an_answer_counts_once_and_only_in_its_own_examination() -> None:
    exam = exam_of("c1")
    exam.begin(0)
    old = ask_all(exam, "c1", 0.0)
    exam.begin(5)
    for asked in old:
        exam.keep("c1", Target(asked.id, 0, true_embedding(asked, "c1")))
    assert exam.result is not None
    assert (exam.result.child, exam.result.child_bits, exam.result.step) == (None, None, 5)
    new = ask_all(exam, "c1", 0.0)
    assert not {asked.id for asked in old} & {asked.id for asked in new}
    for asked in [*new, *new]:
        exam.keep("c1", Target(asked.id, 0, true_embedding(asked, "c1")))
        exam.keep("c9", Target(asked.id, 0, true_embedding(asked, "c1")))
    assert exam.result is not None
    assert exam.result.child is not None
    assert exam.result.child <= 1.0


def test_an_answer_of_another_shape_is_as_good_as_none() -> None:
    exam = exam_of("c1")
    exam.begin(0)
    asked = exam.ask("c1", 0.0)
    assert asked is not None
    for bad in (torch.zeros(PART, E + 1), torch.zeros(PART - 1, E), torch.zeros(E)):
        exam.keep("c1", Target(asked.id, 0, bad))
    assert not exam.done
    assert exam.ask("c1", 2.0) is not None


def test_the_student_can_be_measured_while_an_examination_runs_on() -> None:
    exam = exam_of("c1")
    exam.begin(0)
    asked = ask_all(exam, "c1", 0.0)
    exam.begin(3, ask=False)
    for question in asked:
        exam.keep("c1", Target(question.id, 0, true_embedding(question, "c1")))
    assert exam.result is not None
    assert exam.result.step == 3
    assert exam.result.child is not None


def test_a_training_answer_is_not_the_examinations() -> None:
    assert not exam_of("c1").owns(Target(3, 0, torch.zeros(PART, E)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_answers_of_another_precision_are_judged(dtype: torch.dtype) -> None:
    exam = exam_of("c1")
    exam.begin(0)
    for asked in ask_all(exam, "c1", 0.0):
        exam.keep("c1", Target(asked.id, 0, true_embedding(asked, "c1").to(dtype)))
    assert exam.done
    assert exam.result is not None
    told = torch.tanh(dataset().test_inputs @ torch.ones(5, E)) * 3
    assert exam.result.child == pytest.approx(accuracy(exam.component, {"c1": told.to(dtype).float()}))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 1e30])
def test_an_answer_of_one_that_diverged_is_none(value: float) -> None:
    exam = exam_of("c1")
    exam.begin(0)
    asked = ask_all(exam, "c1", 0.0)
    for each in asked:
        exam.keep("c1", Target(each.id, 0, torch.full((len(each.inputs), E), value, dtype=torch.float64)))
    assert not exam.done
    assert len(ask_all(exam, "c1", 2.0)) == len(asked)  # asked again
