"""How fast a killed component is back, and what its deaths cost the others: one run, calm and kills in turn.

    python -m benchmarks.recovery [--json] [--components 4] [--seconds 20] [--rounds 3] [--kill 20/min]

In a spell of kills the engine of `mach chaos` kills c1 at random times. `restart_s`: from noticing its end to the first
step of its next life. `peers_rate_ratio`: the rate of the others in a spell of kills over the mean of the calm before
and after it, the median over spells and components. With more components than cores the others get what the dead one
leaves of the machine.
"""

import json
import statistics
import time

import click

from benchmarks.trouble import SETTLED_S, Run, launched, spread
from workers.chaos import Spec, rate_of
from workers.status import Status
from workers.victims import Account, wreak

VICTIM = "c1"
SETTINGS = ("bus.transport=ipc", "graph=ring", "checkpoint.every_s=0.3")
"""Checkpoints often enough that kills in quick succession are not taken for a component that never gets anywhere."""
Rates = dict[str, float]


def rates(before: Status, after: Status) -> Rates:
    """Steps per second of everybody but the victim."""
    elapsed_s = after.elapsed_s - before.elapsed_s
    pairs = zip(before.components, after.components, strict=True)
    return {now.component: (now.step - was.step) / elapsed_s for was, now in pairs if now.component != VICTIM}


def calm(run: Run, seconds: float) -> Rates:
    """A spell without kills."""
    time.sleep(SETTLED_S)
    before = run.status()
    time.sleep(seconds)
    return rates(before, run.status())


def kills(run: Run, spec: Spec) -> tuple[Rates, Account]:
    """A spell with kills, until the victim is back from the last."""
    before = run.status()
    account = wreak(run.directory, spec)
    return rates(before, run.status()), account


def measure(components: int, seconds: int, rounds: int, per_s: float) -> dict[str, object]:
    """Spells in turn, in one run."""
    accounts: list[Account] = []
    calms, hurts = [], []
    with launched(components, *SETTINGS) as run:
        calms.append(calm(run, seconds))
        for seed in range(rounds):
            hurt, account = kills(run, Spec(seconds=seconds, seed=seed, kill=per_s, among=(VICTIM,)))
            hurts.append(hurt)
            accounts.append(account)
            calms.append(calm(run, seconds))
    ratios = {
        name: [2 * hurt[name] / (a[name] + b[name]) for a, hurt, b in zip(calms, hurts, calms[1:], strict=False)]
        for name in calms[0]
    }
    times = [one for account in accounts if account.restart_s for one in account.restart_s.all[VICTIM]]
    return {
        "restart_s": {"p50": round(statistics.median(times), 3), "max": round(max(times), 3)},
        "peers_rate_ratio": round(statistics.median(one for each in ratios.values() for one in each), 4),
        "kills": sum(len(account.faults) for account in accounts),
        "restarts": sum(account.restarts[VICTIM] for account in accounts),
        "lost": sorted({name for account in accounts for name in account.lost}),
        "peers": {name: spread(values) for name, values in ratios.items()},
    }


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else.")
@click.option("--components", default=4, show_default=True, type=click.IntRange(min=3))
@click.option("--seconds", default=20, show_default=True, help="Length of a spell.")
@click.option("--rounds", default=3, show_default=True, help="Spells of kills.")
@click.option("--kill", default="20/min", show_default=True, help="Kills of c1.")
def main(as_json: bool, components: int, seconds: int, rounds: int, kill: str) -> None:
    """Parse, measure, print."""
    result = measure(components, seconds, rounds, rate_of("--kill", kill))
    print(json.dumps(result, indent=None if as_json else 2))


if __name__ == "__main__":
    main()
