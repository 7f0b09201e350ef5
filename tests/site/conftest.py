"""One store and one served site for all tests of the site."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scanner.rmt.product_law import singular_value_edges
from scanner.site import write_site
from scanner.store import Store, open_store
from tests.report.pair_rows import add_pair
from tests.report.test_page import matrix
from tests.store.rows import Matrix, add_scan, control, table
from tests.store.test_staging_comparisons import METHOD

EVIL = "evil/</script><img src=x onerror=\"document.body.id='broken'\">'\u202e\x1b[2J"
"""A name that wants to be markup, a script and a terminal escape."""
LONG = EVIL + "m" * 60
SHAPES = {"query": (24, 24), "mlp_up": (48, 24)}
NIGHT = "20261101T120000Z-00aa"


def slices() -> list[Matrix]:
    """Slices of two heads in two layers, and their products, and a head outside of the layers, with hostile and long names."""
    tensor = f"javascript:document.body.id='broken'//{EVIL}{'x' * 300}"
    found = []
    for layer in range(2):
        for head in range(2):
            p = [0.1 * (1 + 2 * layer + head)] * 4
            lower, upper = singular_value_edges(0.05, 24, 20, 4)
            edges = {"sigma": 0.05, "mp_lower": lower, "mp_upper": upper, "between": EVIL, "kv_head": head}
            for role, rows, cols, values, more in (
                ("query", 4, 24, (4.0, 3.0, 2.0, 1.0), {"module": LONG}),
                ("qk", 24, 20, (1.4, 0.6, 0.5, 0.4), edges),
            ):
                found.append(
                    Matrix(
                        tensor=f"{tensor}.{layer}.{role}",
                        stack=EVIL,
                        layer=layer,
                        head=head,
                        role=role,
                        rows=rows,
                        cols=cols,
                        singular_values=values,
                        u_p=p,
                        v_p=p,
                        more=more,
                    )
                )
    p = [0.9] * 4
    found.append(
        Matrix(
            tensor="pool",
            stack=EVIL,
            layer=None,
            head=0,
            role="query",
            rows=4,
            cols=24,
            u_p=p,
            v_p=p,
            more={"module": LONG},
        )
    )
    return found


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A base, a fine-tune with a hostile name, a third model, a comparison, controls, a night, and a scan that is not finished."""
    made = open_store(str(tmp_path_factory.mktemp("site") / "store"), create=True)
    for number, model in enumerate(["org/base", EVIL, "org/third"]):
        matrices = [matrix(layer, role, *shape) for layer in range(3) for role, shape in SHAPES.items()]
        if number == 1:
            matrices.append(Matrix(tensor=f"{EVIL}.weight", layer=7, role="query", rows=4, cols=4))
            matrices += slices()
        add_scan(made, f"scan{number}", matrices, model=model, hours=number, failed=[EVIL] if number == 1 else [])
    for rows, cols in SHAPES.values():
        values = sorted(np.random.default_rng(0).uniform(0.2, 1.5, min(rows, cols)).tolist(), reverse=True)
        p = np.random.default_rng(1).uniform(size=min(rows, cols)).tolist()
        made.write_control(control(rows, cols, singular_values=values, u_p=p, v_p=p), rows, cols, "gaussian", 0)
    add_pair(made, "org/base", EVIL, [("query", layer, 24, 24) for layer in range(3)], method=METHOD)
    made.writer("u", method={}, model="org/late<b>").stage("m", *Matrix().tables("u", "org/late<b>", "r"))
    _add_night(made)
    return made


def _add_night(store: Store) -> None:
    from datetime import UTC, datetime

    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    night = {
        "night_id": NIGHT,
        "watch_id": "w",
        "state": "done",
        "started_at": at,
        "finished_at": at,
        "listed": 2,
        "new": 1,
    }
    release = {
        "night_id": NIGHT,
        "watch_id": "w",
        "repository": EVIL,
        "commit": "c" * 40,
        "state": "failed",
        "reason": EVIL,
        "attempts": 3,
    }
    store.write_rows("nights", NIGHT, table("nights", [night | {"failed": 1}]), method={})
    store.write_rows(
        "releases", NIGHT, table("releases", [release | {"updated_at": at, "first_seen_at": at}]), method={}
    )


@pytest.fixture(scope="session")
def folder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the store, as `rmtscan site` writes it."""
    target = tmp_path_factory.mktemp("written") / "site"
    write_site(store, target)
    return target


class Served:
    """A folder on a free port of the loopback interface, by the server of `rmtscan serve`."""

    def __init__(self, folder: Path) -> None:
        from aiohttp import web

        from scanner.site.serving import application

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = web.AppRunner(application(folder), access_log=None)
        self.address = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    async def _start(self) -> str:
        from aiohttp import web

        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """The address of the served site."""
    pytest.importorskip("aiohttp")
    served = Served(folder)
    yield served.address
    served.close()
