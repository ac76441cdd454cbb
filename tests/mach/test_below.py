"""The head that looks down the chain, against its formulas: the copies, what travels up, what is learnt of it."""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from msgspec import structs
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import DataError
from configs.load import load
from configs.tree import Config
from mach.assemble import component_of, learner_of
from mach.below import Below, chain
from mach.component import Component
from mach.data import Batches, Dataset
from mach.data import load as load_data
from mach.graph import name_of
from mach.learner import Learner
from mach.messages import Activation, Age, Batch, Letter, Target
from mach.momentum import flat, frozen
from mach.optimisers import hidden_weights, optimiser_of, schedule_of
from mach.recipes import RECIPES
from mach.state import Copies
from mach.whole import Whole

CPU = torch.device("cpu")
DATASET = load_data(Config().data)
DOUBLE = replace(DATASET, train_inputs=DATASET.train_inputs.double(), test_inputs=DATASET.test_inputs.double())
B, N, ROUNDS = 16, 4, 30


def config(*settings: str) -> Config:
    plain = ("data.noise=0", f"train.batch_size={B}", f"n_components={N}", "seed=3", "optimiser.schedule=constant")
    return load("digits", ("recipe=mach-stream", *plain, *settings), RECIPES)


def children_at(index: int) -> list[str]:
    return [name_of(index + 1)] if index < N - 1 else []


def learner_at(index: int, settings: Config, component: Component | None = None, data: Dataset = DATASET) -> Learner:
    return learner_of(settings, index, children_at(index), data, CPU, component)


def below_of(component: Component) -> Below:
    assert component.below is not None
    return component.below


def readout_of(component: Component) -> tuple[nn.Module, nn.Module]:
    return below_of(component).joiner, below_of(component).head


def batch(seed: int = 0) -> Batch:
    return next(Batches(DATASET, B, seed=seed))


def weights_like(learner: Learner, seed: int = 0) -> Tensor:
    size = below_of(learner.component).shape("c1")
    assert size is not None
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def answered(learner: Learner, asked: Activation, layer: Tensor | None, version: int = 0) -> Letter:
    embedding = torch.empty(0)
    if learner.method.targeted(asked.id):
        embedding = torch.zeros(learner.component.target_shape("c1", *learner.hold(batch()).come))
    return Letter("c1", Target(asked.id, version, embedding, layer=layer), Age(0, 0.0))


def test_copies_begin_as_the_components_begin_and_compute_what_the_chain_computes() -> None:
    settings = config()
    parts = [component_of(settings, i, children_at(i), DATASET) for i in range(N)]
    assert parts[-1].below is None, "nothing follows the last"
    for k, part in enumerate(parts[:-1]):
        assert list(below_of(part).sections) == [name_of(i) for i in range(k + 1, N)]
        assert not list(below_of(part).parameters()), "copies learn nothing"
    children = [[i + 1] if i < N - 1 else [] for i in range(N)]
    x = DATASET.test_inputs[:5]
    whole = Whole(parts, children, wiring="stream", context=True)
    come: tuple[Tensor, ...] = (x,)
    for part in parts[:-1]:
        a = part.activation(*come)
        torch.testing.assert_close(below_of(part)(a, x)[1], whole(x))
        come = (a, x)


def test_what_a_component_shows_is_what_its_parent_takes_and_ends_in_the_last_head() -> None:
    settings = config()
    parts = [component_of(settings, i, children_at(i), DATASET) for i in range(N)]
    for parent, child in itertools.pairwise(parts):
        name = below_of(parent).child
        shown = flat(chain(child))
        assert below_of(parent).shape(name) == shown.shape
        assert below_of(parent).shape("c9") is None
        assert torch.equal(shown, flat(below_of(parent).weights())), "at the start they are the same"
    assert torch.equal(below_of(parts[0]).weights()[-1], parts[-1].head.bias)


@pytest.mark.parametrize(
    ("wrong", "ends", "notes"),
    [
        (0, True, ["in its copy of c1's section"]),
        (1, True, ["in its copy of c2's section"]),
        (3, True, ["in its copy of c2's section"]),
        (3, False, []),  # a head of its own
    ],
)
def test_an_error_in_a_copy_says_whose_it_is(wrong: int, ends: bool, notes: list[str]) -> None:
    parts = [nn.Linear(3, 3) for _ in range(4)]
    parts[wrong] = nn.Linear(5, 3)
    sections = {"c1": parts[0], "c2": parts[1]}
    below = Below(sections, parts[2], parts[3], 0.9, context=False, ends=ends)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as raised:
        below(torch.zeros(4, 3), torch.zeros(4, 3))
    assert getattr(raised.value, "__notes__", []) == notes


def test_copies_approach_what_is_shown_by_how_many_versions_went_by() -> None:
    mu = 0.9
    below = Below({"c1": nn.Linear(3, 3), "c2": nn.Linear(3, 3)}, nn.Linear(3, 2), nn.Linear(2, 5), mu, context=False)
    (size,) = below.shape("c1") or (0,)
    assert size == 2 * 12 + 8 + 15
    shown = [torch.randn(size) for _ in range(4)]
    below.take("c1", shown[0], 40)
    average = shown[0]
    for weights, version, passed in zip(shown[1:], (41, 51, 48), (1, 10, 3), strict=True):
        below.take("c1", weights, version)
        average = mu**passed * average + (1 - mu**passed) * weights
        torch.testing.assert_close(flat(below.weights()), average)


@pytest.mark.parametrize(
    ("every", "study", "reach", "pull", "schedule"),
    [(1, 1, 0, 1.0, "cosine"), (3, 2, 0, 0.3, "constant"), (1, 3, 1, 1.0, "linear"), (3, 1, 2, 0.0, "cosine")],
)
def test_a_chain_of_learners_equals_a_loop_that_is_written_out(
    every: int, study: int, reach: int, pull: float, schedule: str
) -> None:
    """Answers of a round come in the next, so that what a parent has is a hop older than what its child has."""
    mu, teach = 0.8, 2
    own = (f"method.student_every={study}", f"method.reach={reach}", f"method.targets_every={teach}")
    own += (
        f"loss.distill={study % 2}",
        f"method.student_pull={pull}",
        f"train.steps={ROUNDS}",
        f"optimiser.schedule={schedule}",
    )
    settings = config(f"method.momentum_every={every}", f"method.momentum_decay={mu}", *own)
    loss = settings.loss
    rate = schedule_of(settings)
    parts = [component_of(settings, i, children_at(i), DATASET).double() for i in range(N)]
    mine = [copy.deepcopy(part) for part in parts]
    learners = [learner_at(i, settings, part, DOUBLE) for i, part in enumerate(parts)]
    optimisers = [optimiser_of(settings.optimiser, part) for part in mine]
    copies = [[frozen(each.encoder) for each in mine[i + 1 : i + 1 + (reach or N)]] for i in range(N)]
    to_end = [i + 1 + (reach or N) >= N for i in range(N)]
    ends = [(frozen(mine[-1].joiner), frozen(mine[-1].head)) if to_end[i] else readout_of(mine[i]) for i in range(N)]
    coming: list[tuple[Tensor, int] | None] = [None] * N  # by receiver: weights, and the version that showed them
    known: list[int] = [-1] * N
    targets: list[tuple[Tensor, Tensor, Tensor, Tensor] | None] = [None] * N  # by receiver: what came, x, d
    gone = {
        "constant": lambda done: 1.0,
        "linear": lambda done: done,
        "cosine": lambda done: math.sin(math.pi / 2 * done) ** 2,
    }
    drawn, letters = Batches(DOUBLE, B, seed=9), [[] for _ in range(N)]  # type: ignore[var-annotated]

    def held(i: int) -> list[Tensor]:
        return [each for part in (*copies[i], *(ends[i] if to_end[i] else ())) for each in part.buffers()]

    for t in range(ROUNDS):
        x, asked = next(drawn), None
        for i, learner in enumerate(learners):  # the house
            for letter in letters[i]:
                learner.keep(letter, 0.0)
            letters[i] = []
            if asked is not None:
                assert learner.answer(name_of(i - 1), asked, 0.0) is None
            taken = x if asked is None else learner.stream.next()  # type: ignore[union-attr]
            asked = learner.ask(taken, name_of(i + 1)) if i < N - 1 else None
            step = learner.step(taken, 0.0)
            assert step is not None
            for peer, message in step.owed:
                assert isinstance(message, Target), "nothing is owed for a target"
                assert (message.layer is not None) == (t % every == 0)
                assert bool(message.embedding.numel()) == (x.id % teach == 0)
                letters[int(peer[1:])].append(Letter(name_of(i), message, Age(0, 0.0)))
        a, inputs, labels = x.inputs, x.inputs, x.labels  # the same, written out
        sent, told = list(coming), list(targets)
        coming, targets = [None] * N, [None] * N
        taken_in: list[Tensor] = []
        for i, part in enumerate(mine):
            if sent[i] is not None:
                weights, version = sent[i]  # type: ignore[misc]
                kept = 0.0 if known[i] < 0 else mu ** (version - known[i])
                sizes = [each.numel() for each in held(i)]
                for to, shown in zip(held(i), torch.split(weights, sizes), strict=True):
                    to.copy_(kept * to + (1 - kept) * shown.view_as(to))
                known[i] = version
            taken_in.append(a)
            a = part.encoder(a) if i == 0 else part.encoder(a, inputs)
            terms: list[Tensor] = []
            if i < N - 1:
                h = a
                for section in copies[i]:
                    h = section(h, inputs)
                e = ends[i][0](h)
                z = ends[i][1](e)
                terms.append(F.cross_entropy(z, labels))
                if i == 0 or x.id % study == 0:
                    read = a.detach()
                    if i == 0:
                        share = pull * min(1.0, 2 * gone[schedule](t / ROUNDS))  # all of it when half the rate is
                        read = share * a + (1 - share) * a.detach()
                    z_s = part.head(part.joiner(torch.cat([read, part.students[name_of(i + 1)](read)], dim=1)))
                    kl = F.kl_div(z_s.log_softmax(1), z.detach().softmax(1), reduction="batchmean")
                    terms += [loss.student * F.cross_entropy(z_s, labels), loss.logits * kl]
            else:
                e = part.joiner(a)
                terms.append(F.cross_entropy(part.head(e), labels))
            if told[i] is not None:
                old, old_x, old_y, d = told[i]  # type: ignore[misc]
                old_a = (part.encoder(old) if i == 0 else part.encoder(old, old_x)).detach()
                if loss.distill > 0.0:
                    terms.append(loss.distill * F.mse_loss(part.students[name_of(i + 1)](old_a), d))
                terms.append(F.cross_entropy(part.head(part.joiner(torch.cat([old_a, d], dim=1))), old_y))
            if i > 0 and t % every == 0:
                own = part.encoder.parameters()
                near = copies[i][: reach - 1] if reach else copies[i]
                rest = [each for copied in (*near, *(ends[i] if to_end[i - 1] else ())) for each in copied.buffers()]
                rest = rest if i < N - 1 else [*part.joiner.parameters(), *part.head.parameters()]
                coming[i - 1] = (flat([*own, *rest]), t)
            if i > 0 and x.id % teach == 0:
                targets[i - 1] = (taken_in[i - 1], inputs, labels, e.detach())
            optimisers[i].zero_grad()
            if rate is not None:
                optimisers[i].param_groups[0]["lr"] = rate(t)
            torch.stack(terms).sum().backward()
            optimisers[i].step()
            a = a.detach()
    for ours, theirs in zip(parts, mine, strict=True):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert float((one - other).detach().abs().max()) <= 1e-9
    for learner, i in zip(learners[:-1], range(N), strict=False):
        torch.testing.assert_close(flat(below_of(learner.component).weights()), flat(held(i)))
    assert not any(learner.unfit or learner.forgotten for learner in learners)


def test_a_parent_gets_the_embedding_at_the_end_of_the_copies() -> None:
    settings = config("method.targets_every=1")
    child = learner_at(1, settings)
    parent = learner_at(0, settings)
    asked = parent.ask(batch(), "c1")
    child.answer("c0", asked, 0.0)
    before = copy.deepcopy(child.component)
    step = child.step(child.stream.next(), 0.0)  # type: ignore[union-attr]
    assert step is not None
    ((_, told),) = step.owed
    assert isinstance(told, Target)
    a = before.activation(asked.inputs, asked.context)
    torch.testing.assert_close(told.embedding, below_of(before)(a, asked.context)[0])
    assert told.gradient is None
    x = DATASET.test_inputs[:3]
    parts = [component_of(settings, i, children_at(i), DATASET) for i in range(N)]
    whole = Whole(parts, [[1], [2], [3], []], wiring="stream", context=True)
    a0 = parts[0].activation(x)
    e1 = below_of(parts[1])(parts[1].activation(a0, x), x)[0]
    z = parts[0].classify(parts[0].embed(a0, {"c1": e1}))
    torch.testing.assert_close(whole.read(0, (x,), depth=1), z)


def test_without_an_answer_a_component_trains_on_with_the_copies_that_it_has() -> None:
    learner = learner_at(0, config())
    before = flat(below_of(learner.component).weights())
    for seed in range(5):
        assert learner.step(batch(seed), 0.0) is not None
    assert learner.version == 5
    assert torch.equal(flat(below_of(learner.component).weights()), before)


@pytest.mark.parametrize("wrong", ["short", "long", "flat", "kind", "nan"])
def test_weights_that_cannot_be_are_never_taken(wrong: str) -> None:
    learner = learner_at(0, config())
    shown = weights_like(learner)
    wrongs: dict[str, Any] = {
        "short": shown[:-1],
        "long": torch.cat([shown, shown[:1]]),
        "flat": shown[None],
        "kind": shown.long(),
        "nan": torch.where(torch.arange(len(shown)) == 5, math.nan, shown),
    }
    before = copy.deepcopy(learner.component.state_dict())
    learner.keep(answered(learner, learner.ask(batch(), "c1"), wrongs[wrong], version=3), 0.0)
    assert learner.unfit == {"target": 1}
    assert all(torch.equal(each, before[name]) for name, each in learner.component.state_dict().items())
    learner.keep(answered(learner, learner.ask(batch(1), "c1"), shown, version=3), 0.0)
    assert torch.equal(flat(below_of(learner.component).weights()), shown)


def test_a_receipt_that_carries_a_target_is_refused_and_one_that_does_not_costs_no_pass() -> None:
    learner = learner_at(0, config("method.targets_every=2", "probes.r2=true", "probes.every_steps=1"))
    drawn = Batches(DATASET, B, seed=1)
    batches = [next(drawn) for _ in range(3)]
    assert [each.id % 2 for each in batches] == [0, 1, 0]
    d = torch.ones(learner.component.target_shape("c1", batches[0].inputs))
    for each, told in zip(batches, (d, d, d), strict=True):
        asked = learner.ask(each, "c1")
        learner.keep(Letter("c1", Target(asked.id, 0, told), Age(0, 0.0)), 0.0)
    assert learner.unfit == {"target": 1}, "the one that was to be a receipt"
    step = learner.step(next(drawn), 0.0)
    assert step is not None
    assert len(step.target_ages) == 2
    assert step.on_child
    asked = learner.ask(each := structs.replace(next(drawn), id=7), "c1")
    learner.keep(Letter("c1", Target(7, 0, torch.empty(0)), Age(0, 0.0)), 0.0)
    held = learner.memory.arrived[0].held
    assert held.id == each.id
    step = learner.step(next(drawn), 0.0)
    assert step is not None
    assert not step.on_child
    assert "r2/c1" not in step.probes
    assert "distill" not in step.losses
    assert learner.unfit == {"target": 1}


@pytest.mark.parametrize("every", [1, 2])
def test_logits_that_nobody_asked_for_are_refused(every: int) -> None:
    learner = learner_at(0, config("recipe=mach-hop", "loss.logits=1", f"method.targets_every={every}"))
    asked = learner.ask(structs.replace(batch(), id=1), "c1")
    d = torch.ones(learner.component.target_shape("c1", batch().inputs)) if every == 1 else torch.empty(0)
    learner.keep(Letter("c1", Target(1, 0, d, logits=torch.full((B, 10), math.nan)), Age(0, 0.0)), 0.0)
    assert learner.unfit == {"target": 1}
    step = learner.step(batch(asked.id + 1), 0.0)
    assert step is not None
    assert "logits" not in step.losses


def test_a_life_goes_on_with_the_copies_that_it_had() -> None:
    settings = config("method.momentum_decay=0.5")
    learner, other = learner_at(0, settings), learner_at(0, settings)
    one, two = weights_like(learner, 1), weights_like(learner, 2)
    learner.keep(answered(learner, learner.ask(batch(), "c1"), one, version=7), 0.0)
    learner.step(batch(), 0.0)
    other.restore(Copies().take(learner.state(0.0)), 0.0)
    for each in (learner, other):
        each.keep(answered(each, each.ask(batch(1), "c1"), two, version=9), 0.0)
        each.step(batch(1), 0.0)
    found, expected = other.component.state_dict(), learner.component.state_dict()
    assert all(torch.equal(each, expected[name]) for name, each in found.items())
    torch.testing.assert_close(flat(below_of(other.component).weights()), 0.25 * one + 0.75 * two)
    with pytest.raises(DataError, match="below"):
        learner_at(0, config("method.momentum_head=none")).restore(learner.state(0.0), 0.0)


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        ("digits", ()),
        ("mnist1d", ("data.train_samples=50", "data.test_samples=50")),
        ("bytes-lm", ("data.train_samples=50", "data.test_samples=50", "model.blocks=2")),
    ],
)
@pytest.mark.parametrize("context", [False, True])
def test_every_family_can_be_looked_down_through(data: str, settings: tuple[str, ...], context: bool) -> None:
    words = ("recipe=mach-stream", f"method.context={context}", "n_components=3", *settings)
    some = load(data, words, RECIPES)
    dataset = load_data(some.data)
    parts = [component_of(some, i, [name_of(i + 1)] if i < 2 else [], dataset) for i in range(3)]
    x = dataset.test_inputs[:2]
    z = below_of(parts[0])(parts[0].activation(x), x)[1]
    torch.testing.assert_close(z, Whole(parts, [[1], [2], []], wiring="stream", context=context)(x))


def test_the_global_generator_is_left_alone_and_other_weights_are_as_without() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    looking = component_of(config(), 0, ["c1"], DATASET)
    assert torch.equal(torch.rand(1), expected)
    plain = component_of(config("method.momentum_head=none"), 0, ["c1"], DATASET)
    held = partial(dict.__getitem__, dict(looking.named_parameters()))
    assert all(torch.equal(held(name), weight) for name, weight in plain.named_parameters())


def test_how_old_the_copies_are_is_measured() -> None:
    learner = learner_at(0, config("probes.every_steps=1"))
    drawn = Batches(DATASET, B, seed=1)
    before = learner.step(next(drawn), 0.0)
    assert before is not None
    assert before.probes == {}, "nothing was shown yet"
    for version, shown, age in ((40, weights_like(learner), 0.0), (42, None, 2.0), (45, None, 5.0)):
        each = next(drawn)
        asked = learner.ask(each, "c1")
        letter = answered(learner, asked, shown, version)
        learner.keep(letter, 0.0)
        step = learner.step(each, 0.0)
        assert step is not None
        assert step.probes == {"copies/c1": age}
    assert not learner.unfit


@pytest.mark.parametrize("data", ["digits", "mnist1d", "bytes-lm"])
def test_within_a_reach_a_component_is_as_large_in_a_deep_chain_as_in_a_short_one(data: str) -> None:
    def sizes(count: int, reach: int) -> list[int]:
        few = ("data.train_samples=50", "data.test_samples=50", f"n_components={count}", f"method.reach={reach}")
        some = load(data, ("recipe=mach-stream", *few), RECIPES)
        dataset = load_data(some.data)
        names = [[name_of(i + 1)] if i < count - 1 else [] for i in range(count)]
        parts = [component_of(some, i, names[i], dataset) for i in range(count)]
        for parent, child in itertools.pairwise(parts):
            assert below_of(parent).shape(below_of(parent).child) == flat(chain(child, reach)).shape
        return [sum(each.numel() for each in part.state_dict().values()) for part in parts]

    short, deep = sizes(4, 2), sizes(7, 2)
    assert deep[0] == short[0]
    assert len(set(deep[1:5])) == 1, "all that neither draw nor see the end"
    assert deep[-3:] == short[-3:]
    everything = sizes(7, 0)
    assert everything[0] > everything[1] > everything[2] > everything[3] > deep[1]
    assert sizes(4, 3) == sizes(4, 0) == sizes(4, 9), "nothing is out of reach"


def test_muon_leaves_the_head_of_a_readout_to_adamw_as_it_does_the_component_s_own() -> None:
    part = component_of(config("method.reach=1", "optimiser.name=muon"), 0, ["c1"], DATASET)
    joiner, head = readout_of(part)
    hidden = {id(weight) for weight in hidden_weights(part)}
    assert {id(weight) for weight in joiner.parameters() if weight.dim() == 2} <= hidden
    assert not hidden & {id(weight) for weight in (*head.parameters(), *part.head.parameters())}
