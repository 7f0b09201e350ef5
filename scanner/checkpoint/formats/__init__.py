"""The file formats of checkpoints, each in one module behind the interface `Format`.

The order of registration is the order of preference when a folder holds weights in several formats.
"""

from scanner.checkpoint.formats.adapters import MlxAdapter, PeftAdapter, is_change
from scanner.checkpoint.formats.format import (
    Format,
    Headers,
    WeightFiles,
    decoder_of,
    format_of,
    formats,
    get_format,
    register_format,
)
from scanner.checkpoint.formats.gguf import Gguf
from scanner.checkpoint.formats.memory import Memory
from scanner.checkpoint.formats.pytorch import PyTorch
from scanner.checkpoint.formats.safetensors import Safetensors

__all__ = [
    "Format",
    "Headers",
    "WeightFiles",
    "decoder_of",
    "format_of",
    "formats",
    "get_format",
    "is_change",
    "register_format",
]

for _built_in in (Safetensors(), Gguf(), PyTorch(), PeftAdapter(), MlxAdapter(), Memory()):
    register_format(_built_in)
