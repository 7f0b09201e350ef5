"""Small images with labels, for networks that are trained here: CIFAR-10 from its files, any set in an .npz, or digits.

The files are untrusted: CIFAR-10's batches are pickles, and are read by an unpickler that builds lists, numbers and byte
strings, and calls nothing.
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

DIGITS = "digits"
"""The name of scikit-learn's set of 1797 handwritten digits of 8 x 8, which needs no file."""
CLASSES = 10
CIFAR_PIXELS = 3 * 32 * 32
_TRAIN, _TEST = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
_BATCH_BYTES = 64 << 20
"""A batch of CIFAR-10 has 31 MB."""
_NPZ_BYTES = 2 << 30
_NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
_TEST_SHARE = 3
"""One in so many of the digits is kept for testing."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Training and test images as rows of float32 (count x pixels), centred and scaled by the training set; labels from 0."""

    name: str
    train: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]

    @property
    def pixels(self) -> int:
        """Numbers in a image."""
        return int(self.train.shape[1])

    @property
    def classes(self) -> int:
        """How many different labels there are."""
        return int(self.train_labels.max()) + 1


def load_images(path: str | None) -> Images:
    """The images of a file or folder; None: scikit-learn's digits.

    Args:
        path: the folder `cifar-10-batches-py` (CIFAR-10, python version), or an .npz with arrays x_train, y_train, x_test and
            y_test as Keras writes it (images of any one shape, labels 0, 1, ...).

    Raises:
        ScannerError: no such file, or contents that are not images with labels; or scikit-learn is missing.
    """
    if path is None:
        return _digits()
    place = Path(path)
    if place.is_dir():
        return _cifar10(place)
    if place.suffix == ".npz" and place.is_file():
        return _npz(place)
    raise ScannerError(
        f"no images at {printable(path)!r}: name the folder cifar-10-batches-py (CIFAR-10, python version), or an .npz file "
        f"with {', '.join(_NPZ_NAMES)}; without `data` the digits of scikit-learn are used"
    )


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ScannerError(
            "the digits come with scikit-learn: pip install 'rmtscan[experiments]', or name CIFAR-10's files with `data`"
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))  # the set is sorted by writer
    held = len(labels) // _TEST_SHARE
    test, train = order[:held], order[held:]
    return _prepared(DIGITS, images[train], labels[train], images[test], labels[test])


def _cifar10(folder: Path) -> Images:
    missing = [name for name in (*_TRAIN, _TEST) if not (folder / name).is_file()]
    if missing:
        raise ScannerError(
            f"{printable(str(folder))!r} is not CIFAR-10's python version: it has no {', '.join(missing)}; "
            f"unpack cifar-10-python.tar.gz and name the folder cifar-10-batches-py"
        )
    batches = [_cifar_batch(folder / name) for name in _TRAIN]
    test, test_labels = _cifar_batch(folder / _TEST)
    train = np.concatenate([images for images, _ in batches])
    return _prepared("cifar10", train, np.concatenate([labels for _, labels in batches]), test, test_labels)


def _npz(path: Path) -> Images:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _NPZ_BYTES:
            raise ValueError(f"its arrays take {size:,} bytes unpacked, more than {_NPZ_BYTES:,}")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in _NPZ_NAMES if name not in arrays]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            found = [np.asarray(arrays[name]) for name in _NPZ_NAMES]
    except Exception as error:  # what a damaged archive raises has no common base: zlib.error, BadZipFile, EOFError ...
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise ScannerError(f"{printable(path.name)}: no images can be read: {reason}") from error
    return _prepared(path.stem, *found)


def _prepared(
    name: str, train: NDArray[Any], train_labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any]
) -> Images:
    """Images as flat rows: the training set's mean image taken off, divided by its one standard deviation."""
    known = []
    for what, images, labels in (("training", train, train_labels), ("test", test, test_labels)):
        labels = labels.reshape(-1)
        numbers = np.issubdtype(images.dtype, np.number) and np.issubdtype(labels.dtype, np.integer)
        if not numbers or np.iscomplexobj(images) or images.ndim < 2 or not len(labels) == len(images) > 0:
            raise ScannerError(
                f"{printable(name)}: the {what} set is {images.dtype} {images.shape} with labels {labels.dtype} "
                f"{labels.shape}: one integer label for each image of real numbers is needed"
            )
        flat = images.reshape(len(images), -1).astype(np.float32)
        if not np.isfinite(flat).all():
            raise ScannerError(f"{printable(name)}: the {what} set holds NaN or infinite numbers")
        known.append((flat, labels.astype(np.int64)))
    (train, train_labels), (test, test_labels) = known
    if train.shape[1] != test.shape[1]:
        raise ScannerError(
            f"{printable(name)}: training images have {train.shape[1]} numbers, test images {test.shape[1]}"
        )
    there = np.unique(train_labels)
    if len(there) < 2 or there[0] != 0 or there[-1] != len(there) - 1 or not np.isin(test_labels, there).all():
        raise ScannerError(
            f"{printable(name)}: labels must be 0, 1, ... (two or more classes, each in the training set)"
        )
    mean, deviation = train.mean(axis=0), float(train.std(dtype=np.float64))
    if not deviation > 0.0:
        raise ScannerError(f"{printable(name)}: all training images are equal")
    return Images(
        name=name,
        train=(train - mean) / np.float32(deviation),
        train_labels=train_labels,
        test=(test - mean) / np.float32(deviation),
        test_labels=test_labels,
    )


# ---- CIFAR-10's batches: pickles of numpy under Python 2, read without numpy's part in it


class _Array:
    """Stands for numpy's `_reconstruct`: keeps the state of an array of bytes, and makes none before its size is checked."""

    def __init__(self, *_: object) -> None:
        self.shape: tuple[int, ...] = ()
        self.content = b""

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError("an array without a state")
        _, shape, kind, fortran, content = state
        whole = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not (whole and isinstance(kind, _Kind) and kind.name == "u1" and isinstance(content, bytes)) or fortran:
            raise pickle.UnpicklingError("an array of other things than bytes")
        if math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes")
        self.shape, self.content = shape, content

    def array(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.content, dtype=np.uint8).reshape(self.shape)


class _Kind:
    """Stands for numpy's `dtype`: its name and nothing more."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        """Byte order and fields do not matter to bytes."""


class _Name:
    """Stands for the class `ndarray`, which is only ever passed to `_reconstruct`."""


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    (f"numpy.{core}multiarray", "_reconstruct"): _Array for core in ("core.", "_core.")
} | {("numpy", "ndarray"): _Name, ("numpy", "dtype"): _Kind}


class _Unpickler(pickle.Unpickler):
    """Knows the three names that a batch needs, and has stand-ins for them: nothing in the file can name anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def _cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (count x 3072) and labels of one batch."""
    try:
        size = path.stat().st_size
        if size > _BATCH_BYTES:
            raise ScannerError(f"{path.name} has {size:,} bytes: no batch of CIFAR-10 is as large")
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except ScannerError:
        raise
    except Exception as error:  # what a damaged pickle raises has no common base
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
            f"{path.name} is no batch of CIFAR-10: 'data' with rows of {CIFAR_PIXELS} bytes, and 'labels', are needed"
        )
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise ScannerError(f"{path.name} has labels that are not 0 to {CLASSES - 1}")
    return images.array(), np.array(labels, dtype=np.int64)
