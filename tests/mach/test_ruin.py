"""What a neighbour that diverged, or computes in another precision, does to us: nothing. Through whole learners."""

import gc

import pytest
import torch

from built import build
from configs.load import load
from configs.tree import Loss, Model
from mach.assemble import learner_of
from mach.data import load as load_data
from mach.learner import Learner
from mach.memory import MEMORY
from mach.messages import Activation, Age, Batch, Gradient, Letter, Target
from mach.recipes import RECIPES

B, E, K = 4, 6, 3
CPU = torch.device("cpu")
RUIN = [(1e300, torch.float64), (-1e300, torch.float64), (1e30, torch.float32), (1e30, torch.bfloat16)]


def skip_learner() -> Learner:
    torch.manual_seed(0)
    component = build(Model(embedding=E, joiner=(8,), student=(8,)), (5,), K, ("c1",))
    optimiser = torch.optim.Adam(component.parameters())
    return Learner(component, optimiser, Loss(), window=2, device=CPU, sample_shape=(5,))


def stream_learner(i: int, recipe: str, *words: str) -> Learner:
    """Component i of a chain of three."""
    config = load("digits", (f"recipe={recipe}", "n_components=3", *words), RECIPES)
    return learner_of(config, i, [f"c{i + 1}"] if i < 2 else [], load_data(config.data), CPU)


def batch(id: int, rows: int = B, width: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(id)
    return Batch(id, torch.randn(rows, width, generator=generator), torch.randint(K, (rows,), generator=generator))


def sound(learner: Learner) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in learner.component.parameters())


@pytest.mark.parametrize(("value", "dtype"), RUIN)
def test_finite_numbers_that_would_ruin_weights_are_counted_and_never_trained_on(
    value: float, dtype: torch.dtype
) -> None:
    learner = skip_learner()
    bad = torch.zeros(B, E, dtype=torch.float64)
    bad[2, 3] = value
    learner.ask(batch(0))
    learner.keep(Letter("c1", Target(0, 0, bad.to(dtype)), Age(0, 0.5)), 0.0)
    assert learner.answer("c0", Activation(7, 0, batch(7).inputs), 0.0) is not None
    learner.keep(Letter("c0", Gradient(7, 0, bad.to(dtype))), 0.0)
    for t in range(1, 3):
        assert learner.step(batch(t), 0.0) is not None
    assert learner.unfit == {"target": 1, "gradient": 1}
    assert sound(learner)


@pytest.mark.parametrize(("value", "dtype"), RUIN)
def test_a_stream_takes_no_activation_and_no_gradient_that_would_ruin_weights(value: float, dtype: torch.dtype) -> None:
    parent, child = stream_learner(0, "mach-hop"), stream_learner(1, "mach-hop")
    asked = parent.ask(batch(0, width=64))
    bad = torch.full(asked.inputs.shape, value, dtype=torch.float64).to(dtype)
    wrong = Activation(0, 0, bad, asked.labels, context=asked.context)
    assert child.answer("c0", wrong, 0.0) is None
    assert child.unfit == {"activation": 1}
    answer = answered(child, asked)
    parent.keep(Letter("c1", Target(0, 0, answer.embedding, bad), Age(0, 0.0)), 0.0)
    assert parent.unfit == {"target": 1}
    assert parent.step(batch(1, width=64), 0.0) is not None
    assert sound(parent)
    assert sound(child)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_a_stream_trains_on_tensors_of_another_precision(dtype: torch.dtype) -> None:
    parent, child = stream_learner(0, "mach-hop"), stream_learner(1, "mach-hop")
    asked = parent.ask(batch(0, width=64))
    assert asked.context is not None
    answer = answered(child, Activation(0, 0, asked.inputs.to(dtype), asked.labels, context=asked.context.to(dtype)))
    assert answer.gradient is not None
    told = Target(0, 0, answer.embedding.to(dtype), answer.gradient.to(dtype))
    parent.keep(Letter("c1", told, Age(0, 0.0)), 0.0)
    step = parent.step(batch(1, width=64), 0.0)
    assert step is not None
    assert step.on_child
    assert not parent.unfit
    assert not child.unfit
    assert sound(parent)
    assert sound(child)


def answered(child: Learner, asked: Activation) -> Target:
    """What the child's step on a batch owes the parent."""
    assert child.answer("c0", asked, 0.0) is None
    assert child.stream is not None
    step = child.step(child.stream.next(), 0.0)
    assert step is not None
    (answer,) = [message for to, message in step.owed if to == "c0"]
    assert isinstance(answer, Target)
    return answer


def test_answers_without_the_gradient_that_is_all_there_is_to_learn_are_unfit_and_leave_no_graphs() -> None:
    learner = stream_learner(0, "backprop")
    assert learner.waits_for_answers
    for id in range(50):
        learner.ask(batch(id, width=64))
        learner.keep(Letter("c1", Target(id, 0, torch.empty(0)), Age(0, 0.0)), 0.0)
        assert learner.step(None, 0.0) is None
    gc.collect()
    assert learner.unfit == {"target": 50}
    assert len(learner.late._cached) == 0


def test_a_graph_lives_no_longer_than_somebody_remembers_its_batch() -> None:
    learner = stream_learner(0, "backprop")
    for id in range(50):  # nobody answers
        learner.ask(batch(id, width=64))
    gc.collect()
    assert len(learner.late._cached) == MEMORY * learner.window
