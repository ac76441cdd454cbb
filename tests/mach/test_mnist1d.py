"""MNIST-1D: its recipe step by step against numpy and scipy, and the data set as a whole."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from configs.tree import Data
from mach.data import load
from mach.data.mnist1d import CURVES, MOVE, PADDING, generate, resampled, smooth, stretched, templates


def test_the_same_seed_makes_the_same_samples_and_another_others() -> None:
    sizes = {"source": "mnist1d", "train_samples": 30, "test_samples": 20}
    one, again, other = (load(Data(**sizes, split_seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one.samples, again.samples)
    assert not torch.equal(one.samples, other.samples)


def test_sizes_scale_and_classes() -> None:
    dataset = load(Data(source="mnist1d"))
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (4000, 6000)
    assert (dataset.sample_shape, dataset.classes, dataset.symbols) == ((40,), 10, 0)
    assert dataset.samples.mean().item() == pytest.approx(0, abs=1e-5)
    assert dataset.samples.std().item() == pytest.approx(1, abs=1e-3)
    labels = torch.cat((dataset.train_labels, dataset.test_labels))
    assert labels.bincount().tolist() == [1000] * 10
    assert (dataset.train_inputs.dtype, dataset.train_labels.dtype) == (torch.float32, torch.int64)
    small = load(Data(source="mnist1d", train_samples=7, test_samples=3))
    assert (len(small.train_labels), len(small.test_labels)) == (7, 3)


def test_templates_begin_and_end_at_zero_with_a_sixth_of_unit_deviation() -> None:
    made = templates()
    assert made.shape == (10, 12)
    np.testing.assert_allclose(made[:, 0], 0)
    np.testing.assert_allclose(made.std(axis=1), 1 / 6)
    np.testing.assert_allclose(made[:, -1], 0, atol=1e-12)
    assert len({tuple(curve) for curve in CURVES}) == 10


@pytest.mark.parametrize("padding", PADDING)
def test_a_curve_is_padded_and_drawn_out_to_72_places(padding: int) -> None:
    curves = templates()[:2]
    found, covered = stretched(curves, np.array([padding, padding]))
    padded = np.concatenate([curves[1], np.zeros(padding)])
    expected = np.interp(np.linspace(0, 1, 72), np.linspace(0, 1, len(padded)), padded)
    np.testing.assert_allclose(found[1], expected, atol=1e-12)
    share = covered.mean(axis=1)
    np.testing.assert_allclose(share, 12 / (12 + padding), atol=2 / 72)


def test_resampling_is_linear() -> None:
    x = np.array([[0.0, 1.0, 4.0], [5.0, 5.0, 5.0]])
    at = np.array([[0.0, 0.5, 1.5, 2.0]] * 2)
    np.testing.assert_allclose(resampled(x, at), [[0, 0.5, 2.5, 4], [5, 5, 5, 5]])


def test_smoothing_is_scipys_gaussian_filter() -> None:
    noise = np.random.default_rng(0).standard_normal((3, 72))
    np.testing.assert_allclose(smooth(noise), gaussian_filter1d(noise, 2, axis=1), atol=1e-12)


def test_without_noise_a_sample_is_its_curve_moved_by_less_than_48(monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("CORRELATED", "NOISE", "SHEAR", "SCALE"):
        monkeypatch.setattr(f"mach.data.mnist1d.{constant}", 0.0)
    monkeypatch.setattr("mach.data.mnist1d.PADDING", (60, 60))
    samples = generate(np.zeros(200, np.int64), np.random.default_rng(0))
    long, _ = stretched(templates()[:1], np.array([60]))
    possible = [resampled(np.roll(long, move, axis=1), np.linspace(0, 71, 40)[None])[0] for move in range(MOVE)]
    nearest = [min(range(MOVE), key=lambda move, s=sample: np.abs(possible[move] - s).max()) for sample in samples]
    np.testing.assert_allclose(samples, [possible[move] for move in nearest], atol=1e-12)
    assert len(set(nearest)) > 30
