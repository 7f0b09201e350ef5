"""Options of commands that compute: where they run, and how a scan reads and stores."""

from __future__ import annotations

from dataclasses import dataclass

from scanner.configuration import Checked, option
from scanner.errors import ConfigError
from scanner.rmt.vocabulary import ENSEMBLES, Ensemble


@dataclass(frozen=True, kw_only=True)
class PoolOptions(Checked):
    """Where and on how many workers a command runs.

    Raises:
        ConfigError: a value out of range.
    """

    address: str | None = option(None, metavar="ADDRESS")
    """Join a running Ray cluster: auto, HOST:PORT or ray://HOST:PORT; None: the cluster in RAY_ADDRESS, else a local Ray."""
    workers: int | None = option(None, min=1)
    """Largest number of workers, with a GPU or without, and of cores that those without one take; None: in scans and comparisons
    one per GPU and one per core that is left, elsewhere one per GPU if there are GPUs, else one per CPU core."""
    gpus_per_worker: float | None = option(None, min=0)
    """Share of a GPU for each worker. Unless it is given, scans and comparisons use GPUs that are faster in float64 than a core,
    and the cores that are left; None: 1 where the cluster has GPUs, else 0."""
    task_timeout: float | None = option(None, metavar="SECONDS", min=0)
    """Seconds without a result after which a worker is replaced and its task retried; None: estimated from the size of matrices,
    a day in experiments."""

    share_cores: bool = True
    """Let the last large matrices use the cores of workers that have nothing left to do, and large matrices the cores for which
    there is no memory. Singular values then agree to 1e-9 with those of one thread, and D to 1e-6, but not bit for bit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_timeout is not None and not self.task_timeout > 0:
            raise ConfigError("task_timeout", f"must be a positive number of seconds, got {self.task_timeout:g}")
        share = self.gpus_per_worker or 0.0
        if round(share, 4) != share or (share > 1 and share != int(share)):
            raise ConfigError(
                "gpus_per_worker", f"must be a share of one GPU with at most 4 decimals, or a whole number, got {share}"
            )


@dataclass(frozen=True, kw_only=True)
class ReuseOptions(Checked):
    """Whether existing results are reused."""

    force: bool = False
    """Compute again even if the store has the results."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions(ReuseOptions):
    """How checkpoints are read, and whether existing results are reused."""

    download: bool = False
    """Download whole files from the Hub into its cache instead of reading byte ranges."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions(ReadOptions):
    """How checkpoints are scanned, apart from the method.

    Raises:
        ConfigError: fewer than one draw.
    """

    ensembles: tuple[Ensemble, ...] = option(ENSEMBLES, name="ensemble", metavar="NAME,...")
    """Random controls. For every shape: gaussian, kaiming_uniform. For every matrix, each at the cost of a scan: permuted (its
    entries in random order), sign (random signs), scale (a draw of the scale null). `--ensemble ""`: none."""
    control_draws: int = option(1, min=1)
    """Draws of each control, with the seeds 0, 1, ..."""
