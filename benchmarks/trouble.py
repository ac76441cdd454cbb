"""What trouble on an edge costs the components of a live run: their rates in trouble over their rates without.

    python -m benchmarks.trouble [--json] [--seconds 20] [--rounds 3] [--only hostile,delay,cut]

    hostile   a stub asks c1 over tcp; a stranger feeds c1 with what nobody should send
    delay     c0 → c1 over tcp; the edge c0 → c1 takes 100 ms each way
    cut       the same; the edge c0 → c1 is cut for the whole time, then heals

One launch each, in which spells of calm and of trouble take turns; a ratio is the rate of a component in trouble over
the mean of the calm before and after. All traffic goes through the same proxy in calm as in trouble, so that what the
proxy itself takes of the machine is in both.
"""

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import click

from bus import address
from workers.hostile import Hostile
from workers.rundir import RunDir
from workers.status import Status, read
from workers.testing import Proxy

SETTINGS = ("bus.transport=tcp", "graph=chain", "report.every_ms=100", "evaluate.every_steps=1000000000")
DELAY_S = 0.1
SETTLED_S = 2.0
"""Between a change and the measurement."""
LIMIT_S = 60.0


@dataclass
class Run:
    """A launch that trains until it is told to stop."""

    process: "subprocess.Popen[bytes]"
    directory: RunDir

    def status(self) -> Status:
        """As it is now."""
        return read(self.directory)

    def until(self, done: Callable[[Status], bool]) -> float:
        """Seconds until its status says so."""
        start = time.monotonic()
        while not (self.directory.status.exists() and done(self.status())):
            if self.process.poll() is not None or time.monotonic() - start > LIMIT_S:
                sys.exit(f"benchmarks.trouble: the run in {self.directory.path} did not get there; see its logs/")
            time.sleep(0.02)
        return time.monotonic() - start

    def rates(self, seconds: float) -> dict[str, float]:
        """Steps per second of every trainer, over this time, or as long as it takes everybody to make one."""
        before = self.status()
        steps = {row.component: row.step for row in before.components if row.kind == "trainer"}
        time.sleep(seconds)
        self.until(lambda status: all(row.step > steps.get(row.component, -1) for row in status.components))
        after = self.status()
        elapsed = after.elapsed_s - before.elapsed_s
        return {
            row.component: (row.step - steps[row.component]) / elapsed
            for row in after.components
            if row.component in steps
        }

    def endpoint(self, component: str) -> tuple[Path, str, str]:
        """Directory of the sockets, where the component is bound, and the run's id."""
        plan = json.loads(self.directory.plan.read_text())
        found = address.endpoint_of(Path(plan["sockets"]), component)
        if found is None:
            sys.exit(f"benchmarks.trouble: {component} has published no endpoint in {plan['sockets']}")
        return Path(plan["sockets"]), found, plan["run_id"]


@contextlib.contextmanager
def launched(components: int, *settings: str) -> Iterator[Run]:
    """A run in processes of its own, everybody training."""
    words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    with tempfile.TemporaryDirectory(prefix="mach-") as runs:
        command = [sys.executable, "-m", "mach", "launch", "--name", "trouble", "--runs", runs]
        command += ["--components", str(components), "--steps", "100000000", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            run = Run(process, RunDir(Path(runs) / "trouble"))
            run.until(lambda status: all(row.step > 50 for row in status.components if row.kind == "trainer"))
            yield run
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


@dataclass
class Trouble:
    """One kind, in one run: how to begin and end it, and what was seen."""

    run: Run
    begin: Callable[[], AbstractContextManager[object]]
    calm: list[dict[str, float]] = field(default_factory=list)
    troubled: list[dict[str, float]] = field(default_factory=list)
    seen: list[Status] = field(default_factory=list)
    """The state of things at the end of each spell of trouble."""
    healed_s: list[float] = field(default_factory=list)
    """From the end of a spell until the component asked c1 and was answered again."""

    def measure(self, rounds: int, seconds: float) -> dict[str, object]:
        """Spells in turn; ratios by component."""
        self.spell(self.calm, seconds)
        for _ in range(rounds):
            with self.begin():
                self.spell(self.troubled, seconds)
                self.seen.append(self.run.status())
            self.healed_s.append(self.run.until(self.answered_again))
            self.spell(self.calm, seconds)
        ratios = {
            name: [
                2 * now[name] / (before[name] + after[name])
                for before, now, after in zip(self.calm, self.troubled, self.calm[1:], strict=False)
            ]
            for name in self.calm[0]
        }
        return {name: spread(values) for name, values in ratios.items()}

    def answered_again(self, status: Status) -> bool:
        """Whether the first component has trained on an answer since the spell."""
        first = status.components[0]
        return first.kind == "stub" or first.child_steps > self.seen[-1].components[0].child_steps

    def spell(self, rates: list[dict[str, float]], seconds: float) -> None:
        """Let things settle, and measure."""
        time.sleep(SETTLED_S)
        rates.append(self.run.rates(seconds))


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "ratio": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def hostile(rounds: int, seconds: float) -> dict[str, object]:
    """A stranger at c1's door."""
    with launched(2, "components.0.stub.rate=100") as run:
        _, endpoint, run_id = run.endpoint("c1")
        strangers: list[Hostile] = []

        def begin() -> AbstractContextManager[object]:
            strangers.append(Hostile(endpoint, run_id, seed=len(strangers)))
            return strangers[-1]

        trouble = Trouble(run, begin)
        ratios = trouble.measure(rounds, seconds)
        dropped = run.status().components[1].messages.dropped
    sent = {kind: sum(stranger.sent[kind] for stranger in strangers) for kind in strangers[0].sent}
    return {"rates": ratios, "sent": sent, "dropped": dropped}


def delay(rounds: int, seconds: float) -> dict[str, object]:
    """A slow line between c0 and c1."""

    @contextlib.contextmanager
    def slow(proxy: Proxy) -> Iterator[None]:
        proxy.delay_s = DELAY_S
        yield
        proxy.delay_s = 0.0

    with launched(2) as run, proxied(run) as proxy:
        trouble = Trouble(run, lambda: slow(proxy))
        ratios = trouble.measure(rounds, seconds)
    ages = [status.components[0].staleness.target.max_ms for status in trouble.seen]
    return {"rates": ratios, "target_staleness_max_ms": ages}


def cut(rounds: int, seconds: float) -> dict[str, object]:
    """No line between c0 and c1."""

    @contextlib.contextmanager
    def broken(proxy: Proxy) -> Iterator[None]:
        proxy.cut()
        yield
        proxy.heal()

    with launched(2) as run, proxied(run) as proxy:
        trouble = Trouble(run, lambda: broken(proxy))
        ratios = trouble.measure(rounds, seconds)
    shown = [status.components[0].peers["c1"][0].state for status in trouble.seen]
    return {"rates": ratios, "shown_as": shown, "healed_s": [round(time_s, 2) for time_s in trouble.healed_s]}


@contextlib.contextmanager
def proxied(run: Run) -> Iterator[Proxy]:
    """The edge c0 → c1, through a proxy from now on."""
    directory, endpoint, _ = run.endpoint("c1")
    with Proxy(endpoint) as proxy:
        address.publish(directory, "c1", proxy.endpoint)
        run.until(lambda _: proxy.fired["connection"] > 0)
        yield proxy


KINDS = {"hostile": hostile, "delay": delay, "cut": cut}


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else.")
@click.option("--seconds", default=20.0, show_default=True, help="Length of a spell.")
@click.option("--rounds", default=3, show_default=True, help="Spells of trouble of each kind.")
@click.option("--only", default=",".join(KINDS), show_default=True, help="Kinds of trouble.")
def main(as_json: bool, seconds: float, rounds: int, only: str) -> None:
    """Parse, measure, print."""
    unknown = set(only.split(",")) - set(KINDS)
    if unknown:
        raise click.UsageError(f"no such trouble: {', '.join(sorted(unknown))}; there are: {', '.join(KINDS)}")
    results = {kind: KINDS[kind](rounds, seconds) for kind in only.split(",")}
    if not as_json:
        for kind, result in results.items():
            print(f"{kind}: {json.dumps(result, indent=2)}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
