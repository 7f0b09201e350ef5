"""The Grafana dashboard: its queries use exactly the metrics and labels that the scanner exports, with units and titles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from scanner.engine.metrics import DEFINITIONS

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "rmtscan.json").read_text("utf-8"))
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
#: Names of units in Grafana.
UNITS = {"short", "s", "Bps", "bytes", "percentunit"}


def test_queries_use_exactly_the_metrics_that_exist() -> None:
    used = {name for query in QUERIES for name in re.findall(r"\bray_rmtscan_\w+", query)}
    assert used == {definition.exported for definition in DEFINITIONS}


def test_queries_group_by_labels_that_exist() -> None:
    labels = {definition.exported: {*definition.labels} for definition in DEFINITIONS}
    for query in QUERIES:
        for name in re.findall(r"\bray_rmtscan_\w+", query):
            assert {*re.findall(r"sum by \((\w+)\)", query)} <= labels[name], query
        assert query.count("(") == query.count(")")
        assert query.count("{") == query.count("}")


def test_counters_are_shown_as_rates() -> None:
    for query in QUERIES:
        assert query.count("_total") == len(
            re.findall(r"(?:rate|increase)\(ray_rmtscan_\w+_total\{[^}]*\}\[\w+\]\)", query)
        )


def test_panels_are_titled_and_have_units_and_do_not_overlap() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"][0].isupper()
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_data_source_is_chosen_in_the_dashboard() -> None:
    [source, session] = BOARD["templating"]["list"]
    assert (source["name"], source["type"]) == ("datasource", "datasource")
    assert "ray_rmtscan_workers" in session["query"]
    for panel in BOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"


def test_prometheus_asks_for_the_nodes_with_the_token() -> None:
    [job] = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    [discovery] = job["http_sd_configs"]
    assert discovery["url"].endswith("/api/prometheus/sd")
    assert discovery["authorization"]["type"] == "Bearer"
