"""The stored tensors of one quantized weight, and access to them with checks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

EXPONENTS = frozenset({"U8", "F8_E8M0"})
"""The dtypes of scales that are exponents of two."""

PART_NAMES = {
    "scale": "scales",
    "zero_point": "zero points",
    "group_index": "group indices",
    "shape": "shape",
    "layout": "layout",
    "outer_scale": "outer scale",
    "divisor": "outer scale",
    "other": "parameters",
}
"""Names of the kinds of companions in messages."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The stored tensors of the quantized weight `name`, found by name only: dtypes and shapes are not checked."""

    name: str
    entry: TensorEntry
    companions: tuple[tuple[str, TensorEntry], ...]
    describe: "Describe"

    def find(self, kind: str) -> TensorEntry | None:
        """Return the companion of a kind, or None.

        Raises:
            CheckpointError: there are several.
        """
        found = [entry for found_kind, entry in self.companions if found_kind == kind]
        if len(found) > 1:
            names = " and ".join(printable(entry.name) for entry in found)
            raise CheckpointError(f"{len(found)} tensors hold its {PART_NAMES[kind]}: {names}")
        return found[0] if found else None

    def need(self, kind: str, dtypes: frozenset[str]) -> TensorEntry:
        """Return the companion of a kind.

        Raises:
            CheckpointError: there is none, there are several, or the dtype is not one of `dtypes`.
        """
        found = self.find(kind)
        if found is None:
            raise CheckpointError(f"the checkpoint lacks its {PART_NAMES[kind]}")
        if found.dtype not in dtypes:
            raise CheckpointError(f"its {PART_NAMES[kind]} are {found.dtype}")
        return found

    def weight(
        self, codec: str, dtype: str, shape: tuple[int, ...], settings: Mapping[str, int | float | str], *kinds: str
    ) -> LogicalWeight:
        """Return the weight that `codec` decodes from these parts, with the companions of `kinds` that exist."""
        return LogicalWeight(
            name=self.name,
            shape=shape,
            dtype=dtype,
            entry=self.entry,
            codec=codec,
            companions=tuple((kind, entry) for kind, entry in self.companions if kind in kinds),
            settings=tuple(settings.items()),
        )


Describe = Callable[[Parts, Mapping[str, Any]], LogicalWeight]
"""(parts, quantization settings of the config) -> the weight that a codec decodes from them, by headers alone.

Raises CheckpointError if the parts do not match; the message is the reason why the weight is skipped.
"""
