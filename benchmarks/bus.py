"""How fast messages travel between two processes of one host, against other ways of doing it.

    python -m benchmarks.bus [--json] [--rounds 9] [--sizes 25KB,4MB] [--quick]

Rounds are interleaved: in each, every contender (`benchmarks/contenders.py`, `benchmarks/rivals.py`) streams the
same tensors with at most four unacknowledged, and then echoes them, in an order drawn anew. A ratio is taken
within a round; shown are the median over the rounds and the smallest and largest. A round trip is the median echo
of a round. Of every target that is missed the stages of a message (`benchmarks/stages.py`), measured in the same
run, tell on what its time goes.
"""

import contextlib
import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import stages
from benchmarks.contenders import Contender, Mach, Raw
from benchmarks.rivals import Copy, Gloo, Queue, Ray, Unix

CONTENDERS: dict[str, Callable[[], Contender]] = {
    "mach ipc inline": lambda: Mach("ipc", "inline"),
    "mach ipc shared": lambda: Mach("ipc", "shared"),
    "mach ipc auto": lambda: Mach("ipc", "auto"),
    "mach tcp inline": lambda: Mach("tcp", "inline"),
    "pyzmq ipc": lambda: Raw("ipc"),
    "pyzmq tcp": lambda: Raw("tcp"),
    "mp queue": Queue,
    "gloo": Gloo,
    "memcpy": Copy,
    "unix socket": Unix,
}
"""In the order of the table."""
if importlib.util.find_spec("ray") is not None:
    CONTENDERS["ray"] = Ray
SIZES = {"1KB": 1 << 10, "25KB": 25 << 10, "256KB": 1 << 18, "4MB": 1 << 22, "64MB": 1 << 26}
STREAM_BYTES, STREAM_CAP = 3 << 27, 600
"""A stream is this long, or this many messages."""
ECHO_BYTES, ECHO_CAP = 1 << 27, 100
SOURCES = 3
"""Different tensors that take turns."""
BFLOAT16 = "mach ipc auto, bfloat16"
"""The one contender that sends another dtype: as many bytes."""

TARGETS: dict[str, dict[str, float]] = {
    "throughput_vs_raw.inline": {"25KB": 0.75, "256KB": 0.90, "4MB": 0.90, "64MB": 1.7},
    "throughput_vs_raw.shared": {"256KB": 1.5, "4MB": 2.0, "64MB": 4.0},
    "roundtrip_vs_raw": {"25KB": 1.35},
    "throughput_vs_mpqueue": {"4MB": 3.0},
    "throughput_vs_gloo": {"1KB": 1.0, "25KB": 1.0, "256KB": 1.0, "4MB": 1.0, "64MB": 2.0},
}
"""At least this; of a round trip, at most."""
COMPARED = {
    "throughput_vs_raw.inline": ("mach ipc inline", "pyzmq ipc"),
    "throughput_vs_raw.shared": ("mach ipc shared", "pyzmq ipc"),
    "roundtrip_vs_raw": ("mach ipc auto", "pyzmq ipc"),
    "throughput_vs_mpqueue": ("mach ipc auto", "mp queue"),
    "throughput_vs_gloo": ("mach ipc auto", "gloo"),
}


@dataclass
class Figures:
    """Of one contender at one size, a value a round."""

    bytes_per_s: list[float] = field(default_factory=list)
    echo_s: list[list[float]] = field(default_factory=list)

    def p50(self) -> list[float]:
        """Median echo of every round, in seconds."""
        return [statistics.median(echoes) for echoes in self.echo_s]

    def p99(self) -> float:
        """Of all echoes, in seconds."""
        every = sorted(each for echoes in self.echo_s for each in echoes)
        return every[min(len(every) - 1, int(0.99 * len(every)))]


Size = dict[str, Figures]
Stages = dict[str, dict[str, float]]
"""Microseconds by stage, as of `benchmarks.stages`."""


def measure(sizes: Sequence[str], rounds: int, share: float) -> dict[str, Size]:
    """Figures by size and contender. `share` of the usual number of messages."""
    torch.set_num_threads(1)
    found: dict[str, Size] = {}
    with contextlib.ExitStack() as stack:
        made: dict[str, Contender] = {}
        for name, make in CONTENDERS.items():
            made[name] = make()
            stack.callback(made[name].close)
        made[BFLOAT16] = made["mach ipc auto"]
        for size in sizes:
            found[size] = {name: Figures() for name in made}
            floats = [torch.randn(SIZES[size] // 4) for _ in range(SOURCES)]
            halves = [torch.randn(SIZES[size] // 2).to(torch.bfloat16) for _ in range(SOURCES)]
            names = list(made)
            for number in range(-1, rounds):  # round -1 warms up
                for name in random.Random(number).sample(names, len(names)):
                    one_round(made[name], halves if name == BFLOAT16 else floats, found[size][name], share)
            for figures in found[size].values():
                del figures.bytes_per_s[0], figures.echo_s[0]
    return found


def one_round(contender: Contender, sources: list[Tensor], figures: Figures, share: float) -> None:
    """A stream and some echoes."""
    nbytes = sources[0].nbytes
    count = max(round(share * min(STREAM_BYTES // nbytes, STREAM_CAP)), 2)
    start = time.perf_counter()
    contender.stream(sources, count)
    figures.bytes_per_s.append(count * nbytes / (time.perf_counter() - start))
    echoes = []
    for i in range(max(round(share * min(ECHO_BYTES // nbytes, ECHO_CAP)), 2)):
        start = time.perf_counter()
        contender.echo(sources[i % len(sources)])
        echoes.append(time.perf_counter() - start)
    figures.echo_s.append(echoes)


def ratios(size: Size, kind: str) -> list[float]:
    """By round: of throughputs, or of round trips."""
    ours, theirs = (size[name] for name in COMPARED[kind])
    pairs = zip(ours.p50(), theirs.p50(), strict=True) if kind.startswith("roundtrip") else None
    pairs = pairs or zip(ours.bytes_per_s, theirs.bytes_per_s, strict=True)
    return [a / b for a, b in pairs]


def summary(found: dict[str, Size], spent: Stages) -> dict[str, object]:
    """The fields of the JSON line: medians of ratios, then their spread, then the figures."""
    medians = {
        kind: {size: round(statistics.median(ratios(figures, kind)), 3) for size, figures in found.items()}
        for kind in COMPARED
    }
    spread = {
        kind: {
            size: [round(min(ratios(figures, kind)), 3), round(max(ratios(figures, kind)), 3)]
            for size, figures in found.items()
        }
        for kind in COMPARED
    }
    raw = {
        size: {
            name: {
                "mb_per_s": round(statistics.median(each.bytes_per_s) / 1e6, 1),
                "roundtrip_us_p50": round(1e6 * statistics.median(each.p50()), 1),
                "roundtrip_us_p99": round(1e6 * each.p99(), 1),
            }
            for name, each in figures.items()
        }
        for size, figures in found.items()
    }
    vs_raw = {lane: medians.pop(f"throughput_vs_raw.{lane}") for lane in ("inline", "shared")}
    return {
        "throughput_vs_raw": vs_raw,
        **medians,
        "spread": spread,
        "missed": misses(found, spent),
        "figures": raw,
    } | {"ray": "ray" in CONTENDERS}


def verdict(kind: str, size: str, ratio: float) -> str:
    """The target beside a ratio, if there is one, and whether it is missed."""
    target = TARGETS[kind].get(size)
    if target is None:
        return ""
    trip = kind.startswith("roundtrip")
    met = ratio <= target if trip else ratio >= target
    return rf" \[{'≤' if trip else '≥'} {target}{'' if met else ', missed'}]"


def misses(found: dict[str, Size], spent: Stages) -> dict[str, str]:
    """Of every target that is missed: on what the time of a message goes, as measured right after the rounds."""
    words = {}
    for kind, targets in TARGETS.items():
        for size in [size for size in targets if size in found]:
            ratio = statistics.median(ratios(found[size], kind))
            if not verdict(kind, size, ratio).endswith(r", missed]"):
                continue
            ours, theirs = (found[size][name] for name in COMPARED[kind])
            trip = kind.startswith("roundtrip")
            each_us = [
                1e6 * statistics.median(each.p50() if trip else [SIZES[size] / rate for rate in each.bytes_per_s])
                for each in (ours, theirs)
            ]
            what = "a round trip" if trip else "a message"
            said = f"{ratio:.2f}: {what} takes {each_us[0]:.0f} µs, the other's {each_us[1]:.0f}"
            words[f"{kind} {size}"] = said + on_what(spent, kind, size)
    return words


def on_what(spent: Stages, kind: str, size: str) -> str:
    """The stages of one message, sent and taken, at both of their prices."""
    lane = "inline" if kind.endswith("inline") else "shared"
    parts = []
    for state in ("warm", "cold"):
        taken = spent.get(f"{size} {lane} {state}")
        if taken is not None:
            carried = taken["hand over"] + taken["fetch"]
            python = taken["send"] + taken["receive"] - carried
            parts.append(f"{state} {python:.0f} µs in Python and {carried:.0f} in ZeroMQ, system calls and copies")
    if not parts:
        return "; nothing but copies and page faults counts at this size"
    return f"; sending and taking one, {lane}, " + ", ".join(parts) + " (cold: as after every change of thread)"


def show(found: dict[str, Size], spent: Stages, console: Console) -> None:
    """Two tables: figures, and ratios beside their targets; then what stands behind those that are missed."""
    table = Table("", *found, title="MB/s   round trip p50/p99 in µs")
    for name in next(iter(found.values())):
        cells = []
        for figures in found.values():
            each = figures[name]
            trip = f"{1e6 * statistics.median(each.p50()):,.0f}/{1e6 * each.p99():,.0f}"
            cells.append(f"{statistics.median(each.bytes_per_s) / 1e6:,.0f}   {trip}")
        table.add_row(name, *cells)
    console.print(table)
    table = Table("ratio", *found, title="median (smallest to largest of the rounds) [target]")
    for kind in COMPARED:
        cells = []
        for size, figures in found.items():
            by_round = ratios(figures, kind)
            spread = f"{statistics.median(by_round):.2f} ({min(by_round):.2f} to {max(by_round):.2f})"
            cells.append(spread + verdict(kind, size, statistics.median(by_round)))
        table.add_row(kind, *cells)
    console.print(table)
    missed = misses(found, spent)
    for target, words in missed.items():
        console.print(f"missed: {target}: {words}")
    count = sum(size in found for targets in TARGETS.values() for size in targets)
    console.print(f"{count - len(missed)} of {count} targets are met.")
    if "ray" not in CONTENDERS:
        console.print("Ray is not installed and was left out.")


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, last.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1))
@click.option("--sizes", default=",".join(SIZES), show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the messages: to see that it works.")
def main(as_json: bool, rounds: int, sizes: str, quick: bool) -> None:
    """Parse, measure, print."""
    wanted = sizes.split(",")
    unknown = [size for size in wanted if size not in SIZES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(SIZES)}", param_hint="--sizes")
    found = measure(wanted, rounds, 0.1 if quick else 1.0)
    spent = stages.measure_all(20 if quick else 200)
    if as_json:
        print(json.dumps(summary(found, spent)))
    else:
        show(found, spent, Console(width=200))


if __name__ == "__main__":
    main()
