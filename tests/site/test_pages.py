"""Every page of a site in a real browser: no error, no request to another host, deep links, the back button, hostile names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.site.content import COLUMNS
from scanner.site.models import key_of
from scanner.store import Store
from tests.report.browser import Browser

from .conftest import EVIL, NIGHT

BASE, TUNED, THIRD = key_of("org/base"), key_of(EVIL), key_of("org/third")
MATRIX = f"/matrix.html?model={BASE}&tensor=block.1.mlp_up&role=mlp_up"
PAGES = {
    "models": "/",
    "model": f"/models/{BASE}/index.html",
    "hostile model": f"/models/{TUNED}/index.html",
    "matrix": MATRIX,
    "hostile slice": f"/matrix.html?model={TUNED}&role=query&layer=1&head=1",
    "hostile product": f"/matrix.html?model={TUNED}&role=qk&layer=0&head=1",
    "compare": f"/compare.html?models={BASE},{TUNED}",
    "compare three": f"/compare.html?models={BASE},{TUNED},{THIRD}&measure=p_scale&side=u",
    "compare nothing": "/compare.html",
    "nightly": "/nightly.html",
    "digest": f"/nights/{NIGHT}.html",
}


def settled(browser: Browser) -> None:
    """Until the page has drawn what its URL asks for."""
    browser.wait(
        lambda: browser.run(
            "return document.body.dataset.ready === 'yes' || document.querySelector('#models')?.dataset.drawn === 'yes'"
            " || !document.querySelector('script[type=module]') || !document.getElementById('message').hidden"
        )
    )


def visit(browser: Browser, url: str) -> None:
    browser.open(url)
    settled(browser)


def text(browser: Browser, selector: str = "body") -> str:
    return str(browser.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_error_asks_no_other_host_and_runs_no_name(browser: Browser, address: str, page: str) -> None:
    visit(browser, address + PAGES[page])
    assert text(browser, "#message") == ""
    assert browser.console() == []
    asked = [url for url in browser.requests() if not url.startswith(("data:", "blob:"))]
    assert asked
    assert {url for url in asked if not url.startswith(f"{address}/")} == set()
    browser.run("document.getElementById('heads')?.scrollIntoView()")
    if page == "hostile model":
        browser.wait(lambda: browser.run("return document.getElementById('heads-map').dataset.drawn"))
    assert browser.run("return document.body.id") == ""
    links = "return [...document.querySelectorAll('a[href]')].map((one) => one.protocol)"
    assert {*browser.run(links)} <= {"http:", "https:", "blob:"}
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert not {"\u202e", "\x1b"} & set(browser.run("return document.documentElement.textContent"))
    assert browser.run("return document.querySelectorAll('main h1').length") == 1 or page == "digest"


@pytest.mark.parametrize("page", ["hostile model", "compare", "nightly", "digest"])
def test_a_hostile_name_is_shown_as_text(browser: Browser, address: str, page: str) -> None:
    visit(browser, address + PAGES[page])
    assert "evil/</script><img src=x" in text(browser)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", ["models", "hostile model", "matrix", "hostile product", "compare", "nightly"])
def test_a_page_fits_a_narrow_window(browser: Browser, address: str, page: str, dark: bool) -> None:
    browser.size(420, dark=dark)
    try:
        visit(browser, address + PAGES[page])
        assert browser.run("return document.documentElement.scrollWidth") <= 420
        paper = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 200) is dark
    finally:
        browser.reset()


def test_models_are_filtered_and_sorted_and_the_state_is_in_the_url(browser: Browser, address: str) -> None:
    visit(browser, f"{address}/?q=third&sort=model:desc")
    rows = "return [...document.querySelectorAll('#models tbody tr td.name a')].map((one) => one.textContent)"
    assert browser.run(rows) == ["org/third"]
    assert browser.run("return document.querySelector('.dt-search input').value") == "third"
    browser.run("document.querySelector('.dt-search input').value = ''")
    visit(browser, f"{address}/?sort=model:desc")
    assert browser.run(rows)[:2] == ["org/third", "org/base"]
    click = """const heads = [...document.querySelectorAll('#models thead th')];
        heads.find((one) => one.innerText.startsWith('Model')).querySelector('.dt-column-order').click()"""
    browser.run(click)
    browser.wait(lambda: browser.run(rows)[-1] == "org/third")
    assert browser.run("return location.search") == "?sort=model%3Aasc"
    browser.driver.back()
    browser.wait(lambda: browser.run(rows)[0] == "org/third")


def test_two_models_are_chosen_and_compared_and_the_back_button_returns(browser: Browser, address: str) -> None:
    visit(browser, f"{address}/")
    for key in (BASE, THIRD):
        browser.run("document.querySelector(`input[value='${arguments[0]}']`).click()", key)
    browser.run("document.getElementById('compare-link').click()")
    browser.wait(lambda: "compare.html" in browser.driver.current_url)
    settled(browser)
    assert browser.driver.current_url.endswith(f"compare.html?models={BASE},{THIRD}")
    browser.wait(lambda: browser.run("return document.querySelectorAll('#by-decile svg .mark-line path').length") >= 4)
    browser.run("document.querySelector('#chosen button').click()")
    browser.wait(lambda: browser.run("return document.getElementById('result').hidden"))
    browser.driver.back()
    browser.wait(lambda: not browser.run("return document.getElementById('result').hidden"))
    browser.driver.back()
    browser.wait(lambda: "compare.html" not in browser.driver.current_url)
    assert browser.console() == []


def test_a_base_and_its_fine_tunes_are_a_preset(browser: Browser, address: str) -> None:
    visit(browser, f"{address}/compare.html")
    browser.run(
        "const one = document.getElementById('bases'); one.value = arguments[0]; one.dispatchEvent(new Event('change'))",
        BASE,
    )
    browser.wait(
        lambda: browser.run("return document.body.dataset.ready") == "yes" and TUNED in browser.driver.current_url
    )
    assert "3 matrices compared" in text(browser, "#pairs")
    assert "query" in text(browser, "#pairs table")


def test_the_map_of_a_model_shows_the_measure_in_its_url_and_leads_to_the_matrix(
    browser: Browser, address: str
) -> None:
    visit(browser, f"{address}/models/{BASE}/index.html?measure=above")
    assert browser.run("return document.getElementById('map').dataset.drawn") == "above both 0"
    assert browser.run("return document.getElementById('side').disabled") is True
    cells = "return [...document.querySelectorAll('#map tbody td')].map((one) => one.innerText)"
    assert browser.run(cells) == ["2"] * 6
    browser.run(
        "const one = document.getElementById('measure'); one.value = 'p'; one.dispatchEvent(new Event('change'))"
    )
    assert "measure" not in browser.run("return location.search")
    browser.run("document.querySelector('#map tbody td a').click()")
    browser.wait(lambda: "matrix.html" in browser.driver.current_url)
    settled(browser)
    assert text(browser, "h1") == "mlp_up, layer 0" or text(browser, "h1") == "query, layer 0"
    browser.driver.back()
    browser.wait(lambda: browser.run("return document.getElementById('map')?.dataset.drawn") == "p both 0")


def test_a_matrix_fetches_its_own_bytes_and_nothing_else(browser: Browser, address: str, folder: Path) -> None:
    browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    visit(browser, address + MATRIX)
    received = browser.received()
    [(url, size)] = [(url, size) for url, size in received.items() if "/vectors-" in url]
    whole = (folder / "models" / BASE / url.rpartition("/")[2]).stat().st_size
    assert 4 * len(COLUMNS) * 24 <= size < 4 * len(COLUMNS) * 24 + 600
    assert whole == 6 * 4 * len(COLUMNS) * 24


def csv_of(browser: Browser) -> list[dict[str, float | None]]:
    """What the button hands to the reader."""
    script = """
        const kept = URL.createObjectURL;
        URL.createObjectURL = (blob) => { window.made = blob; return kept(blob); };
        HTMLAnchorElement.prototype.click = () => {};
        document.getElementById('save-csv').click();
        URL.createObjectURL = kept;"""
    browser.run(script)
    content = browser.driver.execute_async_script("window.made.text().then(arguments[arguments.length - 1])")
    head, *lines = content.splitlines()
    names = head.split(",")
    return [dict(zip(names, [float(one) if one else None for one in line.split(",")], strict=True)) for line in lines]


def test_the_csv_of_a_matrix_is_what_the_store_says(browser: Browser, address: str, store: Store) -> None:
    visit(browser, address + MATRIX)
    rows = csv_of(browser)
    vectors = store.vector_rows("scan0", ["tensor", "k", "singular_value", "u_p", "v_p_scale"]).to_pylist()
    wanted = [row for row in vectors if row["tensor"] == "block.1.mlp_up"]
    assert len(rows) == len(wanted) == 24
    for row, stored in zip(rows, wanted, strict=True):
        for name in ("singular_value", "u_p", "v_p_scale"):
            assert row[name] == (None if stored[name] is None else pytest.approx(stored[name], rel=1e-6))


def test_both_laws_and_the_control_are_drawn(browser: Browser, address: str) -> None:
    visit(browser, address + MATRIX)
    drawn = text(browser, "#view")
    for words in ("Marchenko–Pastur law", "law of the scale null", "random control", "scale null"):
        assert words in drawn
    lines = "return document.querySelectorAll(`#${arguments[0]} svg .mark-line path`).length"
    assert browser.run(lines, "spectrum") == 2
    assert browser.run(lines, "randomness") >= 4
    python, command = text(browser, "#python pre"), text(browser, "#command pre")
    assert "open_store" in python
    assert "--tensor block.1.mlp_up" in command
    compile(python, "snippet", "exec")


def test_the_buttons_step_through_the_blocks_and_back_returns(browser: Browser, address: str) -> None:
    visit(browser, address + MATRIX)
    browser.run("document.getElementById('next').click()")
    browser.wait(lambda: text(browser, "h1") == "mlp_up, layer 2")
    assert "tensor=block.2.mlp_up" in browser.driver.current_url
    assert browser.run("return document.getElementById('next').disabled") is True
    browser.driver.back()
    browser.wait(lambda: text(browser, "h1") == "mlp_up, layer 1")


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (f"/matrix.html?model={BASE}&tensor=none&role=query", "has no such matrix"),
        ("/matrix.html?model=nobody&tensor=t&role=query", "could not be fetched"),
        ("/matrix.html", "No matrix is named"),
        ("/nightly.html?night=none", "has no such night"),
    ],
)
def test_a_link_to_what_is_not_there_says_so(browser: Browser, address: str, page: str, told: str) -> None:
    visit(browser, address + page)
    browser.wait(lambda: told in text(browser, "#message"))


def test_a_site_that_is_opened_as_a_file_says_that_it_needs_a_server(browser: Browser, folder: Path) -> None:
    browser.open(folder / "index.html")
    browser.wait(lambda: "rmtscan serve STORE" in text(browser, "#message"))


def test_without_javascript_the_findings_are_text(folder: Path) -> None:
    index = (folder / "index.html").read_text("utf-8")
    assert "<noscript>" in index
    assert f"models/{BASE}/index.html" in index
    page = (folder / "models" / BASE / "index.html").read_text("utf-8")
    findings = json.loads((folder / "models" / BASE / "model.json").read_text("utf-8"))["findings"]
    assert findings
    for one in findings:
        assert one["headline"].split("&")[0][:30] in page


@pytest.mark.parametrize("page", ["models", "model", "matrix", "compare", "nightly"])
def test_without_javascript_a_page_says_so_and_leads_to_the_findings(
    browser: Browser, address: str, folder: Path, page: str
) -> None:
    findings = json.loads((folder / "models" / BASE / "model.json").read_text("utf-8"))["findings"]
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.driver.get(address + PAGES[page])
        assert "runs no JavaScript" in browser.element("main").text
        for control in ("form", "select", "input"):
            assert not any(one.is_displayed() for one in browser.elements(f"main {control}"))
        if page != "model":
            if page != "models":
                browser.element("noscript a").click()
            browser.element(f"noscript a[href='models/{BASE}/index.html']").click()
        shown = browser.element("main").text
        assert findings
        for one in findings:
            assert one["headline"] in shown
            assert one["detail"][:60] in shown
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_table_of_heads_is_loaded_when_it_is_looked_at_and_leads_to_a_slice(
    browser: Browser, address: str, folder: Path
) -> None:
    browser.size(1400)
    try:
        visit(browser, address + PAGES["hostile model"])
        assert not [url for url in browser.requests() if "heads.json" in url or "slices" in url]
        browser.run("document.getElementById('heads').scrollIntoView()")
        browser.wait(lambda: browser.run("return document.getElementById('heads-map').dataset.drawn"))
        cells = "return [...document.querySelectorAll('#heads-map tbody td')].map((one) => one.innerText)"
        assert browser.run(cells) == ["0.10", "0.20", "0.30", "0.40", "0.90", "–"]
        pool = browser.run("return document.querySelectorAll('#heads-map tbody td a')[4].href")
        browser.run(
            "const one = document.getElementById('head-role'); one.value = 'qk'; one.dispatchEvent(new Event('change'))"
        )
        assert browser.run(cells) == ["0.10", "0.20", "0.30", "0.40"]
        browser.open(browser.run("return document.querySelectorAll('#heads-map tbody td a')[3].href"))
        settled(browser)
        assert text(browser, "h1").startswith("qk, evil")
        assert text(browser, "h1").endswith("layer 1, head 1")
        [(url, size)] = [(url, size) for url, size in browser.received().items() if "/slices-" in url]
        assert 4 * len(COLUMNS) * 4 <= size < 4 * len(COLUMNS) * 4 + 600
        whole = (folder / "models" / TUNED / url.rpartition("/")[2]).stat().st_size
        assert whole == 9 * 4 * len(COLUMNS) * 4
        assert "law of random products" in text(browser, "#spectrum")
        assert "AND head = 1" in text(browser, "#command pre")
        compile(text(browser, "#python pre"), "snippet", "exec")
        browser.run("document.getElementById('before').click()")
        browser.wait(lambda: text(browser, "h1").endswith("layer 1, head 0"))
        browser.open(pool)  # of no layer
        settled(browser)
        assert text(browser, "h1").endswith("pool, head 0")
    finally:
        browser.reset()


def test_a_command_for_a_whole_matrix_leaves_out_its_slices(browser: Browser, address: str) -> None:
    visit(browser, address + MATRIX)
    assert "head IS NULL" in text(browser, "#command pre")
    assert "head IS NULL" in text(browser, "#python pre")


def test_the_keyboard_leads_from_the_models_to_a_matrix(browser: Browser, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    def tab_to(wanted: str) -> None:
        """Press the tab key until the focus is where a script says, and see that the focus is visible."""
        for _ in range(80):
            browser.press(Keys.TAB)
            if browser.run(f"const at = document.activeElement; return {wanted}"):
                assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"
                return
        raise AssertionError(f"the focus never gets there: {wanted}")

    visit(browser, f"{address}/")
    tab_to("at.classList.contains('skip')")
    tab_to(f"at.matches('td.name a') && at.href.includes('{BASE}')")
    browser.press(Keys.ENTER)
    browser.wait(lambda: f"models/{BASE}/" in browser.driver.current_url)
    settled(browser)
    tab_to("at.id === 'measure'")
    tab_to("at.matches('#map td a')")
    browser.press(Keys.ENTER)
    browser.wait(lambda: "matrix.html" in browser.driver.current_url)
    settled(browser)
    tab_to("at.id === 'next' && !at.disabled")
    before = text(browser, "h1")
    browser.press(Keys.SPACE)
    browser.wait(lambda: text(browser, "h1") != before)


def test_pages_pass_axe(browser: Browser, address: str) -> None:
    """Serious violations of accessibility, by axe-core, if RMTSCAN_AXE names its script."""
    script = os.environ.get("RMTSCAN_AXE")
    if not script:
        pytest.skip("RMTSCAN_AXE does not name axe.min.js")
    source = Path(script).read_text("utf-8")
    found: dict[str, Any] = {}
    for dark in (False, True):
        browser.size(1400, dark=dark)
        try:
            for page, url in PAGES.items():
                visit(browser, address + url)
                browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
                violations = browser.driver.execute_async_script(
                    "axe.run().then((one) => arguments[arguments.length - 1](one.violations))"
                )
                serious = [one for one in violations if one["impact"] in ("serious", "critical")]
                if serious:
                    found[f"{page} {dark}"] = [
                        (one["id"], [node["html"][:160] for node in one["nodes"][:3]]) for one in serious
                    ]
        finally:
            browser.reset()
    assert found == {}


def test_the_vectors_of_a_file_are_those_of_the_store(folder: Path, store: Store) -> None:
    listed = json.loads((folder / "models" / BASE / "matrices.json").read_text("utf-8"))
    columns = listed["columns"]
    content = (folder / "models" / BASE / listed["file"]).read_bytes()
    stored = store.vector_rows("scan0", ["tensor", "k", *COLUMNS]).to_pylist()
    for tensor, offset, count in zip(columns["tensor"], columns["offset"], columns["count"], strict=True):
        block = np.frombuffer(content, "<f4", count * len(COLUMNS), offset).reshape(len(COLUMNS), count)
        rows = sorted((row for row in stored if row["tensor"] == tensor), key=lambda row: row["k"])
        for values, name in zip(block, COLUMNS, strict=True):
            expected = np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float32)
            np.testing.assert_array_equal(values, expected)
