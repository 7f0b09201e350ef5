"""The folder of a compressed checkpoint, written under a temporary name and renamed when it is complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from scanner.checkpoint.names import printable
from scanner.compress.factored import REPORT, WEIGHTS
from scanner.errors import ConfigError, ScannerError


def check_output(output: str) -> Path:
    """Return the path of the folder, before anything is computed.

    Raises:
        ConfigError: it is a file, a folder that is not empty, or in a folder that does not exist or cannot be written.
    """
    path = Path(output).expanduser()
    shown = printable(str(path))
    with contextlib.suppress(FileNotFoundError):
        if not path.is_dir():
            path.lstat()
            raise ConfigError("output", f"{shown} is a file: name a folder")
        if any(path.iterdir()):
            raise ConfigError("output", f"{shown} is not empty: name another folder, or empty it first")
    if not path.absolute().parent.is_dir():
        raise ConfigError("output", f"{shown}: there is no folder {printable(str(path.absolute().parent))}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError("output", f"{shown} cannot be written: {printable(str(path.absolute().parent))} is read-only")
    return path.absolute()


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which gets this name when the block ends without an error.

    Raises:
        ScannerError: the disk is full, the folder cannot be written, or there are files in `path` by now.
    """
    shown = printable(str(path))
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.iterdir():  # safetensors makes files that only their owner can read
            file.chmod(0o666 & ~_umask())
        temporary.replace(path)  # of an empty folder: that is replaced; of another: an error
        temporary = None
    except (OSError, SafetensorError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise ScannerError(f"{shown} cannot be written: {printable(reason)}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def write(
    path: Path,
    model: Any,
    tokenizer: Any | None,
    report: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    factored: bool,
    quiet: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Write a model, its tokenizer and the report. The model is converted to `dtype` in place.

    Raises:
        ScannerError: the disk is full, the folder cannot be written, or there are files in it by now.
    """
    with complete(path) as folder, quiet():
        model.to(dtype)
        model.config.dtype = dtype
        model.config.architectures = [type(model).__name__]  # a GGUF file names none
        if factored:
            model.config.save_pretrained(folder)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(folder)
            save_file(_distinct(model.state_dict()), folder / WEIGHTS, metadata={"format": "pt"})
        else:
            model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", "utf-8")


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a model, of tied ones the first."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in seen or not tensor.numel():
            seen.add(key)
            found[name] = tensor.contiguous()
    return found
