"""A store that somebody else made: ids, paths and JSON in it are data; no verb writes outside its target or ends in a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.cli.main import main
from scanner.errors import StoreError
from scanner.store import open_store
from scanner.store.checksums import records_in
from scanner.store.files import StoreFiles
from scanner.store.publish import MANIFEST, publish
from tests.faults.stores import compared


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    with pytest.MonkeyPatch.context() as patch:
        compared(folder, patch)
    return folder / "store"


@pytest.fixture
def foreign(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def rewrite(file: Path, **values: object) -> None:
    table = pq.read_table(file)
    for name, value in values.items():
        field = table.schema.field(name)
        fits = value is None or isinstance(value, str) == pa.types.is_string(field.type)
        column = pa.array([value] * table.num_rows, field.type if fits else None)
        table = table.set_column(table.column_names.index(name), pa.field(name, column.type), column)
    pq.write_table(table.replace_schema_metadata({}), file)  # without the checksum that would give it away


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


VALUES = {
    "path": {"scan_id": "../../outside/x"},
    "absolute": {"scan_id": "/etc/passwd"},
    "sql": {"scan_id": "x'); drop table scans; --"},
    "other": {"scan_id": "0123456789abcdef"},
    "json": {"skipped_tensors": "{{{", "method": "[", "environment": "\x00"},
    "deep": {"skipped_tensors": "[" * 100_000},
    "kind": {"skipped_tensors": json.dumps({"a": 3, "b": [None, {}]})},
    "files": {"files": json.dumps({"../../etc/passwd": {"bytes": 1, "rows": 1, "sha256": "0" * 64}})},
    "files of lists": {"files": "[1, 2]"},
    "no files": {"files": "null"},
    "numbers": {"matrices": -5},
    "text for a number": {"matrices": "many"},
    "no model": {"model": None},
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_no_verb_believes_a_hostile_row(
    foreign: Path, tmp_path: Path, values: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(min((foreign / "scans").glob("*.parquet")), **values)
    (tmp_path / "outside").mkdir()
    before = everything(foreign)
    for arguments in (
        ["verify", str(foreign)],
        ["status", "--store", str(foreign)],
        ["models", "--store", str(foreign)],
        ["sql", "select count(*) from vectors", "--store", str(foreign)],
        ["publish", str(foreign), "--to", str(tmp_path / "to")],
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code in (0, 1, 3), arguments
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
    assert everything(foreign) == before
    assert everything(tmp_path / "outside") == {}


@pytest.mark.parametrize(("kind", "table"), [("pipe", "scans"), ("pipe", "matrices"), ("device", "matrices")])
def test_a_pipe_or_device_in_place_of_a_file_is_not_read(foreign: Path, tmp_path: Path, table: str, kind: str) -> None:
    scan = min((foreign / "scans").glob("*.parquet")).stem
    path = foreign / table / f"{scan}.parquet"
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    command = "import sys; from scanner.cli.main import main; main(sys.argv[1:])"
    for verb in (["verify", str(foreign)], ["models", "--store", str(foreign)]):
        # A process of its own: reading a pipe cannot be interrupted from inside.
        ended = subprocess.run([sys.executable, "-c", command, *verb], capture_output=True, text=True, timeout=120)
        assert ended.returncode in (0, 1, 3)
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["$(rm -rf x)", "a b", ".hidden", "x'y", "ü", "a" * 150, "-rf"])
def test_names_of_files_are_checked(foreign: Path, name: str) -> None:
    shutil.copy(min((foreign / "scans").glob("*.parquet")), foreign / "scans" / f"{name}.parquet")
    store = open_store(str(foreign))
    if name.startswith("."):
        assert len(store.committed()) == 3, "unfinished files have such names"
        return
    assert [found.result for found in store.verify() if found.state == "damaged"] == [name]
    with pytest.warns(UserWarning, match="left out"):
        assert store.sql("select count(distinct scan_id) as scans from scans")["scans"].to_pylist() == [3]


def test_names_that_are_not_text_are_left_out(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(os.fsdecode(os.fsencode(foreign / "scans") + b"/\xff.parquet")).write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(foreign / "staging") + b"/\xfe")).mkdir(parents=True)
    for arguments in (["verify", str(foreign)], ["status", "--store", str(foreign)]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    capsys.readouterr()


def test_a_damaged_staging_folder_does_not_stop_status(foreign: Path) -> None:
    for number, content in enumerate((b"", b"PAR1 no", b"RMTSHA25" * 8)):
        staged = foreign / "staging" / f"unfinished{number}" / "first"
        for folder, suffix in (("failures", ".parquet"), ("finished", ".arrow")):
            (staged / folder).mkdir(parents=True)
            (staged / folder / f"{'0' * 32}{suffix}").write_bytes(content)
    other = foreign / "staging" / "other" / "first" / "failures"
    other.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), other / f"{'0' * 32}.parquet")
    assert [scan.model for scan in open_store(str(foreign)).unfinished()] == [None] * 4


@pytest.mark.parametrize("name", ["README.md", MANIFEST, "scans/x.parquet"])
def test_a_planted_link_is_not_followed(foreign: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    target = tmp_path / "to"
    scan = min((foreign / "scans").glob("*.parquet"))
    path = target / name.replace("x.parquet", scan.name)
    path.parent.mkdir(parents=True)
    for planted in (path, path.with_name(f".{path.name}.tmp")):
        planted.symlink_to(victim)
    publish(open_store(str(foreign)), target, force=True)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.is_file()


@pytest.mark.parametrize("table", ["scans", "vectors", "controls"])
def test_a_table_that_leads_elsewhere_is_refused(foreign: Path, tmp_path: Path, table: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.parquet").write_text("precious")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / table).symlink_to(tmp_path / "elsewhere")
    manifest = {"files": [f"{table}/kept.parquet", "../../x.parquet", "scans/../../x.parquet"]}
    (tmp_path / "to" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="symbolic link"):
        publish(open_store(str(foreign)), tmp_path / "to")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["kept.parquet"]


@pytest.mark.parametrize(
    "text",
    [
        "[]", "3", "{", '{"scans/a.parquet": 1}', '{"scans/../x.parquet": {"bytes": 1, "rows": 1, "sha256": ""}}',
        '{"x/a.parquet": {}}', '{"scans/a.parquet": {"bytes": -1, "rows": 1, "sha256": "' + "0" * 64 + '"}}', "[" * 99_999,
    ],
)  # fmt: skip
def test_records_are_validated(text: str) -> None:
    with pytest.raises(ValueError, match="column `files`"):
        records_in(text)


@pytest.mark.parametrize("name", ["a::v2", "memory::x", "s3:", "a#b", "a?b=c", "a::b::c", "%41"])
def test_a_path_means_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    files = StoreFiles(name)
    assert files.url == str(tmp_path / name)
    files.write_bytes("scans/x.parquet", b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("url", ["zip://x::file:///tmp/a.zip", "simplecache::s3://bucket/x", "memory://a::memory://b"])
def test_chained_urls_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match="'::'"):
        StoreFiles(url)


class NoSuchBucket(Exception):
    """As botocore raises them: not an OSError, with a message of several lines."""

    __module__ = "botocore.errorfactory"


class ClientError(Exception):
    __module__ = "aiohttp.client_exceptions"


@pytest.mark.parametrize(
    "error", [NoSuchBucket("no\nsuch \x1b[31m bucket"), ClientError(), PermissionError("Forbidden")]
)
def test_errors_of_object_stores_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    files = StoreFiles("memory://errors/store")

    def refuse(*_: object, **__: object) -> None:
        raise error

    for method in ("isdir", "isfile", "ls", "cat_file", "info", "makedirs", "put_file", "rm_file"):
        monkeypatch.setattr(type(files.fs), method, refuse)
    for call in (
        lambda: files.is_folder("x"),
        lambda: files.is_file("x"),
        lambda: files.names("x"),
        lambda: files.read_bytes("x"),
        lambda: files.size("x"),
        lambda: files.prepare("x"),
        lambda: files.write_bytes("x/y", b""),
    ):
        with pytest.raises(StoreError) as raised:
            call()
        text = str(raised.value)
        assert "memory://" in text
        assert text.isprintable(), "one line, and no control characters"
