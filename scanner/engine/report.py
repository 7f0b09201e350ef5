"""What a scan returns: the result of each reference, and of the command."""

from __future__ import annotations

from dataclasses import dataclass, field

from scanner import display
from scanner.errors import ScannerError


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """Result of one reference: the three counts add up to the tensors of the checkpoint; slices count as one each."""

    reference: str
    model: str = ""
    revision: str = ""
    scan_id: str = ""
    analyzed: int = 0
    """Number of analyzed matrices."""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> tensors that were skipped for it."""
    failed: int = 0
    new: bool = True
    """False if the store already had this scan."""
    error: ScannerError | None = None
    """Why the reference cannot be scanned."""
    beside: tuple[str, ...] = ()
    """References of other models in the same folder, which are not part of this one."""

    def __repr__(self) -> str:
        name = display.plain(self.model or self.reference)
        if self.error is not None:
            return f"ModelReport({name!r}: not scanned, {display.plain(self.error, 300)})"
        known = "" if self.new else ", already in the store"
        matrices = display.counted(self.analyzed, "matrix", "matrices")
        return f"ModelReport({name!r}: {matrices}, {self.failed} failed, {self.skipped_count} skipped{known})"

    @property
    def analysed(self) -> int:
        """The earlier name of `analyzed`."""
        return self.analyzed

    @property
    def skipped_count(self) -> int:
        """Number of skipped tensors."""
        return sum(len(names) for names in self.skipped.values())


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """Results of all references of one command, in the order in which they were named."""

    store: str
    models: tuple[ModelReport, ...]

    def __repr__(self) -> str:
        matrices = display.counted(sum(model.analyzed for model in self.models), "matrix", "matrices")
        errors = f", {len(self.errors)} not scanned" if self.errors else ""
        models = display.counted(len(self.models), "model")
        return f"ScanReport({models}: {matrices}, {self.failed} failed{errors}; store {display.plain(self.store)!r})"

    def _repr_html_(self) -> str:
        head = ("model", "revision", "matrices", "failed", "skipped", "")
        rows = [
            (
                model.model or model.reference,
                model.revision[:12],
                *((model.analyzed, model.failed, model.skipped_count) if model.error is None else (None, None, None)),
                str(model.error) if model.error is not None else "" if model.new else "already in the store",
            )
            for model in self.models[: display.MOST_ROWS]
        ]
        left = len(self.models) - len(rows)
        notes = [f"{left} more models"] if left else []
        return display.html_table(head, rows, caption=f"scan into {display.bold(self.store)}", notes=notes)

    @property
    def failed(self) -> int:
        """Number of failed tensors of all models."""
        return sum(model.failed for model in self.models)

    @property
    def errors(self) -> tuple[ModelReport, ...]:
        """References that could not be scanned."""
        return tuple(model for model in self.models if model.error is not None)

    @property
    def exit_status(self) -> int:
        """0: done; 1: a reference cannot be scanned; 3: some tensors failed."""
        return 1 if self.errors else 3 if self.failed else 0
