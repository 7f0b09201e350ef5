"""Images from files: batches of CIFAR-10 as Python 2 wrote them, .npz, digits, and invalid files."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from scanner.errors import ScannerError
from scanner.experiments.images import CIFAR_PIXELS, load_images


def string(text: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(text)) + text


def integer(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def python2_batch(images: np.ndarray, labels: list[int], *, shape: tuple[int, ...] | None = None) -> bytes:
    """The opcodes that Python 2's cPickle wrote for {'data': array, 'labels': list}, as in CIFAR-10's files."""
    rows, cols = shape or images.shape
    kind = b"cnumpy\ndtype\n" + b"(" + string(b"u1") + b"K\x00K\x01tR" + b"(K\x03" + string(b"|") + b"NNN"
    kind += integer(-1) + integer(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"(cnumpy\nndarray\n" + b"(K\x00t" + string(b"b") + b"tR"
    array += b"(K\x01(" + integer(rows) + integer(cols) + b"t" + kind + b"\x89" + string(images.tobytes()) + b"tb"
    listed = b"(" + b"".join(integer(label) for label in labels) + b"l"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + listed + b"u."


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A folder like that of CIFAR-10, with 20 images per batch."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = rng.integers(0, 256, (20, CIFAR_PIXELS), dtype=np.uint8)
        (folder / name).write_bytes(python2_batch(images, [i % 10 for i in range(20)]))
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_batches_of_these_tests_are_what_numpy_itself_reads(cifar: Path) -> None:
    batch = pickle.loads((cifar / "data_batch_1").read_bytes(), encoding="bytes")
    assert batch[b"data"].shape == (20, CIFAR_PIXELS)
    assert batch[b"labels"] == [i % 10 for i in range(20)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cifar_is_read_as_numpy_reads_it(cifar: Path) -> None:
    found = load_images(str(cifar))
    raw = [pickle.loads((cifar / f"data_batch_{i}").read_bytes(), encoding="bytes") for i in range(1, 6)]
    train = np.concatenate([batch[b"data"] for batch in raw]).astype(np.float64)
    assert (found.name, found.pixels, found.classes) == ("cifar10", 3072, 10)
    assert found.train == pytest.approx((train - train.mean(axis=0)) / train.std(), abs=1e-4)
    assert found.train_labels.tolist() == [i % 10 for i in range(20)] * 5
    assert len(found.test) == 20


def test_every_image_by_itself(tmp_path: Path) -> None:
    given = arrays()
    given["x_train"] = 5.0 * given["x_train"] + np.arange(12)[:, None, None]
    given["x_test"][2] = 7.0  # one color
    np.savez(tmp_path / "small.npz", **given)  # type: ignore[arg-type]
    found = load_images(str(tmp_path / "small.npz"), "images")
    for images, raw in ((found.train, given["x_train"]), (found.test, given["x_test"])):
        assert images.dtype == np.float32
        for image, values in zip(images, raw.reshape(len(raw), 6), strict=True):
            deviation = values.std() or 1.0
            assert image == pytest.approx((values - values.mean()) / deviation, abs=1e-5)
    assert found.test[2].tolist() == [0.0] * 6
    assert found.train_labels.tolist() == load_images(str(tmp_path / "small.npz")).train_labels.tolist()


def test_a_pickle_that_names_anything_else_runs_nothing(cifar: Path) -> None:
    trace = cifar / "trace"
    (cifar / "data_batch_3").write_bytes(b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR.")
    with pytest.raises(ScannerError, match=r"data_batch_3.*os\.system"):
        load_images(str(cifar))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"\x80\x02}.", "is not a batch"),
        (b"no pickle at all", "cannot be read"),
        (python2_batch(np.zeros((2, CIFAR_PIXELS), np.uint8), [0]), "is not a batch"),
        (python2_batch(np.zeros((2, CIFAR_PIXELS), np.uint8), [0, 10]), "labels"),
        (python2_batch(np.zeros((2, 5), np.uint8), [0, 1]), "is not a batch"),
        (python2_batch(np.zeros((1, CIFAR_PIXELS), np.uint8), [0], shape=(10**9, CIFAR_PIXELS)), "shape"),
    ],
)
def test_damaged_batches_are_told(cifar: Path, content: bytes, said: str) -> None:
    (cifar / "test_batch").write_bytes(content)
    with pytest.raises(ScannerError, match=f"test_batch.*{said}"):
        load_images(str(cifar))


def test_a_missing_batch_and_a_missing_file_are_told(cifar: Path) -> None:
    (cifar / "data_batch_5").unlink()
    with pytest.raises(ScannerError, match="data_batch_5"):
        load_images(str(cifar))
    with pytest.raises(ScannerError, match="no images"):
        load_images(str(cifar / "nowhere"))


def arrays(count: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    images = rng.standard_normal((count, 3, 2))
    labels = np.arange(count) % 3
    return {"x_train": images, "y_train": labels, "x_test": images[:6], "y_test": labels[:6].reshape(-1, 1)}


def test_an_npz_as_keras_writes_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", **arrays())
    found = load_images(str(tmp_path / "small.npz"))
    assert (found.name, found.pixels, found.classes, found.test_labels.tolist()) == ("small", 6, 3, [0, 1, 2, 0, 1, 2])
    assert found.train.mean(axis=0) == pytest.approx(np.zeros(6), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x_test": None}, "x_test"),
        ({"x_train": np.array([{}] * 12, dtype=object)}, "cannot read images"),
        ({"y_train": np.zeros(12, int)}, "at least two classes"),
        ({"y_train": np.arange(12) + 1}, "labels must be"),
        ({"y_train": np.arange(11)}, "one integer label"),
        ({"y_test": np.full(6, 7)}, "all in the training set"),
        ({"x_test": np.zeros((6, 5))}, "5"),
        ({"x_train": np.full((12, 3, 2), np.nan)}, "NaN"),
        ({"x_train": np.ones((12, 3, 2))}, "equal"),
    ],
)
def test_other_npz_files_are_told(tmp_path: Path, change: dict[str, np.ndarray | None], said: str) -> None:
    kept = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "odd.npz", **kept)  # type: ignore[arg-type]
    with pytest.raises(ScannerError, match=said):
        load_images(str(tmp_path / "odd.npz"))


def test_a_file_that_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK but not really")
    with pytest.raises(ScannerError, match=r"x\.npz"):
        load_images(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("damage", ["content", "method", "header"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "small.npz"
    np.savez_compressed(path, **arrays())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if damage == "content":  # zlib.error
        start = entries[0].header_offset + 30 + len(entries[0].filename) + 20
        content[start : start + 60] = b"\xff" * 60
    elif damage == "method":  # NotImplementedError: a compression that zipfile does not support
        for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            content[content.index(mark) + place] = 77
    else:  # ValueError of several lines: a header that numpy rejects
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1,) * 9000})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x_train.npy", header.getvalue())
            for entry in entries[1:]:
                archive.writestr(entry.filename, b"")
        content = bytearray(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(ScannerError, match=r"^small\.npz: cannot read images: \S") as told:
        load_images(str(path))
    assert "\n" not in str(told.value)
    assert "\\n" not in str(told.value)


def test_digits_come_with_scikit_learn() -> None:
    found = load_images(None)
    assert (found.name, found.pixels, found.classes) == ("digits", 64, 10)
    assert (len(found.train), len(found.test)) == (1198, 599)
    assert np.bincount(found.test_labels).min() > 40
