"""Every configuration checks its values against what its fields declare: type, range and choices."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch

from scanner.checkpoint import Selection
from scanner.compress import Config as Compress
from scanner.configuration import Checked, option
from scanner.engine import Method, PoolOptions
from scanner.engine.options import ScanOptions
from scanner.errors import ConfigError
from scanner.experiments.experiment import experiments


@dataclass(frozen=True, kw_only=True)
class Example(Checked):
    count: int = option(1, min=1, max=9)
    share: float | None = None
    name: str = ""
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = option((), choices=("x", "y"))
    numbers: tuple[int, ...] | None = option(None, min=0)
    any_of: int | str = 0


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"count": 0}, "`count` must be at least 1, got 0"),
        ({"count": 10}, "`count` must be at most 9, got 10"),
        ({"count": 1.0}, "`count` must be a whole number, got 1.0"),
        ({"count": True}, "`count` must be a whole number, got True"),
        ({"count": None}, "`count` must be a whole number, got None"),
        ({"count": np.int64(3)}, "`count` must be a whole number, got an object of type int64"),
        ({"share": "half"}, "`share` must be a number, got 'half'"),
        ({"share": math.nan}, "`share` must be a number, got nan"),
        ({"name": torch.nn.Linear(2, 2)}, "`name` must be text, got an object of type Linear"),
        ({"flag": "yes"}, "`flag` must be true or false, got 'yes'"),
        ({"kind": "c"}, "`kind` must be one of a, b, got 'c'"),
        ({"kind": ["a"]}, "`kind` must be one of a, b, got ['a']"),
        ({"names": "x"}, "`names` must be a list, got 'x'"),
        ({"names": 3}, "`names` must be a list, got 3"),
        ({"names": ("x", "z")}, "`names` has 'z', which must be one of x, y"),
        ({"numbers": (0, -1)}, "`numbers` has -1, which must be at least 0"),
        ({"numbers": ("1",)}, "`numbers` has '1', which must be a whole number"),
        ({"name": "x", "kind": "a" * 100}, "`kind` must be one of a, b, got an object of type str"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_one_line(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Example(**values)
    assert str(raised.value) == problem


def test_values_that_fit_are_accepted() -> None:
    made = Example(count=9, share=1, name="n", flag=True, kind="b", names=("x", "y"), numbers=(0, 5), any_of="text")
    assert (made.share, made.numbers) == (1, (0, 5))
    assert Example(share=np.float64(0.5), numbers=None).share == 0.5


def test_every_configuration_checks_every_field() -> None:
    """A value of no known type is refused in whatever field it is given."""
    required = {"model": "m", "text": "t", "output": "o"}
    kinds = [Method, Selection, PoolOptions, ScanOptions, Compress, *(one.config for one in experiments().values())]
    assert len(kinds) >= 10
    for kind in kinds:
        assert is_dataclass(kind)
        base = {one.name: required[one.name] for one in fields(kind) if one.name in required}
        kind(**base)
        for one in fields(kind):
            if one.init and one.name != "selection":
                with pytest.raises(ConfigError, match=f"^`{one.name}` "):
                    kind(**base | {one.name: object()})
