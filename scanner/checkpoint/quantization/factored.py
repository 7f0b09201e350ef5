"""Linear layers that `rmtscan compress --factored` kept as two: the weight of the layer is the product of both.

W = L R, with L (out x r) in `X.factor_out.weight` and R (r x in) in `X.factor_in.weight`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.low_rank import CODEC
from scanner.checkpoint.quantization.parts import FLOATS

_FACTOR = re.compile(r"(?P<module>.+)\.factor_(?P<side>in|out)\.weight", re.DOTALL)


def factored_weights(
    tensors: Sequence[TensorEntry], config: Mapping[str, Any], checkpoint: Sequence[TensorEntry]
) -> tuple[list[LogicalWeight], dict[str, str]]:
    """Return the weights that are stored as two factors, and why the other factors are skipped, by name.

    Args:
        tensors: the tensors that may be factors.
        config: the config of the checkpoint, which says nothing about them.
        checkpoint: all tensors of the checkpoint, with distinct names.
    """
    found: dict[str, dict[str, TensorEntry]] = {}
    for entry in tensors:
        if match := _FACTOR.fullmatch(entry.name):
            found.setdefault(match["module"], {})[match["side"]] = entry
    weights: list[LogicalWeight] = []
    skipped: dict[str, str] = {}
    taken = {entry.name for entry in checkpoint}
    for module, sides in found.items():
        first, second, name = sides.get("in"), sides.get("out"), f"{module}.weight"
        fits = (
            first is not None
            and second is not None
            and len(first.shape) == len(second.shape) == 2
            and first.shape[0] == second.shape[1]
            and 0 not in (*first.shape, *second.shape)
            and {first.dtype, second.dtype} <= FLOATS
            and name not in taken
        )
        if first is None or second is None or not fits:
            skipped |= {
                entry.name: f"factor of {printable(module)} that has no fitting other one" for entry in sides.values()
            }
            continue
        skipped[first.name] = f"factor of {printable(module)}"
        weights.append(
            LogicalWeight(
                name=name,
                shape=(second.shape[0], first.shape[1]),
                dtype=second.dtype,
                entry=second,
                codec=CODEC,
                companions=(("A", first),),
                settings=(("scale", 1.0),),
            )
        )
    return weights, skipped
