"""ask, answer, keep, step: what goes out, what is owed, what is remembered, how old it was."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from built import build
from configs.tree import Loss, Method, Model
from mach.component import Component
from mach.learner import Learner
from mach.memory import MEMORY
from mach.messages import Activation, Age, Batch, Gradient, Letter, Message, Target

B, E, K, W = 4, 6, 3, 2
CPU = torch.device("cpu")


def component_with(*children: str, seed: int = 0) -> Component:
    torch.manual_seed(seed)
    return build(Model(embedding=E, joiner=(8,), student=(8,)), (5,), K, children)


def learner_with(*children: str, loss: Loss | None = None, lr: float = 0.1) -> Learner:
    """A learner with plain SGD: its weights move by −lr·∂L/∂w."""
    component = component_with(*children)
    optimiser = torch.optim.SGD(component.parameters(), lr=lr)
    return Learner(component, optimiser, loss or Loss(), window=W, device=CPU, sample_shape=(5,))


def batch(id: int, rows: int = B) -> Batch:
    generator = torch.Generator().manual_seed(id)
    inputs = torch.randn(rows, 5, generator=generator)
    return Batch(id, inputs, torch.randint(K, (rows,), generator=generator))


def letter(sender: str, message: Message, age: Age | None = None) -> Letter:
    return Letter(sender, message, age)


def target(id: int, version: int = 0, embedding: Tensor | None = None, child: str = "c1") -> Letter:
    d = torch.randn(B, E, generator=torch.Generator().manual_seed(99 + id)) if embedding is None else embedding
    return letter(child, Target(id, version, d), Age(0, 0.5))


def question(id: int, *, owes: bool = True) -> Activation:
    return Activation(id, 0, batch(1000 + id).inputs, owes=owes)


def moved(learner: Learner, before: Component) -> list[Tensor]:
    """∂L/∂w of the step just made, read off the weights (SGD, lr 0.1)."""
    return [(old - new) / 0.1 for old, new in zip(before.parameters(), learner.component.parameters(), strict=True)]


def terms(component: Component, b: Batch, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """method.md's three terms, written out: with the target, with the student, distillation."""
    s = component.students["c1"](b.inputs)
    child = F.cross_entropy(component.head(component.joiner(torch.cat([b.inputs, d], 1))), b.labels)
    student = F.cross_entropy(component.head(component.joiner(torch.cat([b.inputs, s], 1))), b.labels)
    return child, student, F.mse_loss(s, d.detach())


def assert_gradients(learner: Learner, twin: Component, loss: Tensor) -> None:
    """The learner's last step went down the gradient of `loss`, which was computed on its twin."""
    expected = torch.autograd.grad(loss, list(twin.parameters()), allow_unused=True)
    for found, wanted in zip(moved(learner, twin), expected, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if wanted is None else wanted, rtol=1e-3, atol=1e-5)


def test_an_activation_is_the_raw_input_and_carries_the_version() -> None:
    learner = learner_with("c1")
    learner.step(batch(0), 0.0)
    asked = learner.ask(batch(1))
    assert torch.equal(asked.inputs, batch(1).inputs)
    assert (asked.id, asked.version, asked.owes, asked.labels) == (1, 1, True, None)


def test_an_answer_has_the_student_in_it_and_no_graph() -> None:
    learner = learner_with("c1")
    asked = question(7)
    answer = learner.answer("c0", asked, 0.0)
    x, net = asked.inputs, learner.component
    expected = net.joiner(torch.cat([x, net.students["c1"](x)], 1))
    assert torch.equal(answer.embedding, expected)
    assert not answer.embedding.requires_grad
    assert (answer.id, answer.version) == (7, 0)


def test_an_answer_asks_nobody_and_uses_no_target_at_hand() -> None:
    learner = learner_with("c1")
    before = learner.answer("c0", question(1), 0.0)
    learner.ask(batch(0))
    learner.keep(target(0), 0.0)
    assert torch.equal(learner.answer("c0", question(1), 0.0).embedding, before.embedding)


def test_without_a_target_the_step_is_on_the_student_with_weight_one() -> None:
    learner, twin = learner_with("c1", loss=Loss(student=5.0, child=7.0)), component_with("c1")
    step = learner.step(batch(3), 0.0)
    _, student, _ = terms(twin, batch(3), torch.zeros(B, E))
    assert_gradients(learner, twin, student)
    assert not step.on_child
    assert not step.owed
    assert set(step.losses) == {"target", "student"}
    assert (step.version, learner.version, step.samples) == (1, 1, B)


def test_a_component_without_children_trains_on_its_joiner_alone() -> None:
    learner, twin = learner_with(), component_with()
    learner.step(batch(3), 0.0)
    assert_gradients(learner, twin, F.cross_entropy(twin.head(twin.joiner(batch(3).inputs)), batch(3).labels))


def test_with_a_target_the_step_is_methods_loss_on_the_answered_batch() -> None:
    weights = Loss(child=0.7, student=0.5, distill=0.3)
    learner, twin = learner_with("c1", loss=weights), component_with("c1")
    learner.ask(batch(0))
    d = target(0)
    learner.keep(d, 0.0)
    step = learner.step(batch(5), 0.0)
    assert isinstance(d.message, Target)
    child, student, distill = terms(twin, batch(0), d.message.embedding)
    assert_gradients(learner, twin, 0.7 * child + 0.5 * student + 0.3 * distill)
    assert step.on_child
    assert step.losses["target"].item() == pytest.approx(child.item())
    assert step.losses["student"].item() == pytest.approx(student.item())
    assert step.losses["distill"].item() == pytest.approx(distill.item())
    assert not any(value.requires_grad for value in step.losses.values())


def test_what_is_owed_is_the_gradient_of_the_childs_term_alone() -> None:
    learner, twin = learner_with("c1", loss=Loss(child=0.7, student=0.5, distill=9.0)), component_with("c1")
    learner.ask(batch(0))
    d = torch.randn(B, E)
    learner.keep(target(0, version=12, embedding=d), 0.0)
    [(peer, owed)] = learner.step(batch(5), 0.0).owed
    leaf = d.clone().requires_grad_()
    (expected,) = torch.autograd.grad(0.7 * terms(twin, batch(0), leaf)[0], leaf)
    assert (peer, owed.id, owed.of_version) == ("c1", 0, 12)
    torch.testing.assert_close(owed.gradient, expected)
    assert not d.requires_grad
    assert d.grad is None


def test_what_is_owed_has_memory_of_its_own() -> None:
    learner = learner_with("c1")
    learner.ask(batch(0))
    learner.keep(target(0), 0.0)
    [(_, owed)] = learner.step(batch(5), 0.0).owed
    as_sent = owed.gradient.clone()
    for t in range(1, 4):
        learner.ask(batch(t))
        learner.keep(target(t), 0.0)
        learner.step(batch(t + 10), 0.0)
    assert torch.equal(owed.gradient, as_sent)
    assert owed.gradient.is_contiguous()


def test_a_late_gradient_is_pulled_through_todays_weights_at_the_old_input() -> None:
    learner = learner_with("c1", loss=Loss(late=2.0))
    asked, g = question(7), torch.randn(B, E)
    learner.answer("c0", asked, 0.0)
    for t in range(3):
        learner.step(batch(t), 0.0)
    twin = component_with("c1")
    twin.load_state_dict(learner.component.state_dict())
    learner.keep(letter("c0", Gradient(7, 0, g)), 0.0)
    step = learner.step(batch(9), 0.0)
    x = asked.inputs
    pulled = (twin.joiner(torch.cat([x, twin.students["c1"](x)], 1)) * g).sum()
    assert_gradients(learner, twin, terms(twin, batch(9), torch.zeros(B, E))[1] + 2.0 * pulled)
    assert step.losses["late"].item() == pytest.approx(pulled.item(), abs=1e-6)


def test_a_late_gradient_is_applied_once() -> None:
    learner = learner_with("c1")
    learner.answer("c0", question(7), 0.0)
    learner.keep(letter("c0", Gradient(7, 0, torch.randn(B, E))), 0.0)
    learner.keep(letter("c0", Gradient(7, 0, torch.randn(B, E))), 0.0)
    assert learner.forgotten == {"gradient": 1}
    assert "late" in learner.step(batch(0), 0.0).losses
    assert "late" not in learner.step(batch(1), 0.0).losses


def test_with_weight_zero_late_gradients_change_nothing_and_are_still_counted() -> None:
    learner, twin = learner_with("c1", loss=Loss(late=0.0)), component_with("c1")
    learner.answer("c0", question(7), 0.0)
    learner.keep(letter("c0", Gradient(7, 0, torch.randn(B, E))), 0.0)
    step = learner.step(batch(3), 0.0)
    assert_gradients(learner, twin, terms(twin, batch(3), torch.zeros(B, E))[1])
    assert len(step.gradient_ages) == 1


def test_the_sum_of_late_gradients_does_not_depend_on_who_came_first() -> None:
    gradients = {parent: torch.randn(B, E) for parent in ("c10", "c2", "c3")}
    results = []
    for order in (("c10", "c2", "c3"), ("c3", "c2", "c10"), ("c2", "c10", "c3")):
        learner = learner_with("c1")
        for i, parent in enumerate(gradients):
            learner.answer(parent, question(i), 0.0)
        for parent in order:
            learner.keep(letter(parent, Gradient(list(gradients).index(parent), 0, gradients[parent])), 0.0)
        learner.step(batch(0), 0.0)
        results.append(learner.component.state_dict())
    for state in results[1:]:
        assert all(torch.equal(state[name], results[0][name]) for name in state)


def test_an_examination_is_answered_and_leaves_nothing_to_remember() -> None:
    learner = learner_with("c1")
    learner.answer("c0", question(7, owes=False), 0.0)
    learner.keep(letter("c0", Gradient(7, 0, torch.zeros(B, E))), 0.0)
    assert learner.forgotten == {"gradient": 1}


def test_the_oldest_answered_batch_is_used_first() -> None:
    learner = learner_with("c1")
    for t in (0, 1):
        learner.ask(batch(t))
    learner.keep(target(1), 0.0)
    learner.keep(target(0), 0.0)
    used = [learner.step(batch(9), 0.0).owed[0][1].id for _ in range(2)]
    assert used == [1, 0], "oldest by arrival"
    assert not learner.step(batch(9), 0.0).on_child


def test_targets_of_one_batch_are_used_together_and_a_later_one_by_itself() -> None:
    learner = learner_with("c1", "c2")
    learner.ask(batch(0))
    learner.keep(target(0, child="c2"), 0.0)
    learner.keep(target(0, child="c1"), 0.0)
    assert [peer for peer, _ in learner.step(batch(9), 0.0).owed] == ["c1", "c2"]
    learner.ask(batch(1))
    learner.keep(target(1, child="c2"), 0.0)
    assert [peer for peer, _ in learner.step(batch(9), 0.0).owed] == ["c2"]
    learner.keep(target(1, child="c1"), 0.0)
    assert [peer for peer, _ in learner.step(batch(9), 0.0).owed] == ["c1"]


def test_ages_are_measured_at_use() -> None:
    learner = learner_with("c1")
    learner.answer("c0", question(7), now=1.0)
    for t in (0, 1):
        learner.ask(batch(t))
    learner.keep(target(0, version=20), now=2.0)  # half a second after its activation left
    learner.keep(target(1, version=23), now=2.0)
    assert learner.step(batch(9), now=2.25).target_ages == [Age(3, 0.75)]
    learner.keep(letter("c0", Gradient(7, 0, torch.zeros(B, E))), now=3.0)
    step = learner.step(batch(9), now=4.0)
    assert step.target_ages == [Age(0, 2.5)]
    assert step.gradient_ages == [Age(1, 3.0)]


def test_a_child_that_went_back_to_a_checkpoint_is_as_old_as_it_says() -> None:
    learner = learner_with("c1")
    for t in range(3):
        learner.ask(batch(t))
    learner.keep(target(0, version=500), 0.0)
    learner.keep(target(1, version=400), 0.0)  # of its next life
    assert learner.step(batch(9), 0.0).target_ages[0].versions == 0
    learner.keep(target(2, version=403), 0.0)
    assert learner.step(batch(9), 0.0).target_ages[0].versions == 3


def test_memory_of_batches_is_bounded_per_child_and_what_is_forgotten_is_counted() -> None:
    learner = learner_with("c1", "c2")
    learner.ask(batch(0), "c2")
    for t in range(MEMORY * W + 1):
        learner.ask(batch(t), "c1")
    learner.keep(target(0, child="c1"), 0.0)
    assert learner.forgotten == {"target": 1}
    learner.keep(target(0, child="c2"), 0.0)
    assert [peer for peer, _ in learner.step(batch(99), 0.0).owed] == ["c2"], "a busy child pushes out no other's"


def test_a_target_is_trained_on_once() -> None:
    learner = learner_with("c1")
    learner.ask(batch(0))
    learner.keep(target(0), 0.0)
    learner.keep(target(0), 0.0)
    learner.keep(letter("c9", Target(0, 0, torch.zeros(B, E))), 0.0)
    assert learner.forgotten == {"target": 2}
    assert learner.step(batch(1), 0.0).on_child
    assert not learner.step(batch(1), 0.0).on_child


def test_memory_of_answers_is_bounded_per_parent() -> None:
    learner = learner_with("c1")
    learner.answer("c5", question(0), 0.0)
    for t in range(MEMORY * W + 1):
        learner.answer("c0", question(t), 0.0)
    for parent in ("c0", "c5"):
        learner.keep(letter(parent, Gradient(0, 0, torch.zeros(B, E))), 0.0)
    assert learner.forgotten == {"gradient": 1}
    assert len(learner.step(batch(0), 0.0).gradient_ages) == 1


def test_one_who_answers_and_no_longer_trains_keeps_a_bounded_number_of_gradients() -> None:
    learner = learner_with("c1")
    for t in range(5 * MEMORY * W):
        learner.answer("c0", question(t), 0.0)
        learner.keep(letter("c0", Gradient(t, 0, torch.zeros(B, E))), 0.0)
    assert len(learner.step(batch(0), 0.0).gradient_ages) == MEMORY * W


@pytest.mark.parametrize("bad", [torch.zeros(B + 1, E), torch.zeros(B, E - 1), torch.zeros(1), torch.zeros(B, E).int()])
def test_what_has_another_shape_is_counted_and_never_trained_on(bad: Tensor) -> None:
    learner = learner_with("c1")
    learner.ask(batch(0))
    learner.keep(target(0, embedding=bad), 0.0)
    learner.answer("c0", question(7), 0.0)
    learner.keep(letter("c0", Gradient(7, 0, bad)), 0.0)
    step = learner.step(batch(1), 0.0)
    assert learner.unfit == {"target": 1, "gradient": 1}
    assert not step.on_child
    assert not step.gradient_ages


@pytest.mark.parametrize(
    "inputs",
    [
        torch.full((B, 5), math.nan),
        torch.full((B, 5), math.inf),
        torch.zeros(B, 6),
        torch.zeros(B),
        torch.zeros(()),
        torch.zeros(B, 5, dtype=torch.int64),
    ],
)
def test_inputs_that_no_network_can_answer_are_counted_and_forgotten(inputs: Tensor) -> None:
    learner = learner_with("c1")
    assert learner.answer("c0", Activation(7, 0, inputs), 0.0) is None
    learner.keep(letter("c0", Gradient(7, 0, torch.zeros(B, E))), 0.0)
    assert learner.unfit == {"activation": 1}
    assert learner.forgotten == {"gradient": 1}
    assert not learner.step(batch(1), 0.0).gradient_ages
    assert all(torch.isfinite(parameter).all() for parameter in learner.component.parameters())


def test_inputs_that_come_beside_the_indices_of_x_are_not_taken_for_our_own_data() -> None:
    """As only a stranger writes them in skip wiring: whose samples the indices are, and the inputs are not."""
    learner, own = learner_with("c1"), {"indices": torch.arange(B), "context": torch.zeros(B, 5)}
    assert learner.answer("c0", Activation(7, 0, torch.full((B, 5), math.nan), **own), 0.0) is None
    assert learner.unfit == {"activation": 1}


def test_tensors_of_another_precision_are_taken() -> None:
    learner = learner_with("c1")
    asked = question(7)
    answer = learner.answer("c0", Activation(7, 0, asked.inputs.double()), 0.0)
    assert answer is not None
    assert answer.embedding.dtype == torch.float32
    learner.ask(batch(0))
    learner.keep(target(0, embedding=torch.zeros(B, E, dtype=torch.float64)), 0.0)
    learner.keep(letter("c0", Gradient(7, 0, torch.zeros(B, E, dtype=torch.bfloat16))), 0.0)
    step = learner.step(batch(1), 0.0)
    assert step.on_child
    assert len(step.gradient_ages) == 1
    assert not learner.unfit


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_neighbour_that_diverged_ruins_only_itself(value: float) -> None:
    learner = learner_with("c1")
    bad = torch.zeros(B, E)
    bad[2, 3] = value
    learner.ask(batch(0))
    learner.keep(target(0, embedding=bad), 0.0)
    learner.answer("c0", question(7), 0.0)
    learner.keep(letter("c0", Gradient(7, 0, bad)), 0.0)
    learner.step(batch(1), 0.0)
    assert learner.unfit == {"target": 1, "gradient": 1}
    assert all(torch.isfinite(parameter).all() for parameter in learner.component.parameters())


def test_the_schedule_sets_the_rate_of_every_step_by_version() -> None:
    rates: list[int] = []
    component = component_with("c1")
    optimiser = torch.optim.SGD(component.parameters(), lr=5.0)

    def schedule(version: int) -> float:
        rates.append(version)
        return 0.25 / (1 + version)

    learner = Learner(component, optimiser, Loss(), window=W, device=CPU, sample_shape=(5,), schedule=schedule)
    for t in range(3):
        learner.step(batch(t), 0.0)
    assert rates == [0, 1, 2]
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.25 / 3)


def test_an_activation_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="answered, not kept"):
        learner_with("c1").keep(letter("c0", question(0)), 0.0)


def test_symbols_and_quantities_are_not_taken_for_each_other() -> None:
    quantities = learner_with()
    torch.manual_seed(0)
    component = Component(nn.Embedding(9, 2), nn.Linear(2, 2), nn.Linear(2, K), {}, tokens=True)
    symbols = Learner(
        component, torch.optim.SGD(component.parameters()), Loss(), window=W, device=CPU, sample_shape=(5,), symbols=9
    )
    tokens = Activation(0, 0, torch.randint(9, (B, 5)))
    numbers = Activation(0, 0, torch.rand(B, 5))
    assert quantities.answer("c9", tokens, 0.0) is None
    assert symbols.answer("c9", numbers, 0.0) is None
    assert quantities.unfit == symbols.unfit == {"activation": 1}
    answer = symbols.answer("c9", tokens, 0.0)
    assert answer is not None
    assert answer.embedding.shape == (B, 5, 2)
    for none in (9, -1, 2**60):  # no symbol that there is
        assert symbols.answer("c9", Activation(0, 0, torch.full((B, 5), none)), 0.0) is None
    assert symbols.unfit == {"activation": 4}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bounded_networks_hide_no_infinity(value: float) -> None:
    """Of which they would make an answer like any other, to be trained on when its gradient comes."""
    component = Component(nn.Hardtanh(), nn.Linear(5, 2), nn.Linear(2, K), {})
    optimiser = torch.optim.SGD(component.parameters())
    learner = Learner(component, optimiser, Loss(), window=W, device=CPU, sample_shape=(5,))
    inputs = torch.zeros(B, 5)
    inputs[2, 3] = value
    assert math.isnan(value) or component.activation(inputs).isfinite().all()
    assert learner.answer("c9", Activation(0, 0, inputs), 0.0) is None
    assert learner.unfit == {"activation": 1}


def test_a_target_of_a_kind_that_cannot_be_added_up_is_judged_like_any_other() -> None:
    learner = learner_with("c1")
    for id, value in enumerate((1.0, math.nan)):
        learner.ask(batch(id))
        embedding = torch.full((B, E), value).to(torch.float8_e5m2)
        learner.keep(letter("c1", Target(id, 0, embedding), Age(0, 0.5)), 0.0)
    assert learner.unfit == {"target": 1}
    assert learner.step(batch(2), 0.0) is not None


def test_a_learner_that_is_told_no_schedule_has_the_share_of_its_method() -> None:
    one = component_with("c1")
    optimiser = torch.optim.SGD(one.parameters(), lr=0.1)
    method = Method(student_pull=0.3)
    learner = Learner(one, optimiser, Loss(), window=W, device=CPU, sample_shape=(5,), method=method)
    assert [learner.teacher.student_pull(version) for version in (0, 1000)] == [0.3, 0.3]
