"""The format of models in memory: no files, and the names that PyTorch modules give to their tensors."""

from collections.abc import Sequence

from scanner.checkpoint.formats.format import Format
from scanner.checkpoint.model import TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files
from scanner.errors import CheckpointError


class Memory(Format):
    """A model in memory, which `scanner.checkpoint.memory` opens; roles, packings and ties are those of saved models."""

    name = "memory"
    title = "model in memory"

    def read_file(self, files: Files, name: str) -> Sequence[TensorEntry]:
        """Raise CheckpointError: nothing in memory is a file.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{printable(name)} is not a file: pass the model to `scanner.analyze_model`")
