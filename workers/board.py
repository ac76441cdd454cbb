"""A component's TensorBoard event files: every scalar that the status table shows, staleness as histograms."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from torch.utils.tensorboard import SummaryWriter

from mach.messages import Age
from workers.report import Report

SKIPPED = {"component", "kind", "incarnation", "pid", "device", "state", "reason", "peers", "step"}
"""Fields of a report that are no scalars to draw."""


class Board:
    """One writer, one folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=5)

    def write(self, report: Report, target: Sequence[Age], gradient: Sequence[Age]) -> None:
        """Draw a report at its step, and the recent ages of targets and gradients."""
        for name, value in scalars(msgspec.to_builtins(report)):
            self._writer.add_scalar(name, value, report.step)
        for kind, ages in (("target", target), ("gradient", gradient)):
            if ages:
                versions = np.array([age.versions for age in ages])
                millis = np.array([1000.0 * age.seconds for age in ages])
                self._writer.add_histogram(f"staleness/{kind}/versions", versions, report.step)
                self._writer.add_histogram(f"staleness/{kind}/ms", millis, report.step)

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


def scalars(tree: dict[str, object], path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a report, named by its path: `loss/target`."""
    for name, value in tree.items():
        if not path and name in SKIPPED:
            continue
        if isinstance(value, dict):
            yield from scalars(value, f"{path}{name}/")
        elif isinstance(value, int | float):
            yield f"{path}{name}", float(value)
