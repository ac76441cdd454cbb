"""Files in the IDX format of MNIST and Fashion-MNIST, gzipped or not, read with numpy alone.

    magic   two zero bytes, one byte 0x08 (unsigned bytes), one byte number of dimensions
    sizes   one big-endian 32-bit integer per dimension
    data    unsigned bytes, the last dimension fastest

Source of the format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from configs.errors import DataError
from configs.tree import Data
from mach.data.dataset import Dataset

GZIPPED = b"\x1f\x8b"
"""How a gzipped file begins, whatever its name; an IDX file begins with two zero bytes."""
USUAL = (
    "data/fashion-mnist",
    "~/.cache/mach/fashion-mnist",
    "/usr/share/datasets/fashion-mnist",
    "/usr/share/dataset-fashion-mnist",
)
"""Where to look without `data.path`; the last two are where Debian's `dataset-fashion-mnist` puts them."""
WHERE_TO_GET = (
    "on Debian: apt-get install dataset-fashion-mnist; elsewhere put the four IDX files of Fashion-MNIST or MNIST, "
    "gzipped or not, into a directory and name it with --set data.path=DIR"
)


def idx(data: Data) -> Dataset:
    """Inputs [N, 28, 28] normalised by the training set's mean and deviation, labels as in the files.

    Raises:
        DataError: a file that is missing, cut short or not what its header says.
    """
    folder = find_folder(data.path)
    train_inputs, train_labels = read_pair(folder, "train")
    test_inputs, test_labels = read_pair(folder, "t10k")
    if train_inputs.shape[1:] != test_inputs.shape[1:]:
        raise DataError(
            f"{folder}: training images are {train_inputs.shape[1:]}, test images {test_inputs.shape[1:]}; "
            "these files do not belong together"
        )
    mean, deviation = moments(train_inputs)
    return Dataset(
        scaled(train_inputs, mean, deviation),
        torch.from_numpy(train_labels.astype(np.int64)),
        scaled(test_inputs, mean, deviation),
        torch.from_numpy(test_labels.astype(np.int64)),
        classes=1 + int(max(train_labels.max(), test_labels.max())),
    )


def find_folder(path: str | None) -> Path:
    """The directory to read: `path`, or the first usual one that exists."""
    folders = [Path(name).expanduser() for name in ((path,) if path else USUAL)]
    for folder in folders:
        if folder.is_dir():
            return folder
    looked = ", ".join(map(str, folders))
    raise DataError(
        f"data.source idx: no directory with train-images-idx3-ubyte(.gz), looked for {looked}; {WHERE_TO_GET}"
    )


def find_file(folder: Path, name: str) -> Path:
    """The file called `name`, in one of the spellings that are in use."""
    spellings = [name, name.replace("-idx", ".idx")]
    candidates = [folder / (spelling + ending) for spelling in spellings for ending in ("", ".gz")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"data.source idx: {folder / name} is missing, and so is {name}.gz; {WHERE_TO_GET}")


def read_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, height, width] and labels [N] of one part, `train` or `t10k`."""
    images_file, labels_file = (
        find_file(folder, f"{part}-images-idx3-ubyte"),
        find_file(folder, f"{part}-labels-idx1-ubyte"),
    )
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels) or not len(labels):
        raise DataError(
            f"{images_file} has {len(images)} images for {len(labels)} labels in {labels_file.name}; get both anew"
        )
    return images, labels


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Unsigned bytes with as many dimensions as expected."""
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw.startswith(GZIPPED) else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file anew") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: is no IDX file of unsigned bytes with {dimensions} dimensions; get the file anew")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path}: holds {len(content) - start} bytes where its header says {math.prod(shape)}; get the file anew"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def moments(images: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, exact: from a histogram, so without a copy of the images as floats."""
    counts = sum(np.bincount(image.ravel(), minlength=256) for image in images)
    values = np.arange(256)
    mean = float((counts * values).sum() / images.size)
    deviation = math.sqrt(float((counts * (values - mean) ** 2).sum() / images.size))
    return mean, deviation or 1.0


def scaled(images: np.ndarray, mean: float, deviation: float) -> torch.Tensor:
    """float32 with about zero mean and unit deviation."""
    return torch.from_numpy(images.astype(np.float32)).sub_(mean).div_(deviation)
