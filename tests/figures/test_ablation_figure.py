"""Figure `ablation`: its lines and their names, axes, spectra and caption."""

from pathlib import Path
from typing import Any

import pytest

from scanner.errors import ScannerError
from scanner.figures import FIGURES
from scanner.store import Store, open_store
from tests.store.rows import NOON, Matrix, add_scan
from tests.store.test_experiment_queries import add_point, add_run, table

from .stores import tables


@pytest.fixture
def empty_store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


def lines(store: Store, **asked: object) -> list[str]:
    """What an ablation draws: the name of each line, which has one point at each decile."""
    chart = FIGURES["ablation"].draw(store, **asked).to_dict()  # type: ignore[arg-type]
    points = [(row["what"], row["label"]) for row in chart["datasets"][chart["data"]["name"]]]
    assert len(points) == len(set(points))
    return list(dict.fromkeys(what for what, _ in points))


def add_lines(store: Store, *groups: tuple[str, str]) -> None:
    """Two deciles of each of these roles and layers, in one run."""
    for roles, layers in groups:
        for decile in (1, 2):
            name = f"{roles}-{layers}-{decile}".replace(",", "_").replace(":", "_").replace(" ", "_")
            add_point(store, name, run_id="points", set=f"decile:{decile}", roles=roles, layers=layers, delta=1.0)


BY_ROLE = (("query", "0-2"), ("key", "0-2"))
BY_LAYER = (("query,key", "0"), ("query,key", "1"), ("query,key", "2"))


@pytest.mark.parametrize(
    ("groups", "asked", "drawn"),
    [
        ((*BY_ROLE, *BY_LAYER), {}, ["query", "key"]),
        ((*BY_ROLE, *BY_LAYER), {"role": "key"}, ["key"]),
        ((*BY_ROLE, *BY_LAYER), {"layer": 1}, ["layer 1"]),
        ((*BY_ROLE, *BY_LAYER), {"layer": 1, "role": "key"}, ["layer 1"]),
        (BY_LAYER, {}, ["layer 0", "layer 1", "layer 2"]),
        ((*BY_ROLE, ("query,key", "0-2")), {}, ["query", "query, key", "key"]),
        # with no scan, and by none of the run's points, are these known to be all roles
        ((("query,key", "0-2"),), {}, ["query, key"]),
        ((("query,key", "0-2"), ("query,value", "0-2")), {}, ["query, key", "query, value"]),
        ((("query,key,value,attn_out", "0-2"),), {}, ["query … attn_out (4)"]),
        (
            (("query,key,value,attn_out", "0-2"), ("query,key,mlp_up,attn_out", "0-2")),
            {},
            ["query, key, mlp_up, attn_out, layers 0-2", "query, key, value, attn_out, layers 0-2"],
        ),
        ((*BY_ROLE, ("query", "0-1")), {}, ["query, layers 0-1", "query, layers 0-2", "key"]),
        # ablate --roles key --by layer, alone and after ablate; a role of a single block; ablate --layers 1
        ((("key", "0"), ("key", "1")), {}, ["layer 0", "layer 1"]),
        ((*BY_ROLE, ("key", "0"), ("key", "1")), {}, ["query", "key"]),
        ((*BY_ROLE, ("value", "1")), {}, ["query", "key", "value"]),
        ((("query", "1"), ("key", "1"), *BY_LAYER), {}, ["query", "key"]),
        ((("key", "1"), *BY_LAYER), {"role": "key"}, ["key"]),
        # two selections of roles by layer
        ((*BY_LAYER, ("query,value", "1")), {"layer": 1}, ["query, key, layer 1", "query, value, layer 1"]),
        ((("query", "encoder:0-2"), ("query,key", "encoder:1"), ("query,key", "decoder:1")), {}, ["query"]),
        (
            (("query,key", "encoder:1"), ("query,key", "decoder:1")),
            {"layer": 1},
            ["layer decoder:1", "layer encoder:1"],
        ),
    ],
)
def test_points_by_role_and_by_layer_of_one_run_are_told_apart(
    empty_store: Store, groups: tuple[tuple[str, str], ...], asked: dict[str, object], drawn: list[str]
) -> None:
    add_run(empty_store, "points", "ablation")
    add_lines(empty_store, *groups)
    assert lines(empty_store, **asked) == drawn


def test_a_layer_that_was_not_measured_by_itself_is_one_line(empty_store: Store) -> None:
    add_run(empty_store, "points", "ablation")
    add_lines(empty_store, *BY_ROLE)
    with pytest.raises(
        ScannerError, match=r"no point of role 'query' in layer 7 .*single blocks by layer.*query \(layers 0-2\)"
    ):
        FIGURES["ablation"].draw(empty_store, layer=7, role="query")


def caption(store: Store, **asked: object) -> list[str]:
    return list(FIGURES["ablation"].draw(store, **asked).to_dict()["title"]["subtitle"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("groups", "asked", "said"),
    [
        (BY_ROLE, {}, ["layers 0-2"]),
        (BY_LAYER, {}, ["roles: query, key"]),
        (BY_LAYER, {"layer": 1}, ["roles: query, key"]),
        ((("key", "0"), ("key", "1")), {}, ["roles: key"]),
        ((("query,key", "0"), ("query,value", "1")), {}, ["layer 0: query, key", "layer 1: query, value"]),
        ((("query,key,value,attn_out", "0-2"),), {}, ["roles: query, key, value, attn_out", "layers 0-2"]),
        ((("key", "1"), ("query", "0-2")), {}, []),
    ],
)
def test_roles_and_layers_that_the_legend_leaves_out_are_in_the_caption(
    empty_store: Store, groups: tuple[tuple[str, str], ...], asked: dict[str, object], said: list[str]
) -> None:
    add_run(empty_store, "points", "ablation")
    add_lines(empty_store, *groups)
    assert caption(empty_store, **asked)[2:-1] == said


@pytest.mark.parametrize(
    ("deltas", "randoms", "shown"),
    [((3.0, 40.0, 120.0), (1.0, 5000.0, 2.0), 5000.0), ((3.0, 40.0, 120.0), (1.0, -9.0, 2.0), -9.0)],
)
def test_random_sets_lie_within_the_axis(
    empty_store: Store, deltas: tuple[float, ...], randoms: tuple[float, ...], shown: float
) -> None:
    """The scale clamps: what is outside of its domain would be drawn at the edge, with another value."""
    add_run(empty_store, "points", "ablation")
    for i, (region, delta, random) in enumerate(zip(("left", "bulk", "right"), deltas, randoms, strict=True)):
        more = {"run_id": "points", "removed": 20 + i, "baseline": 61.0}
        add_point(empty_store, region, set=f"region:{region}", delta=delta, **more)  # type: ignore[arg-type]
        add_point(empty_store, f"r{region}", set="random:1", delta=random, **more)  # type: ignore[arg-type]
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    rows = chart["datasets"][chart["data"]["name"]]
    assert {row["label"]: row["random_drawn"] for row in rows}["bulk"] == shown
    low, high = chart["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    assert low < shown < high
    assert not any(line.startswith("▲") for line in chart["title"]["subtitle"])


def test_error_bars_lie_within_the_axis_and_end_where_perplexity_does(empty_store: Store) -> None:
    add_run(empty_store, "points", "ablation")
    add_point(empty_store, "d1", run_id="points", set="decile:1", delta=1.0, stderr=8.0)
    add_point(empty_store, "d2", run_id="points", set="decile:2", delta=1.0, stderr=300.0)
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    rows = chart["datasets"][chart["data"]["name"]]
    assert [(row["low"], row["high"]) for row in rows] == [(-7.0, 9.0), (-20.0, 301.0)]  # the baseline is 20
    low, high = chart["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < -20.0
    assert high > 301.0


def test_a_random_set_that_destroys_the_model_has_the_mark_of_what_is_beyond(empty_store: Store) -> None:
    add_run(empty_store, "points", "ablation")
    add_point(empty_store, "d1", run_id="points", set="decile:1", delta=0.5)
    add_point(empty_store, "r", run_id="points", set="random:1", delta=2.0001e7)
    add_point(empty_store, "d2", run_id="points", set="decile:2", delta=0.5, removed=9)
    add_point(empty_store, "r2", run_id="points", set="random:1", delta=1.9999e7, removed=9)
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    rows = chart["datasets"][chart["data"]["name"]]
    assert [(row["beyond"], row["random_beyond"], row["random_drawn"]) for row in rows] == [
        ("within", "beyond", 2e7),
        ("within", "within", 1.9999e7),
    ]
    shape = chart["layer"][-1]["encoding"]["shape"]
    assert (shape["field"], shape["scale"]["range"]) == ("random_beyond", ["circle", "triangle-up"])
    assert chart["title"]["subtitle"][-1] == "▲: more than 1e+06 times the baseline, with the increase"


@pytest.mark.parametrize(
    ("deltas", "ticks"),
    [
        ((0.2, 0.9), {0.0, 0.2, 0.5}),  # there is no power of ten between 0.2 and 0.9
        ((-0.05, 0.04), {0.0, 0.02, 0.05, -0.02, -0.05}),
        ((0.09, 30.0), {0.0, 0.1, 1.0, 10.0}),
    ],
)
def test_small_damage_has_numbers_on_its_axis(empty_store: Store, deltas: tuple[float, ...], ticks: set[float]) -> None:
    add_run(empty_store, "points", "ablation")
    for decile, delta in enumerate(deltas, start=1):
        values = {"delta": delta, "baseline": 61.0, "stderr": 0.001}
        add_point(empty_store, f"d{decile}", run_id="points", set=f"decile:{decile}", **values)
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    assert {*chart["layer"][-1]["encoding"]["y"]["axis"]["values"]} == ticks


@pytest.mark.parametrize(
    ("sets", "order"),
    [
        # query comes before key, with its decile 10 alone
        (
            {"query": ["decile:10"], "key": [f"decile:{decile}" for decile in range(1, 11)]},
            [str(decile) for decile in range(1, 11)],
        ),
        ({"query": ["region:right"], "key": ["region:bulk", "region:left"]}, ["left", "bulk", "right"]),
        (
            {"query": ["range:10:20", "smallest:9", "region:right"], "key": ["range:9:12", "range:9:100"]},
            ["right", "9:12", "9:100", "10:20", "smallest:9"],
        ),
    ],
)
def test_sets_are_in_their_order_along_the_axis(
    empty_store: Store, sets: dict[str, list[str]], order: list[str]
) -> None:
    add_run(empty_store, "points", "ablation")
    for role, names in sets.items():
        for name in names:
            add_point(empty_store, f"{role}-{name.replace(':', '-')}", run_id="points", set=name, roles=role, delta=1.0)
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    assert _layers(chart)[-1]["encoding"]["x"]["sort"] == order


def _layers(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the layers of an ablation, which has a panel for each line if it has several."""
    found: list[dict[str, Any]] = chart["concat"][0]["layer"] if "concat" in chart else chart["layer"]
    return found


def test_deciles_that_were_not_measured_keep_their_places(empty_store: Store) -> None:
    add_run(empty_store, "run", "ablation")
    for decile in (1, 10):
        add_point(empty_store, f"d{decile}", set=f"decile:{decile}", delta=1.0 * decile)
    drawn = FIGURES["ablation"].draw(empty_store).to_dict()
    assert drawn["layer"][0]["encoding"]["x"]["scale"]["domain"] == [str(decile) for decile in range(1, 11)]


def marks(chart: dict[str, object]) -> list[str]:
    return [layer["mark"]["type"] for layer in chart["layer"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sets", "connected"),
    [
        (("region:left", "region:bulk"), True),
        (("decile:3", "decile:4"), True),
        (("range:0:5", "range:5:9"), False),
        (("region:left", "range:5:9"), False),
        (("region:left", "smallest:10"), False),
    ],
)
def test_a_line_connects_only_sets_that_follow_one_another(
    empty_store: Store, sets: tuple[str, ...], connected: bool
) -> None:
    add_run(empty_store, "points", "ablation")
    for i, name in enumerate(sets):
        add_point(empty_store, str(i), run_id="points", set=name, delta=1.0)
    assert ("line" in marks(FIGURES["ablation"].draw(empty_store).to_dict())) == connected


@pytest.mark.parametrize("roles", [("query",), ("query", "key")])
def test_pruning_is_a_line_for_each_kind_against_the_per_cent_removed(
    empty_store: Store, roles: tuple[str, ...]
) -> None:
    add_run(empty_store, "points", "ablation")
    for role in roles:
        for percent in (50, 10):
            more = {"run_id": "points", "roles": role, "removed": 3 * percent}
            for kind, delta in (("smallest", 0.1 * percent), ("most-random", 0.2 * percent)):
                add_point(empty_store, f"{role}-{kind}-{percent}", set=f"{kind}:{percent}", delta=delta, **more)  # type: ignore[arg-type]
            add_point(empty_store, f"{role}-r-{percent}", set="random:1", delta=0.4 * percent, **more)  # type: ignore[arg-type]
    chart = FIGURES["ablation"].draw(empty_store).to_dict()
    rows = chart["datasets"][chart["data"]["name"]]
    # One role: a color for each kind; several: a panel for each role, and dashes for the kinds.
    assert {(row["what"], row["kind"], row["percent"], row["delta"], row["random_delta"]) for row in rows} == {
        (kind if len(roles) == 1 else role, kind, percent, factor * percent, 0.4 * percent)
        for role in roles
        for kind, factor in (("smallest", 0.1), ("most-random", 0.2))
        for percent in (10, 50)
    }
    layers = _layers(chart)
    (line,) = [layer for layer in layers if layer["mark"]["type"] == "line"]
    assert {(one["field"], one["type"]) for one in (layer["encoding"]["x"] for layer in layers)} == {
        ("percent", "quantitative")
    }
    assert line["encoding"].get("strokeDash", {}).get("field") == (None if len(roles) == 1 else "kind")
    assert ("roles: query" in chart["title"]["subtitle"]) == (len(roles) == 1)


def spectra(store: Store, **asked: object) -> dict[str, list[float]]:
    """The lines of the inset; none where there is no inset."""
    chart = FIGURES["ablation"].draw(store, **asked).to_dict()  # type: ignore[arg-type]
    lines: dict[str, list[float]] = {}
    rows = [row for table in tables(chart) for row in table if "singular_value" in row]
    for row in sorted(rows, key=lambda row: row["decile"]):
        lines.setdefault(row["what"], []).append(row["singular_value"])
    return lines


def add_spectra(store: Store, scan_id: str, scales: dict[tuple[str, int], float], **more: object) -> None:
    """A scan of a 10 x 10 matrix for each role and block, with the singular values 10, 9 ... 1 times its number."""
    matrices = [
        Matrix(
            tensor=f"{role}{layer}",
            role=role,
            layer=layer,
            rows=10,
            cols=10,
            singular_values=[scale * (10 - k) for k in range(10)],
        )
        for (role, layer), scale in scales.items()
    ]
    add_scan(store, scan_id, matrices, **more)  # type: ignore[arg-type]


def add_deciles(store: Store, roles: str, layers: str, removed: int) -> None:
    for decile in (1, 10):
        name = f"{roles}-{layers}-{decile}".replace(",", "_")
        values = {"roles": roles, "layers": layers, "removed": removed}
        add_point(store, name, run_id="points", set=f"decile:{decile}", delta=1.0, **values)  # type: ignore[arg-type]


def times(scale: float) -> list[float]:
    return [scale * k for k in range(1, 11)]


def test_the_spectra_are_those_of_the_revision_that_was_measured(empty_store: Store) -> None:
    both = [("query", 0), ("query", 1)]
    add_spectra(empty_store, "measured", dict.fromkeys(both, 1.0), revision="r1")
    add_spectra(empty_store, "newer", dict.fromkeys(both, 100.0), revision="r2", hours=1)
    add_run(empty_store, "points", "ablation")
    add_deciles(empty_store, "query", "0-1", 2)
    assert spectra(empty_store) == {"query": pytest.approx(times(1.0))}


def test_there_are_no_spectra_of_a_revision_that_was_not_scanned(empty_store: Store) -> None:
    add_spectra(empty_store, "newer", {("query", 0): 1.0, ("query", 1): 1.0}, revision="r2")
    add_run(empty_store, "points", "ablation")
    add_deciles(empty_store, "query", "0-1", 2)
    assert spectra(empty_store) == {}


def test_the_spectra_are_those_of_the_blocks_and_roles_that_are_drawn(empty_store: Store) -> None:
    scales = {("query", 0): 1.0, ("query", 1): 3.0, ("query", 2): 50.0, ("key", 0): 5.0, ("key", 1): 7.0}
    add_spectra(empty_store, "scan", scales)
    add_run(empty_store, "points", "ablation")
    add_deciles(empty_store, "query", "0-1", 2)
    add_deciles(empty_store, "query", "0,2", 2)
    add_deciles(empty_store, "query", "1", 1)
    add_deciles(empty_store, "key", "0-2", 3)  # block 2 is not scanned
    add_deciles(empty_store, "query,key", "0", 2)
    assert spectra(empty_store) == {
        "query, layers 0-1": pytest.approx(times(2.0)),
        "query, layers 0,2": pytest.approx(times(25.5)),
    }
    assert spectra(empty_store, layer=1) == {"query": pytest.approx(times(3.0))}
    assert spectra(empty_store, layer=0) == {"layer 0": pytest.approx(times(3.0))}
    assert spectra(empty_store, role="key") == {}


@pytest.mark.parametrize(
    ("name", "kind", "sets"), [("ablation", "ablation", "decile"), ("slicing", "slicing", "slice")]
)
def test_the_caption_names_the_text_the_metric_and_one_run_of_several(
    empty_store: Store, name: str, kind: str, sets: str
) -> None:
    def add(run_id: str, text: str, model: str, hour: int) -> None:
        time = NOON.replace(hour=hour)
        row = {"run_id": run_id, "kind": kind, "model": model, "dataset": text, "finished_at": time}
        empty_store.write_rows("experiments", run_id, table("experiments", [row]), method={})
        values = {"model": model, "dataset": text, "metric": "kl", "baseline": 0.5, "delta": 1.0, "finished_at": time}
        add_point(empty_store, "d", run_id=run_id, set=f"{sets}:1", **values)

    def said(**asked: object) -> list[str]:
        return list(FIGURES[name].draw(empty_store, **asked).to_dict()["title"]["subtitle"])  # type: ignore[arg-type]

    add("novel", "novel.txt", "org/model", 12)
    assert said()[:2] == ["org/model", "KL divergence on novel.txt, baseline 0.5"]
    assert not any("run" in line for line in said())
    add("code", "code.txt", "org/model", 13)
    add("other", "other.txt", "org/other", 14)
    assert said(model="org/model")[1:3] == ["KL divergence on code.txt, baseline 0.5", "run code, the newest of 2"]
    assert said(run="novel")[1:3] == ["KL divergence on novel.txt, baseline 0.5", "run novel, one of 2"]
    assert not any("run" in line for line in said(model="org/other"))
