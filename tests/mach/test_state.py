"""Saved and gone on from: equal, bit for bit, to never having stopped. What does not fit changes nothing."""

import random
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from configs.errors import DataError
from configs.load import load
from configs.tree import Config
from mach import state as pack
from mach.assemble import learner_of
from mach.checkpoint import load_state, save_state
from mach.data import Batches, Dataset
from mach.data import load as load_data
from mach.learner import Learner
from mach.messages import Activation, Gradient, Letter, Target
from mach.optimisers import OPTIMISERS
from mach.recipes import RECIPES
from mach.shelf import Shelf
from mach.state import Copies, State

BASE = ("n_components=3", "graph=chain", "train.batch_size=8", "train.steps=24")
CPU = torch.device("cpu")


class Alone:
    """A learner between a child and a parent that are arithmetic: what they say depends on the step alone."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.learner = learner_of(config, 1, ("c2",), dataset, CPU)
        self.batches = Batches(dataset, 8, seed=5, noise=config.data.noise)
        self.width = config.model.embedding
        self.shape = dataset.sample_shape

    def steps(self, count: int) -> list[Tensor]:
        """Each on a child's target, with a late gradient that comes after the step: it is at hand between two."""
        losses = []
        for _ in range(count):
            version = self.learner.version
            draw = torch.Generator().manual_seed(version)
            batch = next(self.batches)
            self.learner.ask(batch)
            self.learner.keep(Letter("c2", Target(batch.id, 0, torch.randn(8, self.width, generator=draw))), 0.0)
            self.learner.answer("c0", Activation(version, 0, torch.randn(8, *self.shape, generator=draw)), 0.0)
            losses.append(self.learner.step(batch, 1.0).losses["target"])
            gradient = torch.randn(8, self.width, generator=draw)
            self.learner.keep(Letter("c0", Gradient(version, version, gradient)), 1.0)
        return losses

    def state(self) -> State:
        state = State()
        state.add("learner", self.learner.state(2.0))
        state.add("batches", self.batches.state())
        return state

    def restore(self, state: State) -> None:
        self.learner.restore(state.under("learner"), 3.0)
        self.batches.restore(state.under("batches"))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_data(load("digits", BASE, RECIPES).data)


@pytest.fixture
def make(dataset: Dataset) -> Callable[..., Alone]:
    return lambda *settings: Alone(load("digits", (*BASE, *settings), RECIPES), dataset)


@pytest.mark.parametrize("noise", [0.0, 0.6])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_on_disk_and_back_changes_no_bit(
    make: Callable[..., Alone], tmp_path: Path, optimiser: str, schedule: str, noise: float
) -> None:
    settings = (f"optimiser.name={optimiser}", f"optimiser.schedule={schedule}", f"data.noise={noise}")
    whole, first, second = make(*settings), make(*settings), make(*settings)
    expected = whole.steps(24)
    found = first.steps(11)
    shelf = Shelf(tmp_path / "checkpoints" / "c1")
    save_state(shelf, Copies().take(first.state()), component="c1", version=11, incarnation=1, config="", keep=2)
    second.restore(load_state(shelf, 11, "c1")[1])
    found += second.steps(13)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    ours, theirs = second.state().tensors, whole.state().tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.startswith("learner/late/0/") for name in ours)
    assert any(name.startswith("learner/optimiser/0/") for name in ours)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "nadam"])
@pytest.mark.parametrize("every", [1, 2])
def test_moments_apart_and_late_gradients_gathered_for_them_go_on(
    make: Callable[..., Alone], optimiser: str, every: int
) -> None:
    settings = (f"optimiser.name={optimiser}", "optimiser.separate_late=true", f"method.update_every={every}")
    whole, first, second = make(*settings), make(*settings), make(*settings)
    whole.learner.step(next(whole.batches), 0.0)  # an own gradient without a late one
    first.learner.step(next(first.batches), 0.0)
    expected, found = whole.steps(24), first.steps(12)
    second.restore(Copies().take(first.state()))
    found += second.steps(12)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    ours, theirs = second.state().tensors, whole.state().tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.startswith("learner/apart/0/") for name in ours)
    assert any(name.startswith("learner/gathered_late/") for name in ours) == (every == 2)


def test_what_predict_predicts_from_goes_on(make: Callable[..., Alone]) -> None:
    settings = ("staleness.policies=[predict]",)
    whole, first, second = make(*settings), make(*settings), make(*settings)
    expected, found = whole.steps(24), first.steps(12)
    state = Copies().take(first.state())
    second.restore(state)
    asked = Activation(99, 0, torch.ones(8, *first.shape))
    ours, theirs = (each.learner.answer("c0", asked, 0.0) for each in (first, second))
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours.embedding, theirs.embedding)
    assert second.learner.staleness.counts["predict"] == 1
    found += second.steps(12)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    plain = make()
    plain.restore(state)
    plain.steps(1)
    assert not any(name.startswith("learner/before/") for name in plain.state().tensors)


def test_moments_apart_begin_anew_where_there_were_none(make: Callable[..., Alone]) -> None:
    first, second, third = make(), make("optimiser.separate_late=true"), make()
    first.steps(3)
    second.restore(Copies().take(first.state()))
    second.steps(2)
    third.restore(Copies().take(second.state()))
    assert (second.learner.version, third.learner.version) == (5, 5)


def test_an_epoch_and_its_noise_go_on_where_they_were(dataset: Dataset) -> None:
    whole = Batches(dataset, 500, seed=1, noise=0.3)  # two batches an epoch
    expected = [next(whole) for _ in range(7)]
    first = Batches(dataset, 500, seed=1, noise=0.3)
    for _ in range(3):
        next(first)
    second = Batches(dataset, 500, seed=2, noise=0.3)
    second.restore(first.state())
    for batch in expected[3:]:
        found = next(second)
        assert found.id == batch.id
        assert torch.equal(found.inputs, batch.inputs)
        assert torch.equal(found.labels, batch.labels)


def test_ages_count_on_without_the_time_between(make: Callable[..., Alone]) -> None:
    first, second = make(), make()
    first.steps(2)  # answered at 0, saved at 2, gone on from at 3, used at 4
    second.restore(first.state())
    (age,) = second.learner.step(next(second.batches), 4.0).gradient_ages
    assert (age.versions, age.seconds) == (1, 3.0)


@pytest.mark.parametrize(("was", "now"), list(permutations(OPTIMISERS, 2)))
@pytest.mark.parametrize("apart", ["false", "true"])
def test_what_another_optimiser_left_is_left_out(make: Callable[..., Alone], was: str, now: str, apart: str) -> None:
    """Muon keeps its parameters in another order, so that none of the shapes are those of the others."""
    first, second = (
        make("model.family=conv", f"optimiser.name={name}", f"optimiser.separate_late={apart}") for name in (was, now)
    )
    first.steps(3)
    second.restore(first.state())
    assert second.learner.version == 3
    optimisers = [second.learner.optimiser, second.learner.descent.apart]
    assert not any(each.state_dict()["state"] for each in optimisers if each is not None)
    second.steps(1)


SPOILERS: dict[str, Callable[[State], None]] = {
    "another network": lambda state: state.tensors.update({"learner/component/extra": torch.zeros(1)}),
    r"head.*is torch.float64": lambda state: _map(state, "learner/component/head", torch.Tensor.double),
    r"head.*float32 \(2": lambda state: _map(state, "learner/component/head", lambda tensor: tensor[:2]),
    "belongs to no parameter": lambda state: _map(state, "learner/optimiser/0/exp_avg", lambda tensor: tensor[:2]),
    "optimiser/99/x": lambda state: state.tensors.update({"learner/optimiser/99/x": torch.zeros(())}),
    "apart/99/x": lambda state: state.tensors.update({"learner/apart/99/x": torch.zeros(())}),
    "before/x": lambda state: state.tensors.update({"learner/before/x": torch.zeros(())}),
    "gathered_late/x": lambda state: state.tensors.update({"learner/gathered_late/x": torch.zeros(())}),
    "late/0/gradient is missing": lambda state: state.tensors.__delitem__("learner/late/0/gradient"),
    "late/0: inputs": lambda state: _map(state, "learner/late/0/inputs", lambda tensor: tensor[:, :3]),
}


def _map(state: State, prefix: str, change: Callable[[Tensor], Tensor]) -> None:
    names = [name for name in state.tensors if name.startswith(prefix)]
    assert names
    for name in names:
        state.tensors[name] = change(state.tensors[name])


@pytest.mark.parametrize("said", SPOILERS)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(make: Callable[..., Alone], said: str) -> None:
    first, second = (make("optimiser.separate_late=true") for _ in range(2))
    first.steps(3)
    second.steps(1)
    spoilt = Copies().take(first.state())
    SPOILERS[said](spoilt)
    before = Copies().take(second.state())
    with pytest.raises(DataError, match=said):
        second.learner.restore(spoilt.under("learner"), 0.0)
    after = second.state()
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    assert before.values["learner"]["version"] == after.values["learner"]["version"] == 1


def test_batches_of_other_data_are_refused(dataset: Dataset) -> None:
    batches = Batches(dataset, 8, seed=0)
    next(batches)
    state = batches.state()
    fewer = Dataset(
        dataset.train_inputs[:100], dataset.train_labels[:100], dataset.test_inputs, dataset.test_labels, 10
    )
    with pytest.raises(DataError, match=r"data have 100"):
        Batches(fewer, 8, seed=0).restore(state)
    state.tensors["order"][0] = 10**6
    with pytest.raises(DataError, match="do not have"):
        batches.restore(state)
    state.tensors["generator"] = torch.zeros_like(state.tensors["generator"])
    state.tensors["order"][0] = 0
    with pytest.raises(DataError, match="generator"):
        batches.restore(state)


def test_the_generators_that_dropout_draws_from_go_on() -> None:
    drop = nn.Dropout(0.5)
    torch.rand(3)
    state = pack.of_generators(CPU)
    expected = drop(torch.ones(50))
    torch.rand(7)
    pack.into_generators(CPU, state)
    assert torch.equal(drop(torch.ones(50)), expected)


def test_copies_are_those_of_their_moment_and_their_buffers_are_used_again() -> None:
    weight = torch.tensor([1.0, 2.0])
    copies = Copies()
    first = copies.take(State({"w": weight}))
    weight.zero_()
    assert first.tensors["w"].tolist() == [1.0, 2.0]
    second = copies.take(State({"w": weight, "late": torch.ones(2)}))
    copies.wait()
    assert second.tensors["w"].data_ptr() == first.tensors["w"].data_ptr()
    assert copies.take(State({"w": torch.ones(3)})).tensors["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_of_a_cuda_device_are_those_of_their_moment() -> None:
    device = torch.device("cuda:0")
    weight = torch.ones(1 << 22, device=device)
    copies = Copies()
    for round in range(20):
        weight.fill_(round)
        taken = copies.take(State({"w": weight}))
        weight.fill_(-1.0)  # the next step, before the copy has arrived
        copies.wait()
        assert taken.tensors["w"].is_pinned()
        assert torch.equal(taken.tensors["w"], torch.full((1 << 22,), float(round)))
    state = pack.of_generators(device)
    expected = torch.rand(5, device=device)
    pack.into_generators(device, state)
    assert torch.equal(torch.rand(5, device=device), expected)


def test_whether_a_learner_steps_on_is_not_a_matter_of_when_it_was_saved(make: Callable[..., Alone]) -> None:
    """Saving and going on at random steps, again and again."""
    whole = make("optimiser.name=adamw")
    expected = whole.steps(24)
    random_ = random.Random(3)
    current, found = make("optimiser.name=adamw"), []
    while len(found) < 24:
        found += current.steps(min(random_.randrange(1, 6), 24 - len(found)))
        following = make("optimiser.name=adamw")
        following.restore(Copies().take(current.state()))
        current = following
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_a_learner_is_saved_before_its_first_step_too(make: Callable[..., Alone]) -> None:
    first, second = make(), make()
    second.steps(2)
    second.restore(Copies().take(first.state()))
    assert torch.equal(torch.stack(first.steps(3)), torch.stack(second.steps(3)))
    assert isinstance(second.learner, Learner)
