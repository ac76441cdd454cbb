"""IDX files: read as written, and every damage named with its file."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import DataError
from configs.tree import Data
from mach.data import load
from mach.data.idx import moments, read_idx

Write = Callable[[Path, bytes], None]


def idx_bytes(array: np.ndarray, *, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def plain(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def gzipped(path: Path, content: bytes) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))


def gzipped_without_saying_so(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


def parts(train: int = 6, test: int = 3, side: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": random.integers(0, 256, (train, side, side), np.uint8),
        "train-labels-idx1-ubyte": np.arange(train, dtype=np.uint8) % 3,
        "t10k-images-idx3-ubyte": random.integers(0, 256, (test, side, side), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(test, dtype=np.uint8) % 3,
    }


def write(folder: Path, arrays: dict[str, np.ndarray], how: Write = plain) -> Data:
    for name, array in arrays.items():
        how(folder / name, idx_bytes(array))
    return Data(source="idx", path=str(folder))


@pytest.mark.parametrize("how", [plain, gzipped, gzipped_without_saying_so])
@pytest.mark.parametrize("dot", [False, True])
def test_four_files_make_a_data_set(tmp_path: Path, how: Write, dot: bool) -> None:
    arrays = parts()
    named = {name.replace("-idx", ".idx") if dot else name: array for name, array in arrays.items()}
    dataset = load(write(tmp_path, named, how))
    assert dataset.sample_shape == (4, 4)
    assert dataset.classes == 3
    assert dataset.train_inputs.dtype == torch.float32
    assert dataset.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.test_labels.dtype == torch.int64
    images, test = (arrays[f"{part}-images-idx3-ubyte"].astype(np.float64) for part in ("train", "t10k"))
    for found, pixels in ((dataset.train_inputs, images), (dataset.test_inputs, test)):
        expected = torch.from_numpy((pixels - images.mean()) / images.std()).float()
        torch.testing.assert_close(found, expected)


def test_moments_are_those_of_all_pixels_and_of_a_blank_page() -> None:
    images = parts()["train-images-idx3-ubyte"]
    assert moments(images) == pytest.approx((images.mean(), images.std()))
    assert moments(np.full((2, 3, 3), 7, np.uint8)) == (7.0, 1.0)


@pytest.mark.parametrize("name", list(parts()))
def test_a_missing_file_is_named_with_its_place_and_where_to_get_it(tmp_path: Path, name: str) -> None:
    data = write(tmp_path, parts())
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing") as error:
        load(data)
    for part in (str(tmp_path), ".gz", "dataset-fashion-mnist", "data.path=DIR"):
        assert part in str(error.value)


def test_a_missing_directory_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*no/such/place.*dataset-fashion-mnist"):
        load(Data(source="idx", path="no/such/place"))
    monkeypatch.setattr("mach.data.idx.USUAL", ("no/first", "no/second"))
    with pytest.raises(DataError, match="looked for no/first, no/second"):
        load(Data(source="idx"))


def test_the_usual_places_are_looked_at_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, parts())
    monkeypatch.setattr("mach.data.idx.USUAL", ("no/first", str(tmp_path)))
    assert len(load(Data(source="idx")).train_labels) == 6


GOOD = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
GZIPPED = gzip.compress(GOOD, mtime=0)  # the name of a test holds no time of day


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no IDX file"),
        (GOOD[:9], "is no IDX file"),
        (b"\0\0\x08\x01" + GOOD[4:], "is no IDX file of unsigned bytes with 3 dimensions"),
        (b"\0\0\x0d\x03" + GOOD[4:], "is no IDX file of unsigned bytes"),
        (b"<html>not found</html>", "is no IDX file"),
        (GOOD[:-1], "holds 11 bytes where its header says 12"),
        (GOOD + b"\0", "holds 13 bytes where its header says 12"),
        (GOOD[:4] + b"\xff" * 12, "holds 0 bytes where its header says"),
        (GZIPPED[:-4], "cannot be read"),
        (GZIPPED[:20], "cannot be read"),
        (b"\x1f\x8b" + bytes(20), "cannot be read"),
        (GZIPPED[:12] + b"\xff\xff" + GZIPPED[14:], "cannot be read"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)
    assert "get the file anew" in str(error.value)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    arrays = parts()
    arrays["train-labels-idx1-ubyte"] = np.zeros(5, np.uint8)
    with pytest.raises(DataError, match="6 images for 5 labels"):
        load(write(tmp_path, arrays))
    arrays = parts() | {"t10k-images-idx3-ubyte": np.zeros((3, 2, 2), np.uint8)}
    with pytest.raises(DataError, match="do not belong together"):
        load(write(tmp_path, arrays))
    arrays = parts() | {"train-images-idx3-ubyte": np.zeros((0, 4, 4), np.uint8)}
    arrays["train-labels-idx1-ubyte"] = np.zeros(0, np.uint8)
    with pytest.raises(DataError, match="0 images"):
        load(write(tmp_path, arrays))
