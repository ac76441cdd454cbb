"""Whether a data set can be trained on at all: the one look at what a source made, whoever wrote the source.

Knows no file. Costs a reduction over each tensor, and makes no copy; only to say how much is wrong is there a second
look, in parts. Every error names the tensor (as `Dataset.names` calls it), how many of how many are wrong, and what to
do. Shapes: N samples; T places of a sequence.
"""

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from configs.errors import DataError
from mach.data.dataset import Dataset
from mach.sound import finite, whole

ROWS = 4096
"""Samples that are looked at together when wrong ones are counted."""
WHOLE = (torch.uint8, torch.int64)
"""What symbols are kept as."""


def check(dataset: Dataset, source: str) -> None:
    """Look at all of it; `source` is `data.source`.

    Raises:
        DataError: what no network could be trained on, or only on a part of it.
    """
    for key, least in (("classes", 1), ("symbols", 0)):
        number = getattr(dataset, key)
        if not isinstance(number, Integral) or int(number) < least:
            raise DataError(f"data.source {source}: {key}={number!r} is no whole number from {least} on; say how many")
    named = {}
    for key in ("train_inputs", "train_labels", "test_inputs", "test_labels"):
        tensor, name = getattr(dataset, key), dataset.names.get(key, f"data.source {source}: {key}")
        if not isinstance(tensor, Tensor):
            raise DataError(f"{name} is a {type(tensor).__name__}, and no tensor; torch.as_tensor makes it one")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise DataError(
                f"{name} does not hold its numbers one by one ({tensor.layout}, {tensor.device}); make it dense"
            )
        if tensor.requires_grad:
            raise DataError(f"{name} wants gradients, and data are given; .detach() it")
        named[key] = name
    for part in ("train", "test"):
        inputs, labels = getattr(dataset, f"{part}_inputs"), getattr(dataset, f"{part}_labels")
        check_labels(labels, named[f"{part}_labels"], inputs, named[f"{part}_inputs"], dataset.classes)
        check_inputs(inputs, named[f"{part}_inputs"], dataset.symbols)
    trained, tested = dataset.train_inputs, dataset.test_inputs
    if trained.shape[1:] != tested.shape[1:] or trained.dtype != tested.dtype:
        way = "make both anew" if trained.shape[1:] != tested.shape[1:] else "cast one of them"
        raise DataError(
            f"{named['test_inputs']} holds {kind(tested)}, and {kind(trained)} is trained on: samples to train and to "
            f"test on must be alike; {way}"
        )
    if dataset.train_labels.dim() != dataset.test_labels.dim():
        raise DataError(
            f"{named['test_labels']} holds {kind(dataset.test_labels)}, and {kind(dataset.train_labels)} is trained "
            "on: give one label a sample in both, or one for every place of a sequence in both"
        )


def check_labels(labels: Tensor, name: str, inputs: Tensor, inputs_name: str, classes: int) -> None:
    """Raise a DataError unless every sample has a label, or labels [T], from 0 to classes − 1."""
    if inputs.dim() and labels.shape == (len(inputs), classes) != inputs.shape[:2] and len(labels) and one_hot(labels):
        raise DataError(f"{name} holds one-hot labels, {kind(labels)}; give the number of the class, .argmax(dim=1)")
    inputs_name = inputs_name.removeprefix(name.rpartition(": ")[0] + ": ")  # of one source, which is named once
    if labels.dtype != torch.int64 or labels.dim() not in (1, 2):
        raise DataError(f"{name} holds {kind(labels)}; labels are whole numbers from 0, int64, [N] or [N, T]")
    if inputs.dim() < 2 or not inputs.numel() or len(labels) != len(inputs) or not labels.numel():
        samples = len(inputs) if inputs.dim() else 0
        raise DataError(
            f"{name} holds {kind(labels)} for {kind(inputs)} in {inputs_name}: {len(labels)} labels for {samples} "
            "samples; give at least one sample, [N, …], and each its label, or one for every place of a sequence"
        )
    if labels.dim() == 2 and labels.shape != inputs.shape[:2]:
        count, first = inputs.shape[:2]
        way = "; .reshape(-1) makes them so" if labels.shape[1] == 1 else ""
        raise DataError(
            f"{name} holds {kind(labels)} for {kind(inputs)} in {inputs_name}; labels are one a sample, [{count}]{way}"
            f", or, where samples are sequences, one for every place, [{count}, {first}]"
        )
    if not whole(labels, classes):
        wrong = wrong_rows(labels, lambda some: (some < 0) | (some >= classes))
        low, high = (int(end) for end in labels.aminmax())
        raise DataError(
            f"{name} holds labels from {low} to {high}, and {wrong} of {len(labels)} samples have one that is not "
            f"from 0 to {classes - 1}; labels are whole numbers from 0, below the data set's classes={classes}: number "
            "them anew, or give it more classes"
        )


def one_hot(labels: Tensor) -> bool:
    """Whether every row of labels [N, K] is one 1 among zeros."""
    return bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(dim=1) == 1).all())


def check_inputs(inputs: Tensor, name: str, symbols: int) -> None:
    """Raise a DataError unless these are finite quantities, or symbols."""
    if not symbols:
        if inputs.dtype != torch.float32:
            raise DataError(
                f"{name} holds {kind(inputs)}; quantities are float32, as .float() makes them, and symbols need "
                "symbols=HOW MANY"
            )
        if not finite(inputs):
            wrong = wrong_rows(inputs, lambda some: ~torch.isfinite(some))
            raise DataError(
                f"{name} holds numbers that are not finite, in {wrong} of {len(inputs)} samples; leave those out, or "
                "put a number in their place"
            )
    elif inputs.dtype not in WHOLE:
        raise DataError(f"{name} holds {kind(inputs)}; symbols are whole numbers, of uint8 or int64")
    elif not whole(inputs, symbols):
        wrong = wrong_rows(inputs, lambda some: (some < 0) | (some >= symbols))
        low, high = (int(end) for end in inputs.aminmax())
        raise DataError(
            f"{name} holds {kind(inputs)} from {low} to {high}, and {wrong} of {len(inputs)} samples do not fit; with "
            f"symbols={symbols} they must be whole numbers from 0 to {symbols - 1}"
        )


def wrong_rows(tensor: Tensor, wrong: Callable[[Tensor], Tensor]) -> int:
    """In how many samples something is wrong."""
    found = 0
    for at in range(0, len(tensor), ROWS):
        some = wrong(tensor[at : at + ROWS])
        found += int(some.reshape(len(some), -1).any(dim=1).sum())
    return found


def kind(tensor: Tensor) -> str:
    """Dtype and shape, as people write them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
