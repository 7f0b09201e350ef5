"""The report in a real browser: no errors, no requests, every chart is drawn, and controls work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from scanner.report import write_report
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan, control
from tests.store.test_experiment_queries import add_point, add_run
from tests.store.test_staging_comparisons import METHOD

from .browser import Browser
from .pair_rows import add_pair

EVIL = "evil/</script><img src=x onerror=document.body.id='broken'>\u202e"


def spectrum(rows: int, cols: int, seed: int) -> list[float]:
    """Singular values of a random matrix with two spikes."""
    generator = np.random.default_rng(seed)
    values = np.linalg.svd(generator.normal(size=(rows, cols)), compute_uv=False)
    return sorted([*(float(value) for value in values[:-2]), 40.0, 30.0], reverse=True)


def matrix(layer: int, role: str, rows: int, cols: int) -> Matrix:
    seed = layer * 10 + len(role)
    values = spectrum(rows, cols, seed)
    p = np.random.default_rng(seed).uniform(size=(2, len(values))).tolist()
    edges = {"sigma": 1.0, "mp_lower": abs(rows**0.5 - cols**0.5), "mp_upper": rows**0.5 + cols**0.5}
    edges |= {
        "sigma_median": 1.0,
        "sigma_std": 1.3,
        "sigma_bulk": 0.9,
        "outliers_right": 2,
        "dtype": "F32",
        "mp_ks": 0.1,
        "scale_lower": 0.8 * edges["mp_lower"],
        "scale_upper": 1.2 * edges["mp_upper"],
        "outliers_left_scale": 0,
        "outliers_right_scale": 1,
        "scale_row_inequality": 1.2,
        "scale_col_inequality": 1.1,
    }
    under_scale = np.random.default_rng(seed + 1).uniform(size=(2, len(values))).tolist()
    # The smallest value is numerically zero: it has no p under the scale null and no density.
    by_rank: dict[str, Sequence[object]] = {
        "region_scale": ["right", *["bulk"] * (len(values) - 2), "null"],
        "u_p_scale": [*under_scale[0][:-1], None],
        "v_p_scale": [*under_scale[1][:-1], None],
        "scale_density": [*np.linspace(0.1, 0.3, len(values) - 1).tolist(), None],
    }
    return Matrix(
        tensor=f"block.{layer}.{role}",
        layer=layer,
        role=role,
        rows=rows,
        cols=cols,
        singular_values=values,
        u_p=p[0],
        v_p=p[1],
        more=edges,
        by_rank=by_rank,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two models of three layers that were compared, one of them with a name that wants to be a script."""
    made = open_store(str(tmp_path_factory.mktemp("report") / "store"), create=True)
    shapes = {"query": (24, 24), "mlp_up": (48, 24)}
    for number, model in enumerate(["org/base", EVIL]):
        matrices = [matrix(layer, role, *shape) for layer in range(3) for role, shape in shapes.items()]
        add_scan(made, f"scan{number}", matrices, model=model, hours=number, failed=["lost<b>"] if number else [])
    for rows, cols in shapes.values():
        values = sorted(np.random.default_rng(0).uniform(0.2, 1.5, min(rows, cols)).tolist(), reverse=True)
        p = np.random.default_rng(1).uniform(size=min(rows, cols)).tolist()
        made.write_control(control(rows, cols, singular_values=values, u_p=p, v_p=p), rows, cols, "gaussian", 0)
    add_pair(made, "org/base", EVIL, [("query", layer, 24, 24) for layer in range(3)], method=METHOD)
    add_run(made, "points", "ablation", model="org/base")
    for decile in (1, 2, 10):
        add_point(
            made,
            f"p{decile}",
            run_id="points",
            model="org/base",
            set=f"decile:{decile}",
            roles="query",
            layers="0-2",
            delta=0.1 * decile,
        )
    return made


@pytest.fixture(scope="module")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(store, [], path)
    return path


def see_everything(browser: Browser) -> None:
    """Scroll through the page, as a reader would, until every chart is drawn."""
    for place in range(browser.run("return document.querySelectorAll('[data-chart]').length")):
        browser.run("document.querySelectorAll('[data-chart]')[arguments[0]].scrollIntoView()", place)
        browser.wait(
            lambda at=place: browser.run(  # type: ignore[misc]
                "return document.querySelectorAll('[data-chart]')[arguments[0]].dataset.drawn", at
            )
        )


def marks(browser: Browser, selector: str) -> int:
    """Shapes with an extent in the charts of a selector: what a reader can see of data."""
    script = """
        const kinds = ['path', 'line', 'text'].map((mark) => `${arguments[0]} svg .role-mark ${mark}`);
        const found = document.querySelectorAll(kinds.join());
        const boxes = [...found].map((mark) => mark.getBoundingClientRect());
        return boxes.filter((box) => box.width + box.height > 1).length"""
    return int(browser.run(script, selector))


def test_every_chart_is_drawn_nothing_is_asked_for_and_nothing_complained_about(browser: Browser, page: Path) -> None:
    browser.open(page)
    see_everything(browser)
    keys = browser.run("return [...document.querySelectorAll('[data-chart]')].map((one) => one.dataset.chart)")
    assert len(keys) >= 2 * 5 + 1, "both models and the pair have figures"
    legends = browser.run("return document.querySelector('#explorer').textContent")
    assert "law of the scale null" in legends
    assert "independent entries" in legends
    for key in keys:
        assert marks(browser, f"[data-chart='{key}']") > 0, key
    assert marks(browser, "#explorer-spectrum") > 5
    assert marks(browser, "#explorer-p") >= 3
    assert browser.console() == []
    assert {url for url in browser.requests() if not url.startswith("data:")} == {page.as_uri()}


def test_names_from_a_checkpoint_are_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("return document.body.id") == ""
    assert browser.run("return document.querySelectorAll('img').length") == 0
    text = browser.run("return document.body.innerText")
    assert "evil/</script><img src=x" in text
    assert "lost<b>" in text
    assert "\u202e" not in page.read_text("utf-8")


def choose(browser: Browser, chooser: str, value: str) -> None:
    browser.run(
        "const one = document.getElementById(arguments[0]); one.value = arguments[1]; one.dispatchEvent(new Event('change'))",
        chooser,
        value,
    )


def drawn(browser: Browser) -> tuple[str, str]:
    """The shapes of both charts of the explorer."""
    script = """
        const marks = document.querySelectorAll(`${arguments[0]} .role-mark path`);
        return [...marks].map((mark) => mark.getAttribute('d')).join()"""
    return browser.run(script, "#explorer-spectrum"), browser.run(script, "#explorer-p")


def test_the_chooser_of_role_and_layer_changes_the_charts(browser: Browser, page: Path) -> None:
    browser.open(page)

    def shown(what: str) -> None:
        browser.wait(lambda: browser.run("return document.getElementById('explorer').dataset.shown") == what)

    shown("query / layer 0")
    seen = [drawn(browser)]
    choose(browser, "choose-role", "mlp_up")
    shown("mlp_up / layer 0")
    assert "48 × 24" in browser.run("return document.getElementById('explorer-facts').textContent")
    seen.append(drawn(browser))
    choose(browser, "choose-place", "layer 2")
    shown("mlp_up / layer 2")
    seen.append(drawn(browser))
    browser.run("document.getElementById('choose-before').click()")
    shown("mlp_up / layer 1")
    seen.append(drawn(browser))
    choose(browser, "choose-role", "query")
    shown("query / layer 1")
    assert len({spectrum for spectrum, _ in seen}) == 4
    assert len({p for _, p in seen}) == 4
    assert browser.console() == []


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(browser: Browser, page: Path) -> None:
    browser.open(page)
    column = """const table = document.querySelector('table.matrices'), heads = [...table.tHead.rows[0].cells];
        const at = heads.findIndex((head) => head.textContent.trim() === 'mean p');
        if (arguments[0]) heads[at].querySelector('button').click();
        return [heads[at].getAttribute('aria-sort'), [...table.tBodies[0].rows].map((row) => Number(row.cells[at].dataset.v))]"""
    before = browser.run(column, False)[1]
    state, up = browser.run(column, True)
    assert (state, up) == ("ascending", sorted(before))
    state, down = browser.run(column, True)
    assert (state, down) == ("descending", sorted(before, reverse=True))
    assert up != down


@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_fits_the_window(browser: Browser, page: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(page)
        see_everything(browser)
        assert browser.run("return document.documentElement.scrollWidth") <= width
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_filter_leaves_what_has_every_word(browser: Browser, page: Path) -> None:
    browser.open(page)
    shown = "return [...document.querySelectorAll('#m0 table.matrices tbody tr')].filter((row) => !row.hidden).length"
    type_in = (
        "const one = document.getElementById('filter'); one.value = arguments[0]; one.dispatchEvent(new Event('input'))"
    )
    assert browser.run(shown) == 6
    browser.run(type_in, "block.1 MLP_up")
    assert browser.run(shown) == 1
    assert browser.run("return document.getElementById('filter-count').textContent").endswith("match")
    browser.run("location.hash = 'm0-layer-2-query'")
    browser.wait(lambda: browser.run(shown) == 6)
    browser.run(type_in, "no such word")
    assert browser.run(shown) == 0


def test_a_fragment_leads_to_a_matrix_in_the_table_or_in_the_explorer(browser: Browser, page: Path) -> None:
    shown = "return document.getElementById('explorer').dataset.shown"
    browser.open(f"{page.as_uri()}#explore/m0-layer-2-mlp-up")
    browser.wait(lambda: browser.run(shown) == "mlp_up / layer 2")
    browser.open(f"{page.as_uri()}#m0-layer-1-query")
    browser.wait(lambda: browser.run(shown) == "query / layer 1")
    assert browser.run("return document.querySelector(':target').innerText").startswith("1")
    browser.run("document.getElementById('choose-next').click()")
    browser.wait(lambda: browser.driver.current_url.endswith("#explore/m0-layer-2-query"))


def test_every_fragment_of_a_link_exists_and_no_id_is_given_twice(browser: Browser, page: Path) -> None:
    browser.open(page)
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len({*ids})
    script = "return [...document.querySelectorAll('a[href^=\"#\"]')].map((one) => one.getAttribute('href').slice(1))"
    links = [link for link in browser.run(script) if link]  # those of Vega's menus are empty
    assert {link.removeprefix("explore/") for link in links} <= {*ids}
    for wanted in (
        "findings",
        "m0",
        "m0-roles",
        "m0-role-query-left",
        "m0-matrices",
        "m1-layer-0-mlp-up",
        "p0",
        "p0-matrices",
    ):
        assert wanted in ids


def test_dark_colors_follow_the_system_and_the_button(browser: Browser, page: Path) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    ink = "return document.querySelector('#explorer-spectrum svg .role-axis-label text')?.getAttribute('fill')"
    browser.size(1400, dark=True)
    try:
        browser.open(page)
        assert browser.run(paper) == "rgb(18, 23, 29)"
        browser.wait(lambda: browser.run(ink) == "#f2f4f7")
        paths = "[...document.querySelectorAll('#explorer-spectrum svg .mark-line path')]"
        lines = f"return {paths}.map((one) => one.getAttribute('stroke'))"
        assert "#f2f4f7" in browser.run(lines), "the law, which is black on white paper"
        browser.run("document.querySelector('[data-theme-toggle]').click()")
        assert browser.run(paper) == "rgb(255, 255, 255)"
        browser.wait(lambda: browser.run(ink) not in (None, "#f2f4f7"))
        browser.run("localStorage.clear()")
    finally:
        browser.reset()
    assert browser.console() == []


def test_a_printed_report_has_every_column_of_its_tables(browser: Browser, page: Path) -> None:
    """On paper nothing scrolls: tables must be as narrow as the page."""
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 680, "height": 960, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        browser.open(page)
        wide = browser.run(
            "return [...document.querySelectorAll('table')].filter((one) => one.offsetWidth > 681).length"
        )
        assert wide == 0
        assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.reset()


def test_experiments_are_told_of(browser: Browser, page: Path) -> None:
    browser.open(page)
    section = browser.run("return document.getElementById('experiments')?.innerText")
    assert "ablation" in section
    assert "rmtscan query experiments" in section
    assert browser.run("return document.querySelectorAll('#experiments [data-chart]').length") >= 1


def test_paper_has_what_is_folded_on_the_screen(browser: Browser, tmp_path: Path) -> None:
    made = open_store(str(tmp_path / "store"), create=True)
    for name in "abc":
        add_scan(made, name, [matrix(layer, "query", 24, 24) for layer in range(3)], model=name)
    write_report(made, [], tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    folded = "return document.querySelectorAll('.said details:not([open])').length"
    on_screen = browser.run(folded)
    assert on_screen > 0
    browser.run(f"addEventListener('beforeprint', () => {{ window.onPaper = (() => {{ {folded} }})() }})")
    browser.driver.execute_cdp_cmd("Page.printToPDF", {})
    assert browser.run("return window.onPaper") == 0
    assert browser.run(folded) == on_screen
