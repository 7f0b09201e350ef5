"""Untrusted names: checks for plain file names, escapes for the terminal, and what the name of a tensor says about it."""

import re
from pathlib import PureWindowsPath

MAX_SHOWN = 200

# What the optimizers of torch call their tensors, which have the shapes of the weights.
_OPTIMIZER = re.compile(
    r"(?:\A|\.)(?:(?:max_)?exp_avgs?(?:_sqs?|_diff)?|exp_inf|momentum_buffer|square_avg|grad_avg|acc_delta|sum_of_squares"
    r"|exp_avg_sq_(?:row|col)|optim(?:izer)?s?(?:_states?)?)(?:\.|\Z)"
)
_AVERAGE = re.compile(r"(?:\w+_)?ema(?:_\w+)?\.", re.IGNORECASE)


def printable(name: str) -> str:
    """Return `name`, at most 200 characters of it, with control characters and bidi overrides escaped."""
    start = name[: MAX_SHOWN + 1]
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in start)
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 1] + "…"


def is_plain_name(name: str) -> bool:
    """Tell whether `name` is a file name and nothing else: no folder, no drive, no `..`."""
    # The rules of Windows cover every separator, and the name may have been written for any system.
    return name not in ("", ".", "..") and "\0" not in name and PureWindowsPath(name).name == name


def module_of(name: str) -> str:
    """Return the name of the module that a tensor or a module belongs to; empty at the top level."""
    return name.rpartition(".")[0]


def is_optimizer_state(name: str) -> bool:
    """Tell whether a tensor belongs to an optimizer, by its name."""
    return _OPTIMIZER.search(name) is not None


def is_average(name: str) -> bool:
    """Tell whether a tensor is a moving average of another one (EMA), by the beginning of its name."""
    return _AVERAGE.match(name) is not None
