"""A component's own way through the samples: seeded, shuffled, without replacement, never ending."""

from itertools import chain, islice

import pytest
import torch

from configs.errors import DataError
from mach.data import Batches, Dataset
from mach.state import Copies

N = 20


def dataset() -> Dataset:
    """The label of a sample is its number, and so is its input."""
    numbers = torch.arange(N)
    return Dataset(numbers.float()[:, None], numbers, torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), N)


def labels(batches: Batches, count: int) -> list[list[int]]:
    return [batch.labels.tolist() for batch in islice(batches, count)]


def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    assert labels(Batches(dataset(), 6, seed=1), 9) == labels(Batches(dataset(), 6, seed=1), 9)
    assert labels(Batches(dataset(), 6, seed=1), 9) != labels(Batches(dataset(), 6, seed=2), 9)


def test_an_epoch_has_no_sample_twice_and_the_next_has_another_order() -> None:
    rows = labels(Batches(dataset(), 5, seed=0), 8)
    first, second = list(chain(*rows[:4])), list(chain(*rows[4:]))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second


def test_what_is_less_than_a_batch_at_an_epochs_end_is_left_out() -> None:
    rows = labels(Batches(dataset(), 6, seed=0), 6)
    assert all(len(row) == 6 for row in rows)
    assert len(set(chain(*rows[:3]))) == 18
    assert len(set(chain(*rows[3:]))) == 18


def test_ids_count_from_zero_and_inputs_belong_to_their_labels() -> None:
    for expected, batch in enumerate(islice(Batches(dataset(), 6, seed=0), 7)):
        assert batch.id == expected
        assert torch.equal(batch.inputs[:, 0], batch.labels.float())


def test_noise_is_fresh_seeded_and_leaves_the_data_alone() -> None:
    data = dataset()
    first, second = ([batch.inputs for batch in islice(Batches(data, N, seed=3, noise=0.5), 2)] for _ in range(2))
    clean = [batch.inputs for batch in islice(Batches(data, N, seed=3), 1)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    difference = first[0] - clean[0]
    assert 0.2 < difference.std() < 0.9
    assert not torch.equal(first[0].sort(dim=0).values, first[1].sort(dim=0).values)
    assert torch.equal(data.train_inputs, dataset().train_inputs)


@pytest.mark.parametrize("spoilt", ["train_inputs", "train_labels", "test_inputs", "test_labels"])
def test_data_that_were_split_anew_are_not_gone_on_with(spoilt: str) -> None:
    first, again, other = Batches(dataset(), 6, seed=0), Batches(dataset(), 6, seed=1), dataset()
    next(first)
    again.restore(first.state())
    assert torch.equal(next(first).labels, next(again).labels)
    tensor = getattr(other, spoilt)
    tensor[0], tensor[1] = 1 - tensor[0], tensor[0].clone()
    with pytest.raises(DataError, match="the data are others than it was trained on"):
        Batches(other, 6, seed=0).restore(first.state())


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_global_generator_is_left_alone(noise: float) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(Batches(dataset(), 6, seed=0, noise=noise))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_another_device_drew_noise_by_is_of_no_account_here(noise: float) -> None:
    first, here, there = (Batches(dataset(), 6, seed=seed, noise=noise) for seed in (1, 2, 3))
    next(first)
    state = first.state()
    here.restore(state)
    state.tensors["noise"] = torch.arange(16, dtype=torch.uint8)  # as long as a CUDA device's
    there.restore(state)
    for _ in range(7):
        expected = next(first)
        for batches in (here, there):
            found = next(batches)
            assert found.id == expected.id
            assert torch.equal(found.inputs, expected.inputs)


def test_an_order_that_was_drawn_on_another_device_is_gone_on_with_and_the_next_drawn_by_the_seed() -> None:
    """As data on a CUDA device were drawn by its own generator once, whose state has 16 bytes."""
    first, second = Batches(dataset(), 6, seed=1), Batches(dataset(), 6, seed=1)
    next(first)
    state = first.state()
    state.tensors["generator"] = torch.arange(16, dtype=torch.uint8)
    second.restore(state)
    assert labels(second, 2) == labels(first, 2), "what is left of the epoch"
    later = labels(second, 6)
    assert later != labels(first, 6)
    for seed, same in ((1, True), (2, False)):
        again = Batches(dataset(), 6, seed=seed)
        again.restore(state)
        assert (labels(again, 8)[2:] == later) is same


def on(data: Dataset, device: str) -> Dataset:
    tensors = (data.train_inputs, data.train_labels, data.test_inputs, data.test_labels)
    return Dataset(*(each.to(device) for each in tensors), data.classes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_order_is_the_same_on_a_cuda_device_and_goes_on_from_either() -> None:
    assert labels(Batches(on(dataset(), "cuda:0"), 6, seed=1), 9) == labels(Batches(dataset(), 6, seed=1), 9)
    for was, now in (("cpu", "cuda:0"), ("cuda:0", "cpu"), ("cuda:0", "cuda:0")):
        for noise in (0.0, 0.5):
            first, second = (Batches(on(dataset(), where), 6, seed=1, noise=noise) for where in (was, now))
            next(first)
            second.restore(Copies().take(first.state()))
            assert labels(second, 2) == labels(first, 2), "what is left of the epoch"
            expected, found = next(first), next(second)
            assert (found.id, found.inputs.device.type) == (expected.id, now.partition(":")[0])
            if noise == 0.0 or was == now:  # on the CPU noise and order are drawn by one generator
                assert torch.equal(found.labels.cpu(), expected.labels.cpu())
                assert torch.equal(found.inputs.cpu(), expected.inputs.cpu())
