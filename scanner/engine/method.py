"""How a checkpoint is scanned, and the identity of a scan that follows from what is scanned and how."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from scanner.checkpoint import Selection
from scanner.errors import ScannerError
from scanner.rmt.analysis import METHOD_VERSION
from scanner.rmt.ks_null import KsNull
from scanner.rmt.sigma import SIGMA_KINDS, SigmaKind


@dataclass(frozen=True, kw_only=True)
class Method:
    """Every parameter that decides what the rows of a scan are."""

    sigma: SigmaKind = "median"
    """The estimate of sigma that the Marchenko-Pastur edges come from."""
    null: str = "table"
    """Where p-values come from: `table` or `mc:N`."""
    selection: Selection = field(default_factory=Selection)
    """Which matrices are scanned."""

    def __post_init__(self) -> None:
        if self.sigma not in SIGMA_KINDS:
            raise ScannerError(f"unknown sigma {self.sigma!r}: it is one of {', '.join(SIGMA_KINDS)}")
        try:
            KsNull.parse(self.null)
        except ValueError as error:
            raise ScannerError(str(error)) from error

    def as_dict(self) -> dict[str, Any]:
        """The parameters as JSON types, in a fixed order; stored with every result."""
        return {
            "version": METHOD_VERSION,
            "sigma": self.sigma,
            "null": self.null,
            "only": sorted(set(self.selection.only)),
            "layers": sorted(set(self.selection.layers)),
            "embeddings": self.selection.embeddings,
            "heads": self.selection.heads,
        }


def scan_id(identity: str, method: Method) -> str:
    """16 hexadecimal digits that name the scan of this content by this method, on every machine and in every run."""
    text = json.dumps({"content": identity, "method": method.as_dict()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
