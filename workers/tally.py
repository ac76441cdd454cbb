"""What `mach compare --json` says, field by field, as its help documents it. Knows no model and no torch.

Numbers without `by_seed` around them are means over seeds, and `…_sd` the deviations; null where a value is not known,
a mean also where it is not of one of the seeds.
"""

from typing import Any

import msgspec

from workers.timing import Timing


class Told(msgspec.Struct, kw_only=True):
    """Base of the records below."""


class Readings(Told):
    """How good the final weights are on the test set."""

    loss_bits: float | None
    """Of the whole depth: cross-entropy in bits a label; of bytes, bits a byte."""
    accuracy: float | None
    """Of the whole depth: share of the labels, 0 to 1."""
    loss_bits_student: float | None
    """Of component 0 with its student, as it ships."""
    accuracy_student: float | None
    """The same."""
    loss_bits_child: float | None
    """Of component 0 with its true child."""
    accuracy_child: float | None
    """The same."""


class SeedOf(Readings):
    """One row with one seed."""

    seed: int
    """Which."""
    seconds_to_target: float | None
    """By the run's `clock` until its curve first was at the target."""
    seconds: float | None
    """By the run's `clock` until all components had ended; of a control until its last step."""
    steps: dict[str, int]
    """By component, optimiser steps that it made; of a control by its own name."""
    staleness_p50: float | None
    """Median age, in versions as far as they were known, of all that came late and was used."""
    staleness_p50_ms: float | None
    """The same in milliseconds of the run's `clock`."""


class RowOf(Readings):
    """A row: means over seeds, then each of them."""

    seeds: list[int]
    """Of all, in the order of `by_seed`."""
    wiring: str
    """`skip` or `stream`: whose controls it stands beside."""
    loss_bits_sd: float | None
    """Standard deviation over seeds; null for one seed, as are the others."""
    accuracy_sd: float | None
    """The same."""
    loss_bits_student_sd: float | None
    """The same."""
    accuracy_student_sd: float | None
    """The same."""
    loss_bits_child_sd: float | None
    """The same."""
    accuracy_child_sd: float | None
    """The same."""
    staleness_p50: float | None
    """Mean over seeds."""
    staleness_p50_ms: float | None
    """Mean over seeds."""
    seconds_to_target: float | None
    """Mean over seeds; null if one never got there, and of controls beside recipes on other devices."""
    multiply_adds: float
    """A step of component 0 and a sample, of all components together."""
    fewest_steps: int
    """Of the component and the seed that made the fewest."""
    by_seed: list[SeedOf]
    """Its values, seed by seed."""
    config: dict[str, Any]
    """The settings that make the row, every key (`configs/tree.py`), with the first of its seeds."""


class Found(Told):
    """All of it: by name of a row its RowOf, and beside those:"""

    controls: dict[str, dict[str, RowOf]]
    """By wiring, by name."""
    gap_closed: dict[str, float | None]
    """By row, of the bits from `alone+student` to `backprop` of its wiring; null where those are as good as equal."""
    target: float
    """What times are measured to: bits of symbols, else an accuracy. Without --target the end of the control `alone`,
    with the seed that ends worst, of several wirings in the worse."""
    clock: str
    """Whose seconds: `virtual s`, or `s`."""
    left_out: dict[str, str]
    """Controls that are not here, and gaps that are null: by path, and why."""
    configuration: str
    """What --config named."""
    steps: int
    """Optimiser steps that every component was asked for."""
    timing: Timing | None
    """What took how long in virtual time, in seconds: `latency_s` and `jitter_s` of a message each way, `compute_s` of
    the steps of each component; null of real processes."""
    devices: list[str]
    """Of real processes, `cpu` or numbers of CUDA devices."""
    set_for_all: dict[str, str]
    """Keys of method, staleness and loss that hold for all recipes that do not set them, and for controls; and who sets
    them, a file or `--set`, which holds for every row."""
    x_again: dict[str, list[str]]
    """By wiring, rows of which every section reads x again (`method.context`): if there is one, controls do as well."""
    versions: dict[str, str]
    """Of mach, Python and the packages that matter (`workers/origin.py`)."""


RECORDS: tuple[type[msgspec.Struct], ...] = (Found, RowOf, SeedOf)
"""Outermost first."""
