"""Evaluation mode for all but training: no statistics move, nothing is dropped, and every mode is as it was."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm

from built import build
from configs.load import load
from configs.tree import Loss, Method, Model, Probes, Staleness
from mach import controls
from mach.assemble import component_of, exam_of, learner_of
from mach.component import Component
from mach.data import Dataset
from mach.evaluate import Exam
from mach.graph import children_of, name_of
from mach.late import Held
from mach.learner import Learner
from mach.messages import Activation, Batch, Gradient, Letter, Target
from mach.modes import MINDING, MODELESS, evaluating
from mach.networks.fit import activation_shape, as_in_training, check_fit
from mach.networks.place import Place
from mach.probes import r_squared
from mach.recipes import RECIPES
from mach.sieve import Sieve
from mach.whole import readings
from normed import normed

D, E, K, B = 5, 6, 3, 4
CPU = torch.device("cpu")
THEIRS = "normed:normed"


def place(*children: str) -> Place:
    return Place(Model(embedding=E), (D,), K, children=children)


def network(*children: str) -> Component:
    torch.manual_seed(0)
    return normed(place(*children))


def dataset(count: int = 10) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, D, generator=generator), torch.randint(K, (count,), generator=generator)
    return Dataset(x, y, x, y, K)


def learner_of_ours(component: Component, staleness: Staleness | None = None, probes: Probes | None = None) -> Learner:
    optimiser = torch.optim.SGD(component.parameters(), lr=0.1)
    settings = {"window": 2, "device": CPU, "sample_shape": (D,), "staleness": staleness, "probes": probes}
    return Learner(component, optimiser, Loss(), **settings)  # type: ignore[arg-type]


def batch(id: int) -> Batch:
    return Batch(id, dataset().train_inputs[:B] + id, dataset().train_labels[:B])


def state(component: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(component.state_dict())


def modes(component: nn.Module) -> list[bool]:
    return [module.training for module in component.modules()]


def same(component: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in component.state_dict().items())


@pytest.mark.parametrize("name", ["digits", "mnist1d", "bytes-lm"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_module_of_ours_looks_at_its_mode(name: str, recipe: str) -> None:
    small = ("graph=chain", "n_components=3", "model.embedding=16", "model.channels=8", f"recipe={recipe}")
    config = load(name, small, RECIPES)
    symbols = 256 if name == "bytes-lm" else 0
    x = torch.zeros(2, 40, dtype=torch.int64 if symbols else torch.float32)
    y = torch.zeros(2, 40 if symbols else 1, dtype=torch.int64).squeeze(1)
    samples = Dataset(x, y, x, y, symbols or 10, symbols)
    for index, children in enumerate(children_of(config.graph, 3)):
        assert component_of(config, index, [name_of(child) for child in children], samples).minding == ()


def test_a_module_minds_its_mode_if_it_is_not_known_not_to_or_has_a_hook() -> None:
    class Own(nn.Linear):
        """May drop something."""

    shared = nn.Dropout(0.5)
    hooked = spectral_norm(nn.Linear(D, D))
    parts = {"c1": nn.Sequential(shared, nn.Linear(D, E), shared), "c2": Own(D, E)}
    component = Component(nn.Sequential(nn.BatchNorm1d(D), hooked), nn.Tanh(), nn.Linear(E, K), parts)
    twin = copy.deepcopy(component)
    assert component.minding == (component.encoder[0], hooked, shared, parts["c2"])  # type: ignore[index]
    late = copy.deepcopy(component)  # with what was found
    for other in (twin, late):
        assert other.minding == tuple(dict(other.named_modules())[name] for name in NAMES)
        with other.evaluating():
            assert modes(component) == [True] * len(modes(component))


def test_what_torch_has_and_is_known_to_do_the_same_in_either_mode_does_not_look_at_it() -> None:
    kinds = {kind for kind in vars(nn).values() if inspect.isclass(kind) and kind.__module__ in MODELESS}
    assert {nn.Linear, nn.LeakyReLU, nn.LogSoftmax, nn.MaxPool2d, nn.AvgPool1d, nn.Upsample, nn.RMSNorm} <= kinds
    assert not {nn.BatchNorm1d, nn.InstanceNorm1d, nn.Dropout, nn.LSTM, nn.TransformerEncoderLayer} & kinds
    looks = set()
    for kind in kinds:
        owns = [own for each in kind.__mro__ if each not in nn.Module.__mro__ for own in vars(each).values()]
        if any("training" in own.__code__.co_names for own in owns if inspect.isfunction(own)):
            looks.add(kind)
    assert looks == set(MINDING)


NAMES = ("encoder.0", "encoder.1", "students.c1.0", "students.c2")


def test_modes_come_back_one_by_one_whatever_happens() -> None:
    component = network("c1")
    component.encoder[1].train(mode=False)  # type: ignore[index]
    before = modes(component)
    with component.evaluating(), component.evaluating():
        assert not any(module.training for module in component.minding)
    assert modes(component) == before
    with pytest.raises(IndexError), component.evaluating():
        component.activation(torch.zeros(0))  # no batch
    assert modes(component) == before
    with evaluating(component.modules()):
        assert not any(modes(component))
    assert modes(component) == before


def test_a_dry_run_moves_no_statistics_and_thaws_nothing() -> None:
    component = network("c1")
    component.encoder[1].train(mode=False)  # type: ignore[index]
    before, then = modes(component), state(component)
    check_fit(component, place("c1"))
    as_in_training(component, place("c1"))
    activation_shape(component, place("c1"))
    assert modes(component) == before
    assert same(component, then)


def test_what_a_target_looks_like_is_known_without_training() -> None:
    component = network("c1")
    before = state(component)
    assert component.target_shape("c1", torch.randn(B, D)) == (B, E)
    assert same(component, before)


def test_what_a_child_s_logits_look_like_is_known_without_training_also_of_one_sample() -> None:
    component = network("c1")
    component.head = nn.Sequential(nn.BatchNorm1d(E), component.head)
    before = state(component)
    sieve = Sieve(component, Method(targets="logits"), CPU, (D,), 0)
    held = Held(0, (torch.randn(B, D),), None, None, 0, 0.0)
    for classes in (K, K + 1):
        told = Target(0, 0, torch.randn(B, E), logits=torch.randn(B, classes))
        assert sieve.answer("c1", held, told) == (classes == K)
    assert same(component, before)


def test_an_examination_judges_the_network_that_ships_and_leaves_no_trace_also_of_a_part_of_one_sample() -> None:
    component = network("c1")
    for id in range(3):
        component.alone(component.activation(batch(id).inputs))
    before, drawn = state(component), torch.get_rng_state()
    exam = Exam(component, dataset(9), ("c1",), B, retry_s=1.0)
    exam.begin(0)
    answers = []
    while (asked := exam.ask("c1", 0.0)) is not None:
        answers.append(torch.randn(len(asked.inputs), E, generator=torch.Generator().manual_seed(0)))
        exam.keep("c1", Target(asked.id, 0, answers[-1]))
    assert [len(each) for each in answers] == [4, 4, 1]
    assert same(component, before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(modes(component))
    component.train(mode=False)
    a, y = component.activation(dataset(9).test_inputs), dataset(9).test_labels
    with_child = component.classify(component.embed(a, {"c1": torch.cat(answers)}))
    assert exam.result is not None
    assert exam.result.student == float((component.alone(a).argmax(dim=1) == y).double().mean())
    assert exam.result.child == float((with_child.argmax(dim=1) == y).double().mean())


@pytest.mark.parametrize("late", ["recompute", "stash"])
def test_an_answer_is_without_dropout_and_its_late_gradient_is_pulled_through_training(late: str) -> None:
    component = network("c1")
    learner = learner_of_ours(component, Staleness(late=late))  # type: ignore[arg-type]
    learner.step(batch(0), 0.0)
    before, asked = state(component), Activation(7, 0, batch(9).inputs)
    target = learner.answer("c0", asked, 0.0)
    assert target is not None
    assert same(component, before)
    plain = copy.deepcopy(component).train(mode=False)
    a = plain.activation(asked.inputs)
    assert torch.equal(target.embedding, plain.embed(a, plain.imitate(a)))
    held = learner.memory.answered("c0", Gradient(7, 0, torch.ones(B, E)))
    assert held is not None
    torch.manual_seed(1)
    pulled = learner.late.answered(held)
    twin = copy.deepcopy(component)
    twin.load_state_dict(before)
    torch.manual_seed(1)
    a = twin.activation(asked.inputs)
    assert torch.equal(pulled, twin.embed(a, twin.imitate(a)))
    assert pulled.requires_grad


def test_a_stashed_gradient_meets_the_weights_of_then_in_training_mode() -> None:
    component = network()
    learner = learner_of_ours(component, Staleness(late="stash"))
    then = copy.deepcopy(component)
    learner.answer("c0", Activation(7, 0, batch(9).inputs), 0.0)
    for id in range(2):
        learner.step(batch(id), 0.0)
    today = copy.deepcopy(component)
    learner.keep(Letter("c0", Gradient(7, 0, torch.ones(B, E))), 0.0)
    torch.manual_seed(1)
    learner.step(batch(5), 0.0)
    torch.manual_seed(1)
    own = nn.functional.cross_entropy(today.alone(today.activation(batch(5).inputs)), batch(5).labels)
    pulled = then.embed(then.activation(batch(9).inputs), {}).sum()
    rows = zip(gradients(own, today), gradients(pulled, then), strict=True)
    for one, other, old, new in zip(*zip(*rows, strict=True), today.parameters(), component.parameters(), strict=True):
        torch.testing.assert_close((old - new) / 0.1, one + other, rtol=1e-3, atol=1e-5)


def gradients(term: torch.Tensor, of: nn.Module) -> list[torch.Tensor]:
    found = torch.autograd.grad(term, list(of.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(of.parameters(), found, strict=True)]


def test_probes_change_no_bit_of_networks_with_modes() -> None:
    names = ("weight_gap", "fresh", "agreement", "cka", "r2", "reliance", "salience")
    ends, found = [], {}
    for probes in (Probes(), Probes(every_steps=1, **dict.fromkeys(names, True))):  # type: ignore[arg-type]
        learner = learner_of_ours(network("c1"), probes=probes)
        torch.manual_seed(3)
        for id in range(4):
            learner.ask(batch(id))
            learner.keep(Letter("c1", Target(id, id, torch.randn(B, E))), 0.0)
            step = learner.step(batch(id), 0.0)
            assert step is not None
            assert step.on_child
            found = dict(step.probes)
        ends.append(state(learner.component))
        assert all(modes(learner.component))
    assert {"r2/c1", "cka/c1", "reliance/zeroed/c1"} <= set(found)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_what_is_said_of_a_child_is_of_the_network_that_ships_whatever_else_is_measured() -> None:
    names, told = ("fresh", "agreement", "r2"), {}
    learner = learner_of_ours(network("c1"), probes=Probes(every_steps=1, **dict.fromkeys(names, True)))  # type: ignore[arg-type]
    for id in range(3):
        learner.ask(batch(id))
        learner.answer("c0", Activation(id, id, batch(id).inputs), 0.0)
        d = torch.randn(B, E)
        learner.keep(Letter("c1", Target(id, id, d)), 0.0)
        if id:
            learner.keep(Letter("c0", Gradient(id - 1, id, torch.ones(B, E))), 0.0)
        ships = copy.deepcopy(learner.component).train(mode=False)
        step = learner.step(batch(id), 0.0)
        assert step is not None
        told |= step.probes
        s = ships.imitate(ships.activation(batch(id).inputs))["c1"]
        assert told["r2/c1"] == pytest.approx(r_squared(s.detach(), d))
    assert {"fresh/cosine", "agreement/parent"} <= set(told)


@pytest.mark.parametrize("recipe", ["mach", "dgl", "mach-stream"])
def test_readings_move_no_statistics(recipe: str) -> None:
    config = load("digits", (f"model.family={THEIRS}", f"recipe={recipe}", "graph=chain", "n_components=2"), RECIPES)
    samples = Dataset(*(torch.randn(33, 64), torch.zeros(33, dtype=torch.int64)) * 2, 10)
    whole = controls.whole_of(config, samples)
    before = state(whole)
    readings(whole, samples, 32)  # the last part is one sample
    assert same(whole, before)
    assert all(modes(whole))


@pytest.mark.parametrize("name", ["backprop", "alone+student", "wide"])
def test_a_control_s_statistics_are_of_what_it_trained_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (f"model.family={THEIRS}", "n_components=2", "graph=chain", "train.steps=4", "evaluate.every_steps=1")
    config = load("digits", (*settings, "train.batch_size=16"), RECIPES)
    samples = Dataset(*(torch.randn(33, 64), torch.zeros(33, dtype=torch.int64)) * 2, 10)
    loops: list[controls.Loop] = []
    loop = controls.loop
    monkeypatch.setattr(controls, "loop", lambda *of: loops.append(loop(*of)) or loops[-1])
    controls.train(name, config, samples)
    tracked = [value for each in loops for key, value in each.forward.state_dict().items() if key.endswith("tracked")]
    assert {int(each) for each in tracked} <= {0, 4}
    assert 4 in tracked


@pytest.mark.parametrize("recipe", ["dgl", "mach-stream", "mach-hop"])
def test_what_a_relay_sends_on_and_answers_moves_no_statistics(recipe: str) -> None:
    settings = (f"model.family={THEIRS}", f"recipe={recipe}", "n_components=2", "train.batch_size=32")
    config = load("digits", settings, RECIPES)
    samples = Dataset(*(torch.randn(33, 64), torch.zeros(33, dtype=torch.int64)) * 2, 10)
    learners = [learner_of(config, index, children, samples, CPU) for index, children in enumerate((["c1"], []))]
    first, second = (exam_of(config, learner, samples) for learner in learners)
    before = [state(learner.component) for learner in learners]
    first.begin(0)
    while (asked := first.ask("c1", 0.0)) is not None:
        for _, answer in second.take("c0", asked):  # type: ignore[union-attr]
            first.keep("c1", answer)
    assert first.result is not None
    assert first.result.full is not None
    assert all(same(learner.component, then) for learner, then in zip(learners, before, strict=True))


def test_an_average_of_the_weights_is_examined_in_evaluation_mode() -> None:
    component = network()
    optimiser = torch.optim.SGD(component.parameters(), lr=0.1)
    learner = Learner(component, optimiser, Loss(), window=2, device=CPU, sample_shape=(D,), average=0.5)
    learner.step(batch(0), 0.0)
    assert learner.examined is not component
    before = state(learner.examined)
    Exam(learner.examined, dataset(9), (), B, retry_s=1.0).begin(0)
    assert same(learner.examined, before)


def test_a_built_family_is_fit_with_modes() -> None:
    assert all(modes(build(Model(embedding=E), (D,), K, ("c1",))))
