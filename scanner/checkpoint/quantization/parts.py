"""The stored tensors that make one quantised weight, and how they are asked for; codecs check that they fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

EXPONENTS = frozenset({"U8", "F8_E8M0"})
"""The dtypes of scales that are powers of two."""

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
"""What companions are called in messages, by kind."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The stored tensors of one quantised weight called `name`, found by their names: nothing about them is checked."""

    name: str
    entry: TensorEntry
    companions: tuple[tuple[str, TensorEntry], ...]
    describe: "Describe"

    def find(self, kind: str) -> TensorEntry | None:
        """Return the companion of a kind, if there is one.

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
            CheckpointError: there is none, there are several, or it has none of these dtypes.
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
        """Return the weight that `codec` will decode from these parts, given those of the companions that there are."""
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
"""(parts, quantisation settings of the config) -> what a codec will make of them, from headers alone.

Raises CheckpointError when they do not fit each other; its message is the reason why the weight is skipped.
"""
