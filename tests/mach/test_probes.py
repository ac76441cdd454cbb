"""Every probe on numbers that were worked out by hand, and in a learner: measured right, and no weight the wiser."""

import copy
import math

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from built import build
from configs.tree import Loss, Model, Probes, Staleness
from dropping import Scattered
from mach import probes
from mach.component import Component
from mach.draws import held, sow
from mach.learner import Learner, Step
from mach.memory import MEMORY
from mach.messages import Activation, Age, Batch, Gradient, Letter, Target

B, E, K, W, LR = 4, 6, 3, 2, 0.1
CPU = torch.device("cpu")
OFF = Probes(every_steps=1, bytes=False, idle=False)
ALL = Probes(every_steps=1, **dict.fromkeys((*probes.ON_GRADIENTS, *probes.ON_CHILDREN), True))  # type: ignore[arg-type]


def test_the_weight_gap_is_the_root_of_the_mean_square_over_all_weights() -> None:
    now, then = [torch.tensor([1.0, 5.0]), torch.tensor([[2.0]])], [torch.tensor([1.0, 2.0]), torch.tensor([[-2.0]])]
    assert probes.rms_gap(now, then) == pytest.approx(math.sqrt((0 + 9 + 16) / 3))
    assert probes.rms_gap(now, now) == 0.0


def test_a_cosine_is_over_what_both_gradients_reach() -> None:
    one = [torch.tensor([3.0, 0.0]), torch.tensor([100.0]), None]
    other = [torch.tensor([1.0, 1.0]), None, torch.tensor([7.0])]
    assert probes.cosine(one, other) == pytest.approx(1 / math.sqrt(2))
    assert probes.cosine(one, [-each if each is not None else None for each in one]) == pytest.approx(-1.0)
    assert math.isnan(probes.cosine(one, [None, None, None]))
    assert math.isnan(probes.cosine([torch.zeros(2)], [torch.ones(2)]))


def test_the_norm_ratio_is_over_all_parameters() -> None:
    late, fresh = [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([2.0]), None]
    assert probes.norm_ratio(late, fresh) == 2.5
    assert math.isnan(probes.norm_ratio(late, [torch.zeros(1), None]))


def test_cka_follows_its_formula_and_sees_neither_rotation_nor_scale_nor_shift() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # centred, XᵀX = 2·I
    turned = 3.0 * x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 5.0
    assert probes.linear_cka(x, turned) == pytest.approx(1.0)
    y = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])  # yᵀx = (2, 0), yᵀy = 2
    assert probes.linear_cka(x, y) == pytest.approx(4.0 / (math.sqrt(8.0) * 2.0))
    assert math.isnan(probes.linear_cka(x, torch.ones(4, 2)))
    assert probes.linear_cka(x.view(2, 2, 2), y.view(2, 2, 1)) == probes.linear_cka(x, y), "places count like samples"


def test_r_squared_is_one_for_the_target_and_zero_for_the_mean_of_the_batch() -> None:
    d = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    assert probes.r_squared(d, d) == 1.0
    assert probes.r_squared(d.mean(dim=0).expand(2, 2), d) == 0.0
    assert probes.r_squared(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), d) == pytest.approx(1 - 4 / 4)
    assert math.isnan(probes.r_squared(d, torch.ones(2, 2)))


def test_reliance_is_what_the_loss_rises_by_without_a_child() -> None:
    d = {"c1": torch.tensor([[1.0], [2.0], [4.0]]), "c2": torch.tensor([[1.0], [1.0], [1.0]])}
    weights = torch.tensor([[1.0], [10.0], [100.0]])

    def loss(targets: dict[str, Tensor]) -> Tensor:
        return -(weights * targets["c1"]).sum() - targets["c2"].sum()

    assert probes.reliance(loss, d) == {  # type: ignore[arg-type]
        "zeroed/c1": 421.0,
        "shuffled/c1": 421.0 - (4 + 10 + 200),
        "zeroed/c2": 3.0,
        "shuffled/c2": 0.0,
    }
    assert set(probes.reliance(loss, {name: each[:1] for name, each in d.items()})) == {"zeroed/c1", "zeroed/c2"}  # type: ignore[arg-type]


def test_bytes_a_sample_and_the_idle_share() -> None:
    assert probes.bytes_per_sample({"c1": 640, "c2": 32}, 64) == {"c1": 10.0, "c2": 0.5}
    assert probes.bytes_per_sample({"c1": 640}, 0) == {}
    assert probes.idle_share(1.0, 4.0) == 0.25
    assert probes.idle_share(5.0, 4.0) == 1.0
    assert math.isnan(probes.idle_share(0.0, 0.0))


def learner_with(settings: Probes, late: str = "recompute", dropout: float = 0.0) -> Learner:
    """In float64, under plain SGD; with dropout, a network that draws, and not from torch's generator alone."""
    torch.manual_seed(0)
    component = build(Model(embedding=E, joiner=(8,), student=(8,)), (5,), K, ("c1",)).double()
    if dropout:
        component.joiner = torch.nn.Sequential(torch.nn.Dropout(dropout), Scattered(), component.joiner)
    return Learner(
        component,
        torch.optim.SGD(component.parameters(), lr=LR),
        Loss(),
        window=W,
        device=CPU,
        sample_shape=(5,),
        staleness=Staleness(late=late),  # type: ignore[arg-type]
        probes=settings,
    )


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(id: int) -> Batch:
    return Batch(id, drawn(id, B, 5), torch.randint(K, (B,), generator=torch.Generator().manual_seed(id)))


def turn(learner: Learner, id: int, lag: int) -> Step:
    """A step on a child's answer, with the gradient of the answer given `lag` turns ago."""
    learner.ask(batch(id))
    learner.answer("c0", Activation(id, 0, drawn(100 + id, B, 5)), 0.0)
    learner.keep(Letter("c1", Target(id, 0, drawn(200 + id, B, E)), Age(0, 0.0)), 0.0)
    if id >= lag:
        learner.keep(Letter("c0", Gradient(id - lag, 0, drawn(300 + id, B, E))), 0.0)
    step = learner.step(batch(id), 0.0)
    assert step is not None
    return step


@pytest.mark.parametrize("late", ["recompute", "stash"])
def test_weights_and_generators_are_the_same_with_every_probe_and_with_none(late: str) -> None:
    ends = {}
    for name, settings in (("off", OFF), ("all", ALL)):
        learner = learner_with(settings, late, dropout=0.25)
        sow(1)
        told = [turn(learner, id, 2).probes for id in range(12)]
        ends[name] = ([each.clone() for each in learner.component.parameters()], held())
        assert any(told) == (name == "all")
    assert all(torch.equal(a, b) for a, b in zip(ends["off"][0], ends["all"][0], strict=True))
    assert str(ends["off"][1]) == str(ends["all"][1])
    assert torch.equal(ends["off"][1].torch, ends["all"][1].torch)


def test_probes_that_are_off_copy_and_compute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a probe that is off did something")

    off, on = learner_with(OFF), learner_with(ALL)
    for learner in (off, on):
        turn(learner, 0, 2)  # the shapes of answers are looked up once a life
    for name in ("seen", "gradients", "rms_gap", "aside"):
        monkeypatch.setattr(probes, name, forbidden)
    monkeypatch.setattr(copy, "deepcopy", forbidden)
    assert not any(turn(off, id, 2).probes for id in range(1, 7))
    with pytest.raises(AssertionError, match="did something"):
        turn(on, 1, 2)


def test_old_weights_are_compared_when_a_gradient_is_late_of_them() -> None:
    learner = learner_with(replace_with(weight_gap=True, fresh=True))
    then = copy.deepcopy(learner.component)
    first = [turn(learner, id, 3).probes for id in range(3)]
    now = copy.deepcopy(learner.component)
    told = turn(learner, 3, 3).probes
    assert not any(first)
    rows = zip(now.state_dict().values(), then.state_dict().values(), strict=True)
    squares = sum(float((a - b).square().sum()) for a, b in rows)
    count = sum(each.numel() for each in now.parameters())
    assert told["weight_gap/rms"] == pytest.approx(math.sqrt(squares / count))
    assert told["weight_gap/versions"] == 3.0
    x, g = drawn(100, B, 5), drawn(303, B, E)
    old, new = (pulled(net, x, g) for net in (then, now))
    assert told["fresh/cosine"] == pytest.approx(float(old @ new / (old.norm() * new.norm())))
    assert told["fresh/norm_ratio"] == pytest.approx(float(old.norm() / new.norm()))
    assert told["fresh/cosine"] < 1.0


def test_agreement_is_the_cosine_of_the_late_and_the_own_gradient() -> None:
    learner = learner_with(replace_with(agreement=True))
    for id in range(2):
        turn(learner, id, 2)
    net = copy.deepcopy(learner.component)
    told = turn(learner, 2, 2).probes
    b, d = batch(2), drawn(202, B, E)
    s = net.students["c1"](b.inputs)
    child = F.cross_entropy(net.classify(net.embed(b.inputs, {"c1": d})), b.labels)
    alone = F.cross_entropy(net.classify(net.embed(b.inputs, {"c1": s})), b.labels)
    names = [name for name, _ in net.named_parameters() if not name.startswith("head")]
    own = torch.autograd.grad(child + alone + F.mse_loss(s, d), [net.get_parameter(name) for name in names])
    late = pulled(net, drawn(100, B, 5), drawn(302, B, E))
    mine = torch.cat([each.flatten() for each in own])
    assert told == {"agreement/parent": pytest.approx(float(mine @ late / (mine.norm() * late.norm())))}


def test_what_is_said_of_a_child_is_of_the_answered_batch_at_todays_weights() -> None:
    learner = learner_with(replace_with(cka=True, r2=True, reliance=True))
    turn(learner, 0, 9)
    net = copy.deepcopy(learner.component)
    told = turn(learner, 1, 9).probes
    b, d = batch(1), drawn(201, B, E)
    with torch.no_grad():
        s = net.students["c1"](b.inputs)
        ces = [
            float(F.cross_entropy(net.classify(net.embed(b.inputs, {"c1": each})), b.labels))
            for each in (d, torch.zeros_like(d), d[[3, 0, 1, 2]])
        ]
        e = net.embed(b.inputs, {"c1": s})
    assert told == {
        "cka/c1": pytest.approx(probes.linear_cka(e, d)),
        "r2/c1": pytest.approx(float(1 - (d - s).square().sum() / (d - d.mean(0)).square().sum())),
        "reliance/zeroed/c1": pytest.approx(ces[1] - ces[0]),
        "reliance/shuffled/c1": pytest.approx(ces[2] - ces[0]),
    }


def test_a_probe_is_due_again_after_its_steps_and_waits_for_something_to_tell() -> None:
    learner = learner_with(replace_with(r2=True, every_steps=3))
    assert learner.step(batch(50), 0.0).probes == {}, "no child has answered"  # type: ignore[union-attr]
    told = [bool(turn(learner, id, 9).probes) for id in range(7)]
    assert told == [True, False, False, True, False, False, True]


def test_a_probe_with_nothing_to_say_of_what_is_at_hand_is_not_tried_in_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = learner_with(replace_with(reliance=True, every_steps=3))
    tried: list[int] = []
    monkeypatch.setitem(probes.ON_CHILDREN, "reliance", lambda *_: tried.append(learner.version) or {})  # type: ignore[arg-type]
    assert not any(turn(learner, id, 9).probes for id in range(7))
    assert tried == [0, 3, 6]


def test_old_weights_that_no_gradient_is_late_of_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PATIENCE", 3)
    learner = learner_with(replace_with(weight_gap=True))
    told = [turn(learner, id, 2 if id > 6 else 99).probes for id in range(9)]
    assert not any(told)
    assert learner.probes._old is not None
    assert learner.probes._old.version == 8


def test_old_weights_are_kept_only_if_a_gradient_may_still_come() -> None:
    learner = learner_with(replace_with(weight_gap=True))
    learner.ask(batch(0))  # in skip wiring nothing comes back for that
    learner.step(batch(0), 0.0)
    assert learner.probes._old is None
    for id in range(1, 1 + MEMORY * W):
        turn(learner, id, 99)
    assert learner.probes._old is not None
    assert learner.probes._old.version == 1
    turn(learner, 1 + MEMORY * W, 99)  # its answer is forgotten now: later ones have pushed it out
    assert learner.probes._old.version == 1 + MEMORY * W


def replace_with(**changes: object) -> Probes:
    return msgspec.structs.replace(OFF, **changes)


def pulled(net: Component, x: Tensor, g: Tensor) -> Tensor:
    """The gradient of ⟨e(x), g⟩ for every weight but the head's, as one line."""
    net = copy.deepcopy(net)
    e = net.embed(x, {"c1": net.students["c1"](x)})
    wanted = [parameter for name, parameter in net.named_parameters() if not name.startswith("head")]
    return torch.cat([each.flatten() for each in torch.autograd.grad((e * g).sum(), wanted)])
