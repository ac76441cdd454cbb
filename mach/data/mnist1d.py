"""MNIST-1D, generated here: ten short curves, each padded, stretched, scaled, moved, covered with noise and sheared.

A task of 40 numbers a sample on which depth and convolution pay: logistic regression reaches about 32 %, a perceptron
68 %, a convolutional network 94 %. Nothing is downloaded: `split_seed` makes the samples, the same on every machine.
Source: S. Greydanus, D. Kobak, "Scaling down deep learning with MNIST-1D", arXiv 2011.14439, section 2 and appendix;
curves and constants are theirs.
Shapes: N samples, P = 12 points of a curve, L = 72 positions before the last resampling, 40 after it.
"""

import numpy as np
import numpy.typing as npt
import torch

from configs.tree import Data
from mach.data.dataset import Dataset

TRAIN, TEST = 4000, 6000
"""Samples, where the configuration names no other numbers: the paper's 4,000, and more than its 1,000 to test on."""
CURVES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
PADDING = (36, 60)
"""Zeros behind a curve, least and most."""
SCALE = 0.4
MOVE = 48
CORRELATED, SMOOTHING = 0.25, 2.0
"""Noise where the curve is not: its deviation before smoothing, and the deviation of the Gaussian that smooths it."""
NOISE = 0.02
SHEAR = 0.75
LENGTH = 40

Array = npt.NDArray[np.float64]


def mnist1d(data: Data) -> Dataset:
    """Inputs [N, 40] of zero mean and unit deviation, ten classes, equally often up to one."""
    train = data.train_samples or TRAIN
    count = train + (data.test_samples or TEST)
    random = np.random.default_rng(data.split_seed)
    labels = random.permutation(np.arange(count) % len(CURVES))
    samples = generate(labels, random)
    inputs = torch.from_numpy(((samples - samples.mean()) / samples.std()).astype(np.float32))
    classes = torch.from_numpy(labels.astype(np.int64))
    return Dataset(inputs[:train], classes[:train], inputs[train:], classes[train:], classes=len(CURVES))


def generate(labels: npt.NDArray[np.int64], random: np.random.Generator) -> Array:
    """A sample for every label, [N, 40]."""
    count = len(labels)
    padding = random.integers(PADDING[0], PADDING[1] + 1, count)
    x, covered = stretched(templates()[labels], padding)  # [N, L]
    x *= 1 + SCALE * (random.random((count, 1)) - 0.5)
    moved = (np.arange(x.shape[1]) - random.integers(0, MOVE, (count, 1))) % x.shape[1]
    x, covered = np.take_along_axis(x, moved, 1), np.take_along_axis(covered, moved, 1)
    x = np.where(covered, x, smooth(CORRELATED * random.standard_normal(x.shape)))
    x += NOISE * random.standard_normal(x.shape)
    x -= SHEAR * (random.random((count, 1)) - 0.5) * np.linspace(-0.5, 0.5, x.shape[1])
    return resampled(x, np.broadcast_to(np.linspace(0, x.shape[1] - 1, LENGTH), (count, LENGTH)))


def templates() -> Array:
    """[10, P]: the curves with unit deviation, from 0, a sixth in size."""
    curves = np.asarray(CURVES, np.float64)
    curves /= curves.std(axis=1, keepdims=True)
    return np.asarray((curves - curves[:, :1]) / 6, np.float64)


def stretched(curves: Array, padding: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Curves [N, P] with `padding` [N] zeros behind them, drawn out to L, and where they are not padding, [N, L]."""
    count, points = curves.shape
    length = points + PADDING[1]
    padded = np.concatenate([curves, np.zeros((count, PADDING[1]))], axis=1)
    at = np.linspace(0, 1, length) * (points + padding - 1)[:, None]  # [N, L] places in the padded curve
    return resampled(padded, at), at < points


def resampled(x: Array, at: Array) -> Array:
    """X [N, L] read between its points at places `at` [N, L'], linearly."""
    left = np.minimum(at.astype(np.int64), x.shape[1] - 2)
    share = at - left
    return np.asarray(
        np.take_along_axis(x, left, 1) * (1 - share) + np.take_along_axis(x, left + 1, 1) * share, np.float64
    )


def smooth(noise: Array) -> Array:
    """[N, L] averaged along L by a Gaussian, mirrored at the ends."""
    reach = round(4 * SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    mirrored = np.pad(noise, ((0, 0), (reach, reach)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, len(kernel), axis=1)  # [N, L, 2·reach + 1]
    return np.asarray(windows @ (kernel / kernel.sum()), np.float64)
