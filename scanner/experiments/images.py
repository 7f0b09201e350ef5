"""Small labeled images for training networks: CIFAR-10 from its files, a data set in an .npz file, or the digits of scikit-learn.

The files are not trusted. The batches of CIFAR-10 are pickles; the unpickler used here only builds lists, numbers and byte
strings and calls no code from the file.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.regimes import Normalize

DIGITS = "digits"
"""Name of the 1797 handwritten digits (8 x 8) of scikit-learn, which need no file."""
CLASSES = 10
CIFAR_PIXELS = 3 * 32 * 32
_TRAIN, _TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
_BATCH_BYTES = 64 << 20
"""Largest size of a batch file; a batch of CIFAR-10 has 31 MB."""
_NPZ_BYTES = 2 << 30
_NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
_TEST_SHARE = 3
"""One digit in this many is used for testing."""
_Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Images and labels for training, images and labels for testing, as they were read."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Training and test images (count, pixels) in float32, centered and scaled, and labels from 0."""

    name: str
    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]

    @property
    def pixels(self) -> int:
        """Values per image."""
        return int(self.train.shape[1])

    @property
    def classes(self) -> int:
        """Number of distinct labels."""
        return int(self.train_labels.max()) + 1


def load_images(path: str | None, normalize: Normalize = "pixels") -> Images:
    """Load the images of a file or folder.

    Args:
        path: the folder `cifar-10-batches-py` (CIFAR-10, Python version), or an .npz file with the arrays x_train, y_train,
            x_test and y_test as Keras writes it (images of one shape, labels 0, 1, ...); None: the digits of scikit-learn.
        normalize: subtract the mean training image and divide by the standard deviation of all training values (`pixels`), or
            give each image mean 0 and variance 1 (`images`).

    Raises:
        ScannerError: the file does not exist, its contents are not labeled images, or scikit-learn is not installed.
    """
    if path is None:
        return _prepared(DIGITS, *_digits(), normalize)
    place = Path(path)
    if place.is_dir():
        return _prepared("cifar10", *_cifar10(place), normalize)
    if place.suffix == ".npz" and place.is_file():
        return _prepared(place.stem, *_npz(place), normalize)
    raise ScannerError(
        f"no images at {printable(path)!r}: give the folder cifar-10-batches-py (CIFAR-10, Python version) or an .npz file "
        f"with {', '.join(_NPZ_NAMES)}, or omit `data` to use the digits of scikit-learn"
    )


def _digits() -> _Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ScannerError(
            "the digits need scikit-learn: pip install 'rmtscan[experiments]', or give the folder of CIFAR-10 as `data`"
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))  # the digits are sorted by writer
    held = len(labels) // _TEST_SHARE
    test, train = order[:held], order[held:]
    return images[train], labels[train], images[test], labels[test]


def _cifar10(folder: Path) -> _Arrays:
    missing = [name for name in (*_TRAIN, _TEST) if not (folder / name).is_file()]
    if missing:
        raise ScannerError(
            f"{printable(str(folder))!r} is not the Python version of CIFAR-10: {', '.join(missing)} missing; "
            f"unpack cifar-10-python.tar.gz and give the folder cifar-10-batches-py"
        )
    batches = [_cifar_batch(folder / name) for name in _TRAIN]
    test, test_labels = _cifar_batch(folder / _TEST)
    train = np.concatenate([images for images, _ in batches])
    return train, np.concatenate([labels for _, labels in batches]), test, test_labels


def _npz(path: Path) -> _Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _NPZ_BYTES:
            raise ValueError(f"its arrays have {size:,} bytes uncompressed, more than {_NPZ_BYTES:,}")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in _NPZ_NAMES if name not in arrays]
            if missing:
                raise ValueError(f"{', '.join(missing)} missing")
            train, train_labels, test, test_labels = (np.asarray(arrays[name]) for name in _NPZ_NAMES)
    except Exception as error:  # damaged archives raise zlib.error, BadZipFile, EOFError and others
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise ScannerError(f"{printable(path.name)}: cannot read images: {reason}") from error
    return train, train_labels, test, test_labels


def _prepared(
    name: str,
    train: NDArray[Any],
    train_labels: NDArray[Any],
    test: NDArray[Any],
    test_labels: NDArray[Any],
    normalize: Normalize,
) -> Images:
    """Flatten and check the images, and normalize them."""
    known = []
    for what, images, labels in (("training", train, train_labels), ("test", test, test_labels)):
        labels = labels.reshape(-1)
        numbers = np.issubdtype(images.dtype, np.number) and np.issubdtype(labels.dtype, np.integer)
        if not numbers or np.iscomplexobj(images) or images.ndim < 2 or not len(labels) == len(images) > 0:
            raise ScannerError(
                f"{printable(name)}: the {what} set is {images.dtype} {images.shape} with labels {labels.dtype} "
                f"{labels.shape}; needed are images of real numbers and one integer label per image"
            )
        flat = images.reshape(len(images), -1).astype(np.float32)
        if not np.isfinite(flat).all():
            raise ScannerError(f"{printable(name)}: the {what} set contains NaN or infinite values")
        known.append((flat, labels.astype(np.int64)))
    (train, train_labels), (test, test_labels) = known
    if train.shape[1] != test.shape[1]:
        raise ScannerError(
            f"{printable(name)}: training images have {train.shape[1]} values, test images {test.shape[1]}"
        )
    there = np.unique(train_labels)
    if len(there) < 2 or there[0] != 0 or there[-1] != len(there) - 1 or not np.isin(test_labels, there).all():
        raise ScannerError(
            f"{printable(name)}: labels must be 0, 1, ... (at least two classes, all in the training set)"
        )
    mean, deviation = train.mean(axis=0), float(train.std(dtype=np.float64))
    if not deviation > 0.0:
        raise ScannerError(f"{printable(name)}: all training images are equal")
    if normalize == "images":
        train, test = _standardized(train), _standardized(test)
    else:
        train, test = (train - mean) / np.float32(deviation), (test - mean) / np.float32(deviation)
    return Images(name=name, train=train, train_labels=train_labels, test=test, test_labels=test_labels)


def _standardized(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images (count, pixels) that each have mean 0 and variance 1; an image of one color becomes 0."""
    centered = images - images.mean(axis=1, dtype=np.float64, keepdims=True)
    deviation = centered.std(axis=1, keepdims=True)
    found: NDArray[np.float32] = (centered / np.where(deviation > 0.0, deviation, 1.0)).astype(np.float32)
    return found


# ---- Batches of CIFAR-10: pickles of numpy arrays from Python 2, read without calling numpy's reconstruction functions


class _Array:
    """Stand-in for numpy's `_reconstruct`: keeps the state of a byte array until its size has been checked."""

    def __init__(self, *_: object) -> None:
        self.shape: tuple[int, ...] = ()
        self.content = b""

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError("an array has no state")
        _, shape, kind, fortran, content = state
        whole = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not (whole and isinstance(kind, _Kind) and kind.name == "u1" and isinstance(content, bytes)) or fortran:
            raise pickle.UnpicklingError("an array does not consist of bytes")
        if math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} has {len(content)} bytes")
        self.shape, self.content = shape, content

    def array(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.content, dtype=np.uint8).reshape(self.shape)


class _Kind:
    """Stand-in for numpy's `dtype`: keeps its name only."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and fields, which bytes do not have."""


class _Name:
    """Stand-in for the class `ndarray`, which is only passed to `_reconstruct`."""


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    (f"numpy.{core}multiarray", "_reconstruct"): _Array for core in ("core.", "_core.")
} | {("numpy", "ndarray"): _Name, ("numpy", "dtype"): _Kind}


class _Unpickler(pickle.Unpickler):
    """Resolves only the names that a batch needs, to stand-ins; any other name in the file is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _KNOWN[module, name]


def _cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the images (count, 3072) and labels of one batch."""
    try:
        size = path.stat().st_size
        if size > _BATCH_BYTES:
            raise ScannerError(f"{path.name} has {size:,} bytes, more than a batch of CIFAR-10")
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except ScannerError:
        raise
    except Exception as error:  # damaged pickles raise exceptions of many types
        raise ScannerError(f"{path.name} cannot be read as a batch of CIFAR-10: {printable(str(error))}") from error
    named = {key: value for key, value in batch.items() if isinstance(key, bytes)} if isinstance(batch, dict) else {}
    images, labels = named.get(b"data"), named.get(b"labels")
    if not (
        isinstance(images, _Array)
        and isinstance(labels, list)
        and len(images.shape) == 2
        and images.shape == (len(labels), CIFAR_PIXELS)
    ):
        raise ScannerError(
            f"{path.name} is not a batch of CIFAR-10: it needs 'data' with rows of {CIFAR_PIXELS} bytes, and 'labels'"
        )
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise ScannerError(f"{path.name} has labels outside 0 to {CLASSES - 1}")
    return images.array(), np.array(labels, dtype=np.int64)
