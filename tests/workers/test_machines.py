"""A run over several machines: its plan on each, its identity on all, and what is said of who is elsewhere."""

from pathlib import Path

import pytest
import torch

from bus import curve, keys
from configs.errors import ConfigError
from configs.load import load
from configs.tree import Config
from fakes import component
from mach.data import Dataset
from mach.recipes import RECIPES
from workers.common import wire_id
from workers.health import asked_from_afar, cut_edges, lacking
from workers.machines import Site, run_id
from workers.plan import Plan, endpoints_of, make_plan
from workers.report import Messages, Peer
from workers.status import ComponentStatus, Status

ONE, TWO = "192.0.2.1", "192.0.2.2"


def config_of(tmp_path: Path, *settings: str) -> Config:
    place = tmp_path / "keys"
    if not place.exists():
        keys.save(place, curve.new_keys())
    many = f"bus.hosts=[{ONE},{TWO},{ONE},{TWO}]"
    return load("digits", ("bus.transport=tcp", f"bus.keys={place}", many, *settings), RECIPES)


def plan_of(config: Config, here: str, *, lockstep: bool = False, epoch: int = 100) -> Plan:
    place, site = Path(here or "x"), Site(here, "r", epoch) if here else None
    return make_plan(config, run="r", directory=place, sockets=place, devices=("0", "1"), lockstep=lockstep, site=site)


def test_every_machine_starts_its_own_and_deals_its_own_devices(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    plans = [plan_of(config, here) for here in (ONE, TWO)]
    assert [[each.name for each in plan.here] for plan in plans] == [["c0", "c2"], ["c1", "c3"]]
    assert [[each.device for each in plan.here] for plan in plans] == [["0", "1"], ["0", "1"]]
    assert plans[0].elsewhere == {"c1": TWO, "c3": TWO}
    assert plans[0].run_id == plans[1].run_id
    assert [each.children for each in plans[0].processes] == [each.children for each in plans[1].processes]


def test_where_it_is_not_asked_for_all_are_here(tmp_path: Path) -> None:
    """As in a simulation of the same configuration."""
    plan = plan_of(config_of(tmp_path), "")
    assert plan.here == plan.processes
    assert plan.elsewhere == {}
    assert endpoints_of(plan, plan.processes[0]) == {}


def test_a_component_knows_where_it_listens_and_where_its_neighbours_elsewhere_do(tmp_path: Path) -> None:
    plan = plan_of(config_of(tmp_path, "bus.port=5000", "bus.hosts=[192.0.2.1,192.0.2.1,192.0.2.2,192.0.2.1]"), ONE)
    found = {each.name: endpoints_of(plan, each) for each in plan.here}
    assert found["c0"] == {"c0": f"tcp://{ONE}:5000"}, "both of its neighbours publish where they are"
    assert found["c1"] == {"c1": f"tcp://{ONE}:5001", "c2": f"tcp://{TWO}:5002"}


@pytest.mark.parametrize(
    ("settings", "lockstep", "why"),
    [
        (("n_components=3",), False, "bus.hosts: names 4 machines, and there are 3 components; name one for each"),
        (("components={1: {stub: {}}, 3: {stub: {}}}",), False, f"bus.hosts: on {TWO} there would be stubs alone"),
        ((), True, "--lockstep: is for components of one machine"),
    ],
)
def test_machines_that_cannot_be_are_refused(
    tmp_path: Path, settings: tuple[str, ...], lockstep: bool, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{why}"):
        plan_of(config_of(tmp_path, *settings), ONE, lockstep=lockstep)


def test_launches_agree_on_a_run_by_its_name_its_keys_and_what_makes_it(tmp_path: Path) -> None:
    ours = run_id(config_of(tmp_path), "r")
    for same in ("train.steps=7", "bus.host=0.0.0.0", "optimiser.lr=0.5", "checkpoint.every_s=1", "threads=2"):
        assert run_id(config_of(tmp_path, same), "r") == ours, same
    different = ("model.embedding=8", "n_components=5", "seed=3", "components={1: {stub: {}}}", "method.depth=1")
    different += ("bus.port=5000", f"bus.hosts=[{ONE},{ONE},{ONE},{TWO}]")
    others = {run_id(config_of(tmp_path, other), "r") for other in different}
    others |= {run_id(config_of(tmp_path), "another"), run_id(config_of(tmp_path / "other"), "r")}
    assert len(others) == len(different) + 2
    assert ours not in others


def test_a_part_that_is_launched_anew_is_a_later_life_to_its_neighbours(tmp_path: Path) -> None:
    """Also where nothing is left that says how many there were: a machine that was replaced."""
    config = config_of(tmp_path)
    before, after = (plan_of(config, ONE, epoch=epoch) for epoch in (1000, 2000))
    assert before.life(7) < after.life(1)
    assert plan_of(config, "").life(7) == 7


def test_components_that_loaded_other_data_are_of_other_runs_to_each_other(tmp_path: Path) -> None:
    def data(seed: int) -> Dataset:
        rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        return Dataset(rows, torch.arange(8) % 2, rows, torch.arange(8) % 2, classes=2)

    config = config_of(tmp_path)
    one, two = (plan_of(config, here) for here in (ONE, TWO))
    assert wire_id(one, data(1)) == wire_id(two, data(1)) != wire_id(two, data(2))
    alone = plan_of(config, "")
    assert wire_id(alone, data(1)) == alone.run_id


def status(*rows: ComponentStatus) -> Status:
    whole = {"run": "r", "state": "training", "launcher_pid": 1, "launcher_started": "", "boot": "", "started_at": 0.0}
    return Status(**whole, written_s=0.0, elapsed_s=60.0, components=list(rows), elsewhere={"c1": TWO, "c3": TWO})


def row(state: str = "training", **peers: Peer) -> ComponentStatus:
    code = 0 if state == "finished" else None
    ends = {name: [peer] for name, peer in peers.items()}
    return component(state=state, exit_code=code, elapsed_s=60.0, peers=ends)


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (Peer(role="child", state="silent", heard_s=20.0), f"c0 → c1 silent for 20.5 s (c1 is on {TWO}: see mach"),
        (Peer(role="child", state="knocking"), f"c0 → c1 was never heard (c1 is on {TWO}: see mach status there)"),
        (Peer(role="parent", state="silent", heard_s=20.0), "c1 → c0 silent for 20.5 s"),
        (Peer(role="parent", state="knocking"), "c1 → c0 was never heard"),
        (Peer(role="child", state="open", heard_s=12.0), ""),
        (Peer(role="child", state="open", heard_s=40.0), "c0 → c1 silent for 40.5 s"),  # with a time-out of minutes
        (Peer(role="child", state="closed", heard_s=20.0), ""),  # it has finished there
    ],
)
def test_an_edge_to_another_machine_is_judged_by_the_end_that_is_here(end: Peer, line: str) -> None:
    told = cut_edges(status(row(c1=end)), patient=True)
    assert len(told) == bool(line)
    assert line in "".join(told)
    assert cut_edges(status(row("finished", c1=end))) == []


def test_machines_that_do_not_agree_are_told_so() -> None:
    refused = row(c1=Peer(role="child", state="knocking"))
    refused.messages = Messages(dropped={"other-run": 7, "timeout": 3})
    (line,) = cut_edges(status(refused))
    assert "; c0 refused messages (other-run 7: launched there under another name, with other data" in line
    refused.peers = {"c1": [Peer(role="child", state="silent", heard_s=20.0)]}
    (line,) = cut_edges(status(refused))
    assert "refused" not in line, "they have met"


def test_a_parent_elsewhere_is_served_to_its_good_bye_unless_it_is_gone() -> None:
    def served(**peer: object) -> ComponentStatus:
        return component(state="finished", peers={"c3": [Peer(**({"role": "parent"} | peer))]})

    def asks(**peer: object) -> bool:
        return asked_from_afar([served(**peer)])

    assert asks(state="open", heard_s=0.1)
    assert asks(state="silent", heard_s=20.0)
    assert not asks(state="closed", heard_s=0.1), "it has said good-bye"
    assert not asks(state="silent", heard_s=90.0), "it is gone"
    assert not asks(state="knocking"), "it never was there"
    assert not asks(role="child", state="open", heard_s=0.1)
    here = [served(state="open", heard_s=0.1), component("c3")]
    assert not asked_from_afar(here), "of who is here the supervisor knows"


def test_who_finished_without_ever_hearing_a_child_elsewhere_did_not_do_well() -> None:
    never, once = Peer(role="child", state="knocking"), Peer(role="child", state="closed", heard_s=9.0)
    assert "c0 → c1: never heard" in lacking([row("finished", c1=never)])
    assert "or it was not launched on its machine" in lacking([row("finished", c1=never)])
    assert lacking([row("finished", c1=once)]) == ""
