"""Tensors in memory as a source: every byte range is that of the numbers, in this process and in another."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from scanner.checkpoint import list_matrices, read_matrix
from scanner.checkpoint.memory import identity_of, opened_model
from scanner.checkpoint.sources import memory_files
from scanner.checkpoint.sources.files import ByteRange, open_files
from scanner.checkpoint.sources.memory_files import FILE, Extent, MemoryFiles
from scanner.errors import CheckpointError

FIRST, SECOND = np.arange(40, dtype=np.uint8), np.arange(100, 130, dtype=np.uint8)


def extents() -> Iterator[Extent]:
    yield Extent(start=0, size=FIRST.size, read=lambda first, last: FIRST[first:last].copy())
    yield Extent(start=FIRST.size, size=SECOND.size, read=lambda first, last: SECOND[first:last].copy())


@pytest.fixture(params=[False, True], ids=["here", "served"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = memory_files.hold(extents(), serve=request.param)
    with monkeypatch.context() as patch:
        if request.param:  # this process is another one: it only knows the name
            patch.delitem(memory_files._held, name)
        yield name
    memory_files.release(name)


def test_ranges_are_those_of_the_tensors_and_copies(source: str) -> None:
    files = open_files(source)
    assert isinstance(files, MemoryFiles)
    assert (files.names(), files.size(FILE), files.has(FILE), files.has("other")) == ((FILE,), 70, True, False)
    found = files.read_ranges(
        [ByteRange(name=FILE, start=a, size=n) for a, n in ((0, 40), (5, 3), (40, 30), (69, 1), (7, 0))]
    )
    expected = [FIRST, FIRST[5:8], SECOND, SECOND[29:], FIRST[:0]]
    assert [list(one) for one in found] == [list(one) for one in expected]
    assert all(one.flags.writeable for one in found)
    found[0][:] = 0
    assert FIRST[39] == 39
    assert files.read(FILE, 40, 2) == bytes([100, 101])


@pytest.mark.parametrize(("start", "size"), [(38, 4), (69, 2), (70, 1), (-1, 2)])
def test_ranges_across_tensors_or_outside_are_errors(source: str, start: int, size: int) -> None:
    with pytest.raises(CheckpointError, match="no tensor in memory has the bytes"):
        open_files(source).read_ranges([ByteRange(name=FILE, start=start, size=size)])


def test_another_process_reads_if_it_knows_the_name() -> None:
    name = memory_files.hold(extents(), serve=True)
    program = (
        "import sys; from scanner.checkpoint.sources.files import open_files; "
        "files = open_files(sys.argv[1]); print(files.size('memory'), files.read('memory', 40, 30).hex())"
    )
    try:
        told = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=True)
        assert told.stdout.split() == ["70", SECOND.tobytes().hex()]
        wrong = name[:-1] + ("0" if name[-1] != "0" else "1")
        refused = subprocess.run([sys.executable, "-c", program, wrong], capture_output=True, text=True, check=False)
        assert "the model is no longer in memory: analyze it again" in refused.stderr
        # Whoever does not know the name ends nothing.
        assert open_files(name).size(FILE) == 70
    finally:
        memory_files.release(name)


@pytest.mark.parametrize("serve", [False, True])
def test_after_the_release_nothing_can_be_read_and_no_thread_is_left(serve: bool) -> None:
    source = memory_files.hold(extents(), serve=serve)
    memory_files.release(source)
    with pytest.raises(CheckpointError, match="no longer in memory"):
        open_files(source)
    ends = time.monotonic() + 10
    while any(thread.name == "rmtscan-memory" for thread in threading.enumerate()) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not any(thread.name == "rmtscan-memory" for thread in threading.enumerate())


def test_the_identity_is_that_of_names_config_and_numbers() -> None:
    def identity(state: dict[str, torch.Tensor], config: dict[str, object] | None = None, label: str = "") -> str:
        with opened_model(state, config=config) as opened:
            return identity_of(opened, opened.tensors, label=label).identity

    weight = torch.arange(12.0).reshape(3, 4)
    first = identity({"a": weight})
    assert first == identity({"a": weight.clone()}) == identity({"a": weight.T.contiguous().T})
    others = [
        identity({"b": weight}),
        identity({"a": weight + 1}),
        identity({"a": weight.double()}),
        identity({"a": weight.reshape(4, 3)}),
        identity({"a": weight}, config={"model_type": "gpt2"}),
        identity({"a": weight}, label="step-1"),
        identity({"a": weight, "b": weight + 1}),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_parts_of_stacks_are_read_by_themselves() -> None:
    """Experts are parts of one tensor, and only their bytes are asked for."""
    stack = torch.randn(4, 6, 5)
    config = {"model_type": "mixtral", "num_local_experts": 4, "hidden_size": 5, "intermediate_size": 6}
    with opened_model({"layers.0.mlp.experts.down_proj": stack.transpose(1, 2)}, config=config) as opened:
        refs = list_matrices(opened).matrices
        assert [ref.expert for ref in refs] == [0, 1, 2, 3]
        assert {ref.entry.size for ref in refs} == {6 * 5 * 4}
        for ref, expert in zip(refs, stack, strict=True):
            assert torch.equal(read_matrix(opened.source, ref), expert.T)
