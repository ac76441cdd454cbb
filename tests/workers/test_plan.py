"""A plan is a pure value: devices dealt round-robin, edges by the graph, impossible wishes refused."""

from pathlib import Path

import msgspec
import pytest

from configs.errors import ConfigError
from configs.load import load
from mach.recipes import RECIPES
from workers.plan import Plan, make_plan, unanswered


def plan_of(*settings: str, devices: tuple[str, ...] = ("cpu",), lockstep: bool = False) -> Plan:
    config = load("digits", settings, RECIPES)
    return make_plan(config, run="r", directory=Path("r"), sockets=Path("s"), devices=devices, lockstep=lockstep)


def test_devices_are_dealt_round_robin() -> None:
    plan = plan_of("n_components=5", devices=("0", "3"))
    assert [process.device for process in plan.processes] == ["0", "3", "0", "3", "0"]


def test_a_ring_gives_everybody_a_child_and_a_parent() -> None:
    plan = plan_of("n_components=3")
    assert [(p.name, p.children, p.parents) for p in plan.processes] == [
        ("c0", ("c1",), ("c2",)),
        ("c1", ("c2",), ("c0",)),
        ("c2", ("c0",), ("c1",)),
    ]


def test_a_chain_has_two_ends() -> None:
    plan = plan_of("n_components=2", "graph=chain")
    assert [(p.children, p.parents) for p in plan.processes] == [(("c1",), ()), ((), ("c0",))]


def test_a_stub_takes_no_device() -> None:
    plan = plan_of("components.1.stub.latency_ms=5", devices=("0",))
    assert [(p.kind, p.device) for p in plan.processes][:2] == [("trainer", "0"), ("stub", "cpu")]


@pytest.mark.parametrize(
    ("settings", "below"),
    [
        (("wiring=stream", "graph=chain", "components={1: {stub: {}}, 2: {stub: {}}}"), ["", "", "c1", "c1"]),
        (("wiring=stream", "graph=[[1,2],[3],[],[]]", "components={1: {stub: {}}}"), ["", "", "", "c1"]),
        (("wiring=stream", "graph=chain", "components={0: {stub: {}}}"), ["", "c0", "c0", "c0"]),
        (("wiring=stream", "graph=chain"), ["", "", "", ""]),
        (("graph=chain", "components={1: {stub: {}}}"), ["", "", "", ""]),  # there everybody examines itself
    ],
)
def test_in_a_stream_it_is_known_who_stands_below_a_stub(settings: tuple[str, ...], below: list[str]) -> None:
    assert [process.below for process in plan_of("n_components=4", *settings).processes] == below


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("wiring=stream", "graph=chain"), [True, True, True, False]),  # questions go down all the way
        (("wiring=stream", "graph=chain", "components={1: {stub: {}}}"), [False, True, True, False]),
        (("wiring=stream", "graph=[[1,2],[3],[],[]]"), [True, True, False, False]),
        (("graph=chain",), [False, False, True, False]),  # and here to children alone
        (("graph=ring",), [False, False, True, False]),
        (("graph=kgraph",), [True, True, True, False]),
    ],
)
def test_whose_examination_needs_a_stub_that_is_silent(settings: tuple[str, ...], told: list[bool]) -> None:
    plan = plan_of("n_components=4", *settings)
    assert [unanswered(plan, process, {"c3"}) for process in plan.processes] == told
    assert not any(unanswered(plan, process, ()) for process in plan.processes)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [("backprop", "with gradients end to end"), ("dni", "with guessed gradients"), ("dgl", ""), ("mach", "")],
)
def test_where_what_comes_back_is_all_there_is_to_learn_nobody_goes_on_alone(recipe: str, why: str) -> None:
    assert plan_of(f"recipe={recipe}").together == why


def test_every_run_has_an_id_of_its_own() -> None:
    assert plan_of().run_id != plan_of().run_id


def test_a_plan_survives_json() -> None:
    plan = plan_of("components.1.stub.crash_at=20")
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_a_plan(recipe: str, count: int) -> None:
    assert len(plan_of(f"recipe={recipe}", f"n_components={count}").processes) == count


@pytest.mark.parametrize(
    "settings",
    [
        ("recipe=mach-hop", "method.heads=last", "n_components=2"),  # the last one's gradient comes to all there are
        ("recipe=mach-hop", "method.heads=last", "n_components=3", "graph=[[1,2],[],[]]"),
        ("recipe=dni", "method.targets=embedding", "n_components=2"),
        ("recipe=ddg", "method.targets=embedding"),
        ("recipe=dgl", "method.heads=last", "n_components=1"),
        ("method.targets=none", "n_components=1"),
        ("method.heads=last", "n_components=1"),
        ("recipe=ddg", "method.heads=every", "staleness.policies=[clip]"),
        ("recipe=dni", "staleness.policies=[accumulate,clip]"),
    ],
)
def test_what_leaves_everybody_something_to_learn_has_a_plan(settings: tuple[str, ...]) -> None:
    assert plan_of(*settings).processes


@pytest.mark.parametrize(
    ("settings", "lockstep", "words"),
    [
        (("components.9.stub.drop=0.1",), False, "components.9"),
        (("components.1.stub.drop=0.1",), True, "lock-step"),
        (("train.minutes=1",), True, "train.minutes"),
        (("n_components=2", "components={0: {stub: {}}, 1: {stub: {}}}"), False, "all are stubs"),
        (("graph=[[1],[2]]",), False, "adjacency"),
        (("n_components=2", "graph=[[1],[1]]"), False, "row 1"),
        (("recipe=dgl", "graph=ring"), False, "graph: in stream wiring"),
        (("recipe=backprop",), True, "--lockstep: keeps"),
        (("method.depth=1",), True, "method.depth: an answer"),
        (("recipe=mach-hop", "method.depth=1"), False, "method.depth: is of skip"),
        (("method.depth=2", "bus.window=2"), False, "bus.window=3"),
        (("method.momentum_head=layer",), False, "method.momentum_head: layer is for"),
        (("method.momentum_head=chain",), False, "recipe=mach-stream"),
        (("recipe=mach-stream", "graph=[[1,2],[],[]]", "n_components=3"), False, "looks down one way"),
        (("recipe=mach-stream", "method.targets=none"), False, "needs the child's embedding"),
        (("recipe=mach-stream", "model.join=mean"), False, "logits that do not run up"),
        (("recipe=mach-stream", "staleness.late=stash"), False, "here none does"),
        (("recipe=mach-stream", "bus.codec.target=int8"), False, "one scale"),
        (("recipe=dgl", "method.momentum_head=layer", "bus.codec.target=int8"), False, "one scale; set bf16 or none"),
        (("recipe=mach-hop", "method.heads=last"), False, "gradient_reach=hop no .* set method.gradient_reach"),
        (("recipe=mach-hop", "method.heads=last", "method.targets=none"), False, "comes to all of them"),
        (("recipe=dgl", "method.heads=last", "n_components=2"), False, "by method.gradient_reach=none no gradient"),
        (("recipe=dni", "method.gradient_reach=none"), False, "by method.gradient_reach=none no gradient"),
        (("recipe=dni", "method.guess=false"), False, "method.heads: last leaves"),
        (("recipe=dni", "method.targets=embedding"), False, "method.targets: embedding is .* set method.targets=none"),
        (("method.targets=none",), False, "method.targets: none .* set method.targets=embedding, or wiring=stream"),
        (("method.heads=last",), False, "method.heads: last is for stream wiring; .* set method.heads=every"),
        (("method.targets_every=2",), False, "method.targets_every: is of stream"),
        (("staleness.policies=[clip,shrink,clip]",), False, "staleness.policies: clip stands there more than once"),
        (("recipe=ddg", "staleness.policies=[accumulate]"), False, "set method.update_every in its place"),
        (("recipe=ampnet", "staleness.policies=[bound,clip]"), False, "only the last component has one; leave it out"),
        (("bus.activation=indices",), False, "with data.noise=0.6 every sample is drawn anew, .* set data.noise=0, or"),
        (("recipe=ddg", "method.momentum_head=layer"), False, "heads=every"),
        (("recipe=dgl", "method.momentum_head=layer", "method.reach=2"), False, "method.reach: is for heads"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_sentence(settings: tuple[str, ...], lockstep: bool, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_of(*settings, lockstep=lockstep)
