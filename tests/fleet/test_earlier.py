"""Scans of an earlier method are told from the rows of `scans` alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from scanner.engine.method import Method, scan_id
from scanner.fleet.earlier import earlier_methods
from scanner.store import Store, open_store
from tests.processes import python
from tests.store.rows import Matrix, scan_values

ROOT = Path(__file__).parent.parent.parent
OLD = Method().as_dict() | {"version": 0}


def add(store: Store, name: str, identity: str, method: dict[str, object]) -> None:
    writer = store.writer(name, method=method, model="org/model")
    writer.stage("m", *Matrix().tables(name, "org/model", "r1"))
    writer.commit(scan_values(identity=identity))


def filled(folder: Path) -> Store:
    store = open_store(str(folder), create=True)
    add(store, "old", "a", OLD)
    add(store, "again", "b", OLD)
    add(store, scan_id("b", Method()), "b", Method().as_dict())
    add(store, "unknown", "c", OLD | {"sigma": "of another time"})
    return store


def test_tables_of_matrices_are_not_read(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    for table in ("matrices", "vectors"):
        shutil.rmtree(Path(store.url, table))
    assert earlier_methods(open_store(store.url)) == {"old": (0, Method())}


def test_status_of_scans_of_the_current_method_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), create=True)
    add(store, "new", "a", Method().as_dict())
    code = (
        "import sys\nfrom scanner.cli.main import application\n"
        "try: application()(['status', '--store', sys.argv[1]], prog_name='rmtscan')\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'ray'} & {*sys.modules}, 'loaded'"
    )
    done = python("-c", code, store.url, folder=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "new" in done.stdout
