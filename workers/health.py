"""Whether a run does well: edges over which nothing comes, who learnt nothing, and the exit code of `mach status`.

Knows a run by its `Status` alone, no file and no process.
"""

import math
from collections.abc import Mapping, Sequence

from workers.policy import AFAR_S, patience_s
from workers.report import Peer
from workers.status import FINAL, ComponentStatus, Status

UNBORN = ("starting", "restarting")
FAR_S = 15.0
"""Who is on another machine and is not heard for so long is told of, whatever is known of the edge."""
DISAGREED = {
    "bad-key": "wrong keys, or none",
    "other-run": "launched there under another name, with other data, or other settings of what makes a run",
    "other-schema": "another version of MACH",
    "stale-incarnation": "of an earlier life, or the clock there is behind",
}
"""By reason of a drop: what to look for on the other machine."""
START_UP_S = 10.0
"""From the start of a life: so long its edges may not be open yet."""
WRONG = {
    "silent": "silent for {:.1f} s (unanswered)",
    "knocking": "knocks; last heard {:.1f} s ago (unanswered)",
    "closed": "closed {:.1f} s ago, though both go on",
}
"""What is said of an edge to a child in each state but open."""


def cut_edges(status: Status, *, patient: bool = False) -> list[str]:
    """Edges over which nothing comes though both ends live, or that are `unmet`, each as who asks sees it. `patient`:
    but those that a child's own slow steps may keep silent.
    """
    rows = {row.component: row for row in status.components}
    lines = []
    for row in status.components:
        lines += far_edges(row, status.elsewhere, patient=patient)
        for name, ends in row.peers.items():
            asks = [end for end in ends if end.role == "child" and name in rows]
            if patient:
                slow_s = patience_s(round(1000 * START_UP_S), rows[name].step_ms_p99) if name in rows else 0.0
                asks = [end for end in asks if end.state != "silent" or (end.heard_s or math.inf) > slow_s]
            lines += [f"{row.component} → {name} {wrong}" for end in asks if (wrong := cut(row, rows[name], end))]
    return lines


def far_edges(row: ComponentStatus, elsewhere: Mapping[str, str], *, patient: bool) -> list[str]:
    """Edges with components on other machines over which nothing comes, as the end that is here sees them: the other
    one may not have been launched yet. One that said good-bye is well. `patient`: but those that slow steps may keep
    silent, if steps are no slower there than here.
    """
    slow_s = patience_s(round(1000 * START_UP_S), row.step_ms_p99) if patient else 0.0
    if row.state in (*FINAL, *UNBORN) or row.elapsed_s < START_UP_S:
        return []
    lines = []
    for name, ends in row.peers.items():
        for end in ends if name in elsewhere else ():
            heard_s = math.inf if end.heard_s is None else end.heard_s + (row.last_seen_s or 0.0)
            well = end.state == "closed" or (end.state == "open" and heard_s < max(FAR_S, slow_s))
            if well or heard_s < slow_s:
                continue
            edge = f"{row.component} → {name}" if end.role == "child" else f"{name} → {row.component}"
            said = f"silent for {heard_s:.1f} s" if heard_s < math.inf else f"was never heard{mismatch(row)}"
            over = "; where it has finished, mach stop here ends this part" if end.role == "parent" else ""
            lines.append(f"{edge} {said} ({name} is on {elsewhere[name]}: see mach status there{over})")
    return lines


def mismatch(row: ComponentStatus) -> str:
    """What of a component's drops tells that machines do not agree, for people; empty: none does."""
    lost = {reason: row.messages.dropped.get(reason, 0) for reason in DISAGREED}
    told = [f"{reason} {count:,}: {DISAGREED[reason]}" for reason, count in lost.items() if count]
    return f"; {row.component} refused messages ({'; '.join(told)})" if told else ""


def asked_from_afar(rows: Sequence[ComponentStatus]) -> bool:
    """Whether a parent on another machine may still want answers: heard a moment ago, and has not said good-bye."""
    ours = {row.component for row in rows}
    ends = [
        (end, row.last_seen_s or 0.0)
        for row in rows
        for name, ends in row.peers.items()
        for end in (ends if name not in ours and row.exit_code is None else ())
    ]
    return any(
        end.role == "parent" and end.state != "closed" and end.heard_s is not None and end.heard_s + since_s < AFAR_S
        for end, since_s in ends
    )


def cut(row: ComponentStatus, child: ComponentStatus, end: Peer) -> str:
    """What is wrong with an edge to a child, if anything is; while one is younger than `START_UP_S` it may not be open
    yet, or again.
    """
    if row.state in FINAL or child.state in FINAL:
        well = not unmet(row, child, end)
    else:
        young = any(each.state in UNBORN or each.elapsed_s < START_UP_S for each in (row, child))
        well = young or end.state == "open"
    if well:
        return ""
    refused = child.messages.dropped.get("bad-key", 0)
    keys = f", and {child.component} refused {refused:,} connections (bad-key: wrong keys, or none)" if refused else ""
    if end.heard_s is None:
        return f"was never heard (unanswered){keys}"
    return WRONG[end.state].format(end.heard_s + (row.last_seen_s or 0.0)) + keys


def untrained(rows: Sequence[ComponentStatus]) -> str:
    """Who finished without a step, if anybody did, and why: the minutes, or in stream wiring the run, were over before
    its first, or nothing came from above.
    """
    over = [row for row in rows if row.kind == "trainer" and row.state == "finished" and row.exit_code is not None]
    idle = [row for row in over if row.step == 0]
    if not idle:
        return ""
    lost = "; ".join(filter(None, map(unfed, idle)))
    names = ", ".join(row.component for row in idle)
    return f"{names}: ended without a step: nothing is learnt there; {lost or 'train longer'}"


def unfed(row: ComponentStatus) -> str:
    """That nothing came to a component, if so; in a life shorter than `START_UP_S` it may have had no time to."""
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(row.messages.dropped.items()) if count)
    parents = ", ".join(peer for peer, ends in row.peers.items() if any(end.role == "parent" for end in ends))
    if not parents or row.messages.received.get("activation") or (row.elapsed_s < START_UP_S and not dropped):
        return ""
    return f"nothing came from {parents} to {row.component}" + (f" (dropped: {dropped})" if dropped else "")


def unmet(row: ComponentStatus, child: ComponentStatus | None, end: Peer) -> bool:
    """Whether nothing ever came over an edge to a child though both ends trained to the end, and for long enough: in a
    life shorter than `START_UP_S` they may have had no time to meet. Stubs are silent where their script says so. Of a
    child on another machine (None) this one alone can tell, however short its life was.
    """
    return end.heard_s is None and all(
        each.kind == "trainer"
        and each.state == "finished"
        and each.exit_code is not None
        and (each.elapsed_s >= START_UP_S or child is None)
        for each in (row, child)
        if each is not None
    )


def unheard(rows: Sequence[ComponentStatus]) -> str:
    """Which edges are `unmet`."""
    by_name = {row.component: row for row in rows}
    edges = [
        f"{row.component} → {name}"
        for row in rows
        for name, ends in row.peers.items()
        if any(end.role == "child" and unmet(row, by_name.get(name), end) for end in ends)
    ]
    if not edges:
        return ""
    far = [row for row in rows if any(name not in by_name and met_nobody(ends) for name, ends in row.peers.items())]
    known = "".join(map(mismatch, far)).removeprefix("; ")
    why = known or "all messages were kept away, as by a firewall on bus.host"
    why += ", or it was not launched on its machine" if far and not known else ""
    return f"{', '.join(edges)}: never heard, so nothing was learnt from each other there; {why}"


def met_nobody(ends: Sequence[Peer]) -> bool:
    """Whether nothing ever came over any of the edges with a neighbour."""
    return all(end.heard_s is None for end in ends)


def lacking(rows: Sequence[ComponentStatus]) -> str:
    """What keeps a run whose components have all finished from having done well, for people; empty: nothing."""
    return "; ".join(filter(None, (untrained(rows), unheard(rows))))


def exit_code_of(status: Status) -> int:
    """0 healthy, finished, or stopped on request; 1 degraded: a component failed, stalls, restarts, cannot save what it
    learns or ended without a step, an edge is cut or was never heard, nobody can be restarted any more, or nobody knows
    how it goes, since the launcher does not say; 2 failed.
    """
    if status.state == "failed":
        return 2
    ill = any(row.state in ("failed", "stalled", "restarting") or row.checkpoint.trouble for row in status.components)
    cut_off = status.state not in FINAL and cut_edges(status, patient=True)
    return 1 if status.stale or status.trouble or ill or cut_off or lacking(status.components) else 0
