from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from scanner.checkpoint import Selection, open_checkpoint
from scanner.engine.method import Method, method_of, scan_id
from scanner.errors import ConfigError, ScannerError
from scanner.rmt.metric_set import groups

from .checkpoints import small

DEFAULT = Method()
OTHERS = [
    Method(sigma="std"),
    Method(sigma="init"),
    Method(sigma="bulk"),
    Method(null="mc:1000"),
    Method(null="mc:2000"),
    Method(scale="total"),
    Method(scale="none"),
    Method(selection=Selection(only=("query",))),
    Method(selection=Selection(only=("query", "key"))),
    Method(selection=Selection(layers=(0,))),
    Method(selection=Selection(layers=(0, 1))),
    Method(selection=Selection(embeddings=True)),
    Method(selection=Selection(products=True)),
    Method(head_mass=True),
    Method(values_only=True),
    Method(values_only=True, sigma="std"),
    Method(metrics=("none",)),
    Method(metrics=("alpha",)),
    Method(metrics=("weightwatcher",)),
    Method(metrics=("all",)),
]


def test_every_parameter_makes_another_scan() -> None:
    names = [scan_id("content", method) for method in [DEFAULT, *OTHERS]]
    assert len(set(names)) == len(names)


def test_without_vectors_only_what_needs_none_is_part_of_the_method() -> None:
    alone = Method(values_only=True)
    assert alone.scale == "none"
    assert alone.as_dict() == Method(scale="none").as_dict() | {"values_only": True}
    for wrong, name in (
        ({"head_mass": True}, "head_mass"),
        ({"scale": "total"}, "scale"),
        ({"null": "mc:1000"}, "null"),
    ):
        with pytest.raises(ConfigError, match=f"{name}.* vectors: leave it out, or scan without"):
            Method(values_only=True, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "name"), [(Method, "values_only"), (Method, "head_mass"), (Selection, "heads")])
@pytest.mark.parametrize("value", [1, 0, "no", None])
def test_a_flag_is_true_or_false(kind: type, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}.* must be true or false"):
        kind(**{name: value})


@pytest.mark.parametrize("method", [DEFAULT, *OTHERS], ids=str)
def test_a_method_is_read_from_what_is_stored(method: Method) -> None:
    stored = json.loads(json.dumps(method.as_dict()))
    found = method_of(stored)
    assert found is not None
    assert found.as_dict() == method.as_dict()
    assert method_of(stored | {"a parameter of later versions": 1}) is None
    assert method_of({name: value for name, value in stored.items() if name != "sigma"}) is None


def test_without_a_scale_null_a_scan_has_the_identity_of_versions_that_had_none() -> None:
    assert "scale" not in Method(scale="none").as_dict()
    assert DEFAULT.as_dict()["scale"] == "robust"


def test_without_metrics_a_scan_has_the_identity_of_versions_that_had_none() -> None:
    assert Method(metrics=("none",)) == Method(metrics=())
    assert "metric_set" not in Method(metrics=("none",)).as_dict()


def test_groups_of_metrics_stand_for_their_names() -> None:
    """The rows of a scan do not change when a group grows: its identity holds the names."""
    assert DEFAULT.as_dict()["metric_set"] == sorted(groups()["default"])
    assert Method(metrics=("rmt", "weightwatcher", "ww_D")) == DEFAULT


def test_the_order_in_which_roles_and_layers_are_named_does_not_matter() -> None:
    one = Method(selection=Selection(only=("query", "key"), layers=(1, 0, 1)))
    other = Method(selection=Selection(only=("key", "query", "key"), layers=(0, 1)))
    assert scan_id("content", one) == scan_id("content", other)


def test_a_scan_id_is_a_file_name_and_stable() -> None:
    found = scan_id("content", DEFAULT)
    assert found == scan_id("content", Method())
    assert len(found) == 16
    assert set(found) <= set("0123456789abcdef")


def test_the_scan_id_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    one, other = small(tmp_path / "one"), small(tmp_path / "other", seed=1)
    copy = shutil.copytree(one, tmp_path / "copy")
    names = [scan_id(open_checkpoint(str(place)).identity, DEFAULT) for place in (one, copy, other)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_a_config_that_says_something_else_is_another_content(tmp_path: Path) -> None:
    one, other = small(tmp_path / "one"), small(tmp_path / "other")
    (Path(other) / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert open_checkpoint(one).identity != open_checkpoint(other).identity


@pytest.mark.parametrize(
    "wrong",
    [
        *({"sigma": "mean"}, {"null": "mc:"}, {"null": "guess"}, {"null": "mc:-5"}),
        *({"metrics": ("alhpa",)}, {"metrics": ("none", "alpha")}, {"metrics": "alpha"}),
    ],
)
def test_an_unknown_method_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ScannerError):
        Method(**wrong)  # type: ignore[arg-type]


def test_no_parameter_is_forgotten() -> None:
    parameters = {field.name for field in (*fields(Method), *fields(Selection))} - {"selection"}
    parameters = parameters - {"metrics"} | {"metric_set"}  # `metrics` are those of extensions
    # Parameters that were added later are there only if they are not at their default.
    named = {*Method(head_mass=True, selection=Selection(products=True)).as_dict(), *Method(values_only=True).as_dict()}
    assert parameters <= named
