"""How many cores a command would compute on, before Ray says so."""

from __future__ import annotations

import math
import os
from pathlib import Path

from scanner.engine.options import PoolOptions

_CGROUP = Path("/sys/fs/cgroup")


def expected_cores(options: PoolOptions) -> int:
    """Return the number of cores of the cluster that the options name, otherwise of this process.

    Raises:
        ScannerError: there is no cluster at the address.
    """
    if (options.address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        return usable_cores()
    from scanner.engine.session import cluster_cores  # Ray takes seconds to load

    return cluster_cores(options)


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Return the number of cores that this process may use: a container has fewer than its machine.

    Args:
        cgroup: where the limits of the control group are, of version 2 or 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(_quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Return the cores of a control group; infinite if they are not limited."""
    for limits in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (number for name in limits for number in (cgroup / name).read_text("ascii").split())
            if float(quota) > 0 and float(period) > 0:
                return float(quota) / float(period)
        except (OSError, ValueError):  # another version, or `max`: no limit
            continue
    return 1e9
