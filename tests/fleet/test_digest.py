"""The digest of a night, and the named queries that decide what stands out, on stores made by hand."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.fleet.digest import SECTIONS, digest, feed, write_digest
from scanner.fleet.releases import Ledger, Night, Release
from scanner.store import Store
from tests.store.rows import NOON, Matrix, Pair, add_comparison, add_scan, failure

NIGHT = "20261101T120000Z-0000"
HOSTILE = "<script>alert(1)</script> ![x](http://evil) \x1b[31m `| ]]> & \u202e\n# head"


def record(store: Store, *releases: Release, night: str = NIGHT) -> None:
    """Write releases as those of one night."""
    ledger = Ledger.read(store)
    one = Night(night_id=night, watch_id="w", started_at=NOON, state="done", watermark=NOON)
    ledger.begin(one)
    for release in releases:
        ledger.set(one, release)
    ledger.write(one)


def scanned(name: str, scan_id: str, **more: Any) -> Release:
    return Release(repository=name, commit="c" * 40, state="scanned", scan_id=scan_id, **more)


def values(seed: int, **more: Any) -> dict[str, Any]:
    """Summaries of the singular values of one matrix."""
    random = np.random.default_rng(seed)
    frobenius, spectral, rank = (random.uniform(1, 2, 3) * [10, 1, 3]).tolist()
    return {"frobenius_norm": frobenius, "spectral_norm": spectral, "effective_rank": rank, **more}


def model(seed: int, **more: Any) -> list[Matrix]:
    return [Matrix(tensor=f"block.{n}.query", layer=n, more=values(100 * seed + n, **more)) for n in range(4)]


def test_near_copies_are_found_under_another_name_and_in_another_file(store: Store) -> None:
    original, other = model(1), model(2)
    copied = [Matrix(tensor=f"h.{n}.q", layer=n, more=values(100 + n)) for n in range(4)]
    nearly = model(1)
    for matrix in nearly[:3]:
        matrix.more = {name: float(str(value)) * 1.0004 for name, value in matrix.more.items()}
    nearly[3].more = values(999)
    for name, matrices in (("original", original), ("other", other), ("copy", copied), ("nearly", nearly)):
        add_scan(store, name, matrices, model=f"org/{name}")
    record(store, scanned("org/copy", "copy"), scanned("org/nearly", "nearly"))
    found = {(r["model"], r["other_model"]): r for r in store.query("near_copies", night=NIGHT).to_pylist()}
    assert {*found} == {
        ("org/copy", "org/original"),
        ("org/copy", "org/nearly"),
        ("org/nearly", "org/original"),
        ("org/nearly", "org/copy"),
    }
    copy, almost = found["org/copy", "org/original"], found["org/nearly", "org/original"]
    assert (copy["identical"], copy["near"], copy["share"], copy["declared"]) == (4, 4, 1.0, False)
    assert (almost["identical"], almost["near"], almost["share"]) == (0, 3, 0.75)
    assert store.query("near_copies", night=NIGHT, share=0.8).num_rows == 2 - 1
    assert store.query("near_copies").num_rows == 6  # without a night: every model


def test_broken_uploads_are_zero_not_finite_or_untrained(store: Store) -> None:
    def matrix(number: int, **more: Any) -> Matrix:
        many = {"rows": 40, "cols": 40, "singular_values": np.linspace(2, 1, 40).tolist()}
        return Matrix(tensor=f"block.{number}.query", layer=number, more=values(number, **more), **many)  # type: ignore[arg-type]

    random = {"u_p_mean": 0.5, "v_p_mean": 0.49, "outliers_left": 0, "outliers_right": 0, "mp_ks": 0.01}
    learned = random | {"u_p_mean": 0.2}
    spiked = random | {"outliers_right": 2}
    add_scan(
        store,
        "bad",
        [matrix(0, rank=0), matrix(1, **random), matrix(2, **learned), matrix(3, **spiked)],
        model="org/bad",
    )
    writer = store.writer("nan", method={}, model="org/nan")
    writer.stage("a", *matrix(0, **learned).tables("nan", "org/nan", "r1"))
    lost = failure("nan", "block.1.query", "org/nan").to_pylist()[0] | {"error": "NotFiniteError"}
    from tests.store.rows import scan_values, table

    writer.stage_failure("b", table("failures", [lost]))
    writer.commit(scan_values())
    record(store, scanned("org/bad", "bad"), scanned("org/nan", "nan"))
    rows = store.query("broken_uploads", night=NIGHT).to_pylist()
    assert {(r["model"], r["defect"], r["matrices"], r["of"], r["example"]) for r in rows} == {
        ("org/bad", "zero", 1, 4, "block.0.query"),
        ("org/bad", "untrained", 1, 4, "block.1.query"),
        ("org/nan", "not_finite", 1, 2, "block.1.query"),
    }


def test_a_role_stands_out_against_the_other_models_of_the_store(store: Store) -> None:
    random = np.random.default_rng(0)
    ps = {f"m{n}": float(p) for n, p in enumerate(random.normal(0.3, 0.01, 9))} | {"odd": 0.6}
    for name, p in ps.items():
        matrix = Matrix(more={"u_p_mean": p, "v_p_mean": p, "effective_rank": 2.0})
        add_scan(store, name, [matrix], model=f"org/{name}")
    record(store, scanned("org/odd", "odd"), scanned("org/m0", "m0"))
    [row] = store.query("standout_roles", night=NIGHT).to_pylist()
    others = np.array([p for name, p in ps.items() if name != "odd"])
    spread = 1.4826 * np.median(np.abs(others - np.median(others)))
    assert (row["model"], row["role"], row["measure"], row["models"]) == ("org/odd", "query", "p", 9)
    assert row["z"] == pytest.approx((0.6 - np.median(others)) / spread)
    assert store.query("standout_roles", night=NIGHT, least=10).num_rows == 0


def test_small_ends_and_intruders_stand_out(store: Store) -> None:
    def matrix(p: float) -> Matrix:
        return Matrix(
            rows=600, cols=600, singular_values=[1.0] * 600, u_p=[0.5] * 600, v_p=[0.5] * 540 + [p] * 60
        )  # fmt: skip

    add_scan(store, "low", [matrix(0.2)], model="org/low")
    add_scan(store, "flat", [matrix(0.45)], model="org/flat")
    add_comparison(
        store, "many", [Pair(more={"intruders": 3}), Pair(tensor="b", more={"intruders": 0})], tuned="org/low"
    )
    add_comparison(store, "few", [Pair(more={"intruders": 0})], tuned="org/flat", scans=("b", "f"))
    record(store, scanned("org/low", "low", pair_id="many"), scanned("org/flat", "flat", pair_id="few"))
    [end] = store.query("standout_small_ends", night=NIGHT).to_pylist()
    assert (end["model"], end["role"], end["side"], end["vectors"]) == ("org/low", "query", "v", 60)
    assert end["z"] == pytest.approx((0.2 - 0.5) * np.sqrt(12 * 60), rel=1e-6)
    [pair] = store.query("standout_intruders", night=NIGHT).to_pylist()
    assert (pair["tuned_model"], pair["intruders"], pair["per_matrix"]) == ("org/low", 3, 1.5)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_are_text_in_every_format(store: Store, tmp_path: Path) -> None:
    add_scan(store, "one", model(1), model=HOSTILE)
    add_scan(store, "two", model(1), model="org/original")
    record(
        store,
        scanned(HOSTILE, "one"),
        Release(repository="javascript:alert(1)", commit=HOSTILE, state="failed", reason=HOSTILE, attempts=1),
        Release(repository="org/waits", commit="d" * 40, reason="the budget of the night is used"),
    )
    path = write_digest(store, NIGHT, str(tmp_path / "digests"))
    page = Tags()
    page.feed(Path(path).read_text())
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 3
    assert all(link.startswith(("http", "data:,", "index.html", "feed.xml", NIGHT)) for link in page.links)
    assert not any("evil" in link or "javascript" in link for link in page.links)
    markdown = Path(path).with_suffix(".md").read_text()
    assert "\x1b" not in markdown
    assert "\u202e" not in markdown
    assert r"\<script\>" in markdown
    assert "\n# head" not in markdown
    assert r"\!\[x\]\(http" in markdown
    content = json.loads(Path(path).with_suffix(".json").read_text())
    assert {*content["stands_out"]} == {section.query for section in SECTIONS}
    assert content["stands_out"]["near_copies"]
    assert [one["repository"] for one in content["waiting"]] == ["org/waits"]
    root = ET.fromstring((tmp_path / "digests" / "feed.xml").read_bytes())
    assert root.tag == "{http://www.w3.org/2005/Atom}feed"
    for tag in ("id", "title", "updated", "author", "entry"):
        assert root.find(f"{{http://www.w3.org/2005/Atom}}{tag}") is not None
    assert "1 scanned, 1 failed, 0 skipped, 1 waiting" in markdown
    assert f"{NIGHT}.html" in (tmp_path / "digests" / "index.html").read_text()


def test_the_feed_has_the_newest_nights_and_is_valid_without_any() -> None:
    night = {
        "finished_at": None,
        "listed": 1,
        "new": 1,
        "scanned": 1,
        "failed": 0,
        "skipped": 0,
        "waiting": 0,
        "upgraded": 0,
    }
    nights = [
        {**night, "night_id": f"n{number}", "started_at": (NOON - timedelta(days=number)).isoformat()}
        for number in range(60)
    ]
    root = ET.fromstring(feed(nights))
    assert len(root.findall("{http://www.w3.org/2005/Atom}entry")) == 50
    assert ET.fromstring(feed([])).find("{http://www.w3.org/2005/Atom}updated") is not None


def test_a_night_that_is_not_in_the_store_has_no_digest(store: Store) -> None:
    with pytest.raises(ValueError, match="no night"):
        digest(store, NIGHT)
