"""What was loaded, in words, and what of it is odd though it can be trained on. Knows no source; refuses nothing.

Costs a count of the labels and a reduction over the inputs. Shapes: N samples, K classes, T places of a sequence.
"""

import torch
from torch import Tensor

from mach.data.check import ROWS, kind
from mach.data.dataset import Dataset

FEW = 8
"""So many classes are named one by one."""
LARGE = 1e4
"""Inputs further from 0 than this are said to be: losses and gradients grow with them."""
UNIT = "networks of this house expect about unit range"


def account(dataset: Dataset) -> list[str]:
    """One line on the data, and one for each thing that its maker may not have meant."""
    trained, tested = (counts(labels, dataset.classes) for labels in (dataset.train_labels, dataset.test_labels))
    never = named(trained == 0)
    shape = list(dataset.sample_shape)
    each = f"{shape} of {dataset.symbols} symbols" if dataset.symbols else kind(dataset.train_inputs[0])
    line = (
        f"{len(dataset.train_labels):,} samples to train on, {len(dataset.test_labels):,} to test on, each {each}"
        + (", with a label for every place" if dataset.train_labels.dim() == 2 else "")
        + f", {dataset.classes} class{'es' if dataset.classes != 1 else ''}"
        + (f", of which {never} never occur{plural(trained == 0)} in those to train on" if never else "")
    )
    return [line, *(f"warning: {odd}" for odd in oddities(dataset, trained, tested))]


def oddities(dataset: Dataset, trained: Tensor, tested: Tensor) -> list[str]:
    """What may be a mistake; `trained` and `tested` are how often each class occurs, [K]."""
    found = []
    if int((trained > 0).sum()) == 1:
        found.append(f"all samples to train on are of class {int(trained.argmax())}, so that nothing is to be learnt")
    unseen = (tested > 0) & (trained == 0)
    if unseen.any():
        many = int(unseen.sum()) > FEW
        who = f"{named(unseen)} classes" if many else f"class{'' if plural(unseen) else 'es'} {named(unseen)}"
        found.append(f"{who} occur{plural(unseen)} in the samples to test on alone")
    if dataset.symbols:
        return found
    ends = [float(end) for inputs in (dataset.train_inputs, dataset.test_inputs) for end in inputs.aminmax()]
    low, high = min(ends), max(ends)
    if max(-low, high) > 1.0 and are_whole(dataset.train_inputs):
        found.append(
            f"inputs are whole numbers from {low:.9g} to {high:.9g}; as quantities scale them, since {UNIT}, and where "
            "they stand for symbols, say of how many (data.symbols)"
        )
    elif max(-low, high) > LARGE:
        found.append(f"inputs are numbers from {low:.3g} to {high:.3g}; scale them, since {UNIT}")
    return found


def counts(labels: Tensor, classes: int) -> Tensor:
    """How often each class occurs, [K]."""
    return torch.bincount(labels.flatten(), minlength=classes)


def named(which: Tensor) -> str:
    """The classes of which this [K] is true, or how many, where they are many; empty: none."""
    numbers = which.nonzero().flatten().tolist()
    return ", ".join(map(str, numbers)) if len(numbers) <= FEW else f"{len(numbers):,}"


def plural(which: Tensor) -> str:
    """The ending of what these classes do."""
    return "s" if int(which.sum()) == 1 else ""


def are_whole(inputs: Tensor) -> bool:
    """Whether all of these quantities are whole numbers; of others the first rows tell."""
    parts = (inputs[at : at + ROWS] for at in range(0, len(inputs), ROWS))
    return all(torch.equal(rows, rows.round()) for rows in parts)
