"""The site of stores of 10, 100 and 500 models: time to the first page in a browser, its bytes, and what writing costs.

The stores are synthetic. The pages are served on loopback by the server of `rmtscan serve`, without compression, to a headless
Chromium with an empty cache: what a reader waits for, except the network.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import measure

sys.path.insert(0, os.fspath(Path(__file__).parent.parent))

from fleet import Fleet, build

from scanner.site import write_site
from tests.report.browser import Browser
from tests.site.conftest import Served

FIRST_PAGE_SECONDS, FIRST_PAGE_BYTES, ENTRY_BYTES = 1.0, 2e6, 2048
MODELS, QUICK_MODELS = (10, 100, 500), (3,)
SHAPE = Fleet(scans=0, revisions=0, comparisons=0, layers=6, width=96, inner=256)
QUICK_SHAPE = replace(SHAPE, layers=2, width=32, inner=80)


def first_page(browser: Browser, address: str) -> tuple[float, float]:
    """Return seconds from the start of the navigation until the table of models is drawn, and the bytes that were fetched."""
    browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.open("about:blank")
    browser.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "new MutationObserver((_, watcher) => { const table = document.getElementById('models');"
            " if (table?.dataset.drawn) { window.drawnAt ??= performance.now(); watcher.disconnect(); } })"
            ".observe(document, { subtree: true, attributes: true, childList: true });"
        },
    )
    browser.open(address)
    browser.wait(lambda: browser.run("return window.drawnAt"))
    return browser.run("return window.drawnAt") / 1000, sum(browser.received().values())


def measured(folder: Path, models: int, shape: Fleet, repeats: int, browser: Browser) -> list[measure.Row]:
    target = folder / "site"
    store = build(folder / "store", replace(shape, scans=models))
    began = time.perf_counter()
    site = write_site(store, target)
    writing = time.perf_counter() - began
    again = measure.seconds(lambda: write_site(store, target))
    index = json.loads((target / "index.json").read_text("utf-8"))
    entry = max(len(json.dumps(one, ensure_ascii=False).encode()) for one in index["models"])
    folders = list((target / "models").iterdir())
    aggregates = max((path / "model.json").stat().st_size for path in folders)
    served = Served(target)
    try:
        pages = [first_page(browser, f"{served.address}/") for _ in range(repeats)]
    finally:
        served.close()
    seconds, size = (measure.median([page[i] for page in pages]) for i in (0, 1))
    kept: measure.Row = {"models": models, "write_s": writing, "write_a_model_s": writing / models, "again_s": again}
    kept |= {"site_MB": site.bytes / 1e6, "model_json_kB": aggregates / 1e3}
    rows: list[measure.Row] = []
    for what, value, unit, most in (
        ("first page", seconds, "s", FIRST_PAGE_SECONDS),
        ("bytes of the first page", size, "bytes", FIRST_PAGE_BYTES),
        ("largest entry of the index", entry, "bytes", ENTRY_BYTES),
    ):
        told = measure.at_most(value, most)
        rows.append({"models": models, "what": what, "unit": unit, "value": value} | told | {"ratio": value / most})
    return [kept, *rows]


def main() -> int:
    parser = measure.options("site", __doc__.splitlines()[0], repeats=5)
    args = parser.parse_args()
    machine = measure.machine()
    pages: list[measure.Row] = []
    writing: list[measure.Row] = []
    folder = Path(tempfile.mkdtemp(prefix="rmtscan-bench-"))
    browser = Browser(folder)
    try:
        for models in QUICK_MODELS if args.quick else MODELS:
            place = folder / str(models)
            place.mkdir()
            shape = QUICK_SHAPE if args.quick else SHAPE
            kept, *rows = measured(place, models, shape, 1 if args.quick else args.repeats, browser)
            writing.append(kept)
            pages += rows
            shutil.rmtree(place)
        measure.table("the first page of a site", pages)
        measure.table("writing a site", writing)
        measure.write_json(args.json, {"quick": args.quick, "machine": machine, "pages": pages, "writing": writing})
    finally:
        browser.close()
        shutil.rmtree(folder, ignore_errors=True)
    return int(any(row["met"] == "NO" and row["unit"] == "bytes" for row in pages))


if __name__ == "__main__":
    sys.exit(main())
