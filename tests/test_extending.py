"""A format, a column, a query, a figure and an experiment, each added by one module outside the package.

The modules lie in a folder that only PYTHONPATH names. Commands run in processes of their own, and so do the workers of Ray, which
import the modules by their names.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from tests.processes import python

MODULES = {
    "toy_format": """
        import json
        import math

        from scanner.checkpoint import Format, TensorEntry, register_format


        class Text(Format):
            name = "toy"
            title = ".toyfile"
            suffixes = (".toyfile",)

            def read_file(self, files, name):
                line = files.read(name, 0, 2**16).partition(b"\\n")[0]
                entries, start = [], len(line) + 1
                for tensor, shape in json.loads(line).items():
                    size = 4 * math.prod(shape)
                    entries.append(
                        TensorEntry(name=tensor, dtype="F32", shape=tuple(shape), file=name, start=start, size=size)
                    )
                    start += size
                return entries


        register_format(Text())
    """,
    "toy_columns": """
        import numpy as np

        from scanner.rmt.columns import matrix_metric, vector_metric


        @matrix_metric("toy_norm", unit="1", description="Sum of the singular values")
        def toy_norm(parts, analysis):
            return float(analysis.singular_values.sum())


        @vector_metric("toy_sign", description="Sign of the sum of the entries of the right singular vector")
        def toy_sign(parts, analysis):
            return np.sign(parts.right.sum(dim=1).cpu().numpy())
    """,
    "toy_query": '''
        from scanner.store.queries import register_query

        register_query(
            "toy_ranking",
            """-- title: Matrices by the sum of their singular values
        -- about: The largest first.
        -- param: role VARCHAR = NULL | only this role
        -- column: tensor | name
        -- column: toy_norm | sum of the singular values
        select tensor, toy_norm
        from matrices
        where $role is null or role = $role
        order by toy_norm desc, tensor
        """,
        )
    ''',
    "toy_figure": """
        import altair as alt

        from scanner.figures.registry import figure


        @figure(title="A toy figure", about="Points.", parameters={"points": "number of points"})
        def toy_points(store=None, *, interactive=False, points="3"):
            rows = [{"x": i, "y": i * i} for i in range(int(points))]
            return alt.Chart(alt.InlineData(values=rows)).mark_point().encode(x="x:Q", y="y:Q")
    """,
    "toy_experiment": '''
        from __future__ import annotations

        from dataclasses import dataclass

        from scanner.configuration import option, parameters
        from scanner.engine.task import Context, Task
        from scanner.engine.work import Stored
        from scanner.experiments.experiment import (
            Call, Experiment, ExperimentWork, Report, register_experiment, run_hash,
        )


        @dataclass(frozen=True, kw_only=True)
        class Config:
            """Options of the toy experiment."""

            sides: tuple[int, ...] = option((3, 4), metavar="A-B,...", min=1, identity="sides")
            """Lengths of the sides."""


        @dataclass(frozen=True, kw_only=True)
        class Square(Task):
            side: int

            @property
            def name(self):
                return f"square {self.side}"

            @property
            def cost(self):
                return 1.0

            def run(self, context: Context):
                with context.computing():
                    return self.side * self.side


        class Squares(ExperimentWork):
            kind = "toy"
            unit = "squares"

            def __init__(self, store, config):
                super().__init__(store)
                self.config = config
                self.run_id = run_hash("toy", "", parameters(config))
                self.found = {}

            @property
            def names(self):
                return ["squares"]

            def tasks(self):
                done = self.store.has_rows("experiments", self.run_id)
                return [] if done else [Square(side=side) for side in self.config.sides]

            def done(self, task, value):
                self.found[task.side] = value
                return Stored()

            def finish(self):
                if self.found:
                    method = parameters(self.config) | {"areas": [self.found[side] for side in self.config.sides]}
                    self.write_run(self.run_id, method, kind="toy", model="squares", seconds=self.elapsed)

            def report(self):
                total = len(self.config.sides)
                kept = total - len(self.found)
                return Report(
                    store=self.store.url, run_ids=(self.run_id,), unit=self.unit, total=total, kept=kept, failed=self.failures
                )


        register_experiment(
            Experiment(
                name="toy-squares",
                config=Config,
                plan=lambda config, call: Squares(call.open_store(), config),
                query="experiments",
                help="Square some sides.",
            )
        )
    ''',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules, and a checkpoint of the toy format beside them."""
    found = tmp_path_factory.mktemp("extending")
    (found / "modules").mkdir()
    for name, text in MODULES.items():
        (found / "modules" / f"{name}.py").write_text(dedent(text))
    (found / "model").mkdir()
    shapes = {"model.layers.0.self_attn.q_proj.weight": [12, 10], "model.layers.0.mlp.up_proj.weight": [16, 10]}
    content = np.random.default_rng(0).standard_normal(sum(map(math.prod, shapes.values()))).astype("<f4").tobytes()
    (found / "model" / "weights.toyfile").write_bytes(json.dumps(shapes).encode() + b"\n" + content)
    return found


#: Commands that run one after the other in one process, which starts Ray once: label -> arguments.
COMMANDS = {
    "inspect": ["inspect", "model", "--format", "json"],
    "scan": ["scan", "model", "--store", "store", "--workers", "1", "--ensemble", "gaussian"],
    "ranking": ["query", "toy_ranking", "--store", "store", "--format", "json"],
    "signs": ["sql", "SELECT DISTINCT toy_sign FROM vectors ORDER BY 1", "--store", "store", "-f", "json"],
    "method": ["sql", "SELECT method FROM scans", "--store", "store", "--format", "json"],
    "queries": ["query", "--list"],
    "parameters": ["query", "toy_ranking", "--list"],
    "figures": ["plot", "--list"],
    "figure": ["plot", "toy_points", "--param", "points=5", "-o", "toy.svg"],
    "help": ["--help"],
    "options": ["toy-squares", "--help"],
    "squares": ["toy-squares", "--sides", "1-3,5", "--store", "squares", "--workers", "1", "--format", "json"],
    "runs": ["sql", "SELECT method, finished_at FROM experiments", "--store", "squares", "--format", "json"],
    "squares again": ["toy-squares", "--sides", "1-3,5", "--store", "squares", "--workers", "1", "--format", "json"],
    "runs again": ["sql", "SELECT method, finished_at FROM experiments", "--store", "squares", "--format", "json"],
}

SESSION = """
    import json, sys
    import ray
    from typer.testing import CliRunner
    from scanner.cli.main import application
    from scanner.store import definitions
    from scanner.store.documentation import documentation
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    told = {}
    for label, arguments in json.loads(sys.argv[1]).items():
        done = CliRunner().invoke(application(), arguments, prog_name="rmtscan")
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        told[label] = done.stdout
    told["tables"] = documentation(definitions.TABLES.values())
    print(json.dumps(told))
"""


def process(folder: Path, *arguments: str, modules: str = ",".join(MODULES)) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that knows the modules."""
    paths = os.pathsep.join(filter(None, [str(folder / "modules"), os.environ.get("PYTHONPATH")]))
    return python(*arguments, folder=folder, RMTSCAN_EXTENSIONS=modules, PYTHONPATH=paths, COLUMNS="200")


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, str]:
    """What the commands print, and as `tables` the documentation of the tables."""
    done = process(folder, "-c", dedent(SESSION), json.dumps(COMMANDS))
    assert done.returncode == 0, done.stdout + done.stderr
    outputs: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return outputs


def singular_values(folder: Path) -> dict[str, np.ndarray]:
    """By numpy, from the bytes of the file."""
    line, _, content = (folder / "model" / "weights.toyfile").read_bytes().partition(b"\n")
    found, start = {}, 0
    for name, shape in json.loads(line).items():
        entries = np.frombuffer(content, "<f4", math.prod(shape), start).reshape(shape)
        found[name] = np.linalg.svd(entries.astype(np.float64), compute_uv=False)
        start += entries.nbytes
    return found


def test_a_format_is_listed(told: dict[str, str]) -> None:
    assert {row["role"] for row in json.loads(told["inspect"])} == {"query", "mlp_up"}


def test_columns_are_scanned_by_workers_and_queried(folder: Path, told: dict[str, str]) -> None:
    ranking = json.loads(told["ranking"])
    expected = {name: values.sum() for name, values in singular_values(folder).items()}
    assert [row["tensor"] for row in ranking] == sorted(expected, key=lambda name: -expected[name])
    assert {row["tensor"]: pytest.approx(row["toy_norm"]) for row in ranking} == expected
    assert [row["toy_sign"] for row in json.loads(told["signs"])] == [-1.0, 1.0]
    # The metrics are part of the method, and so of the identity.
    [scan] = json.loads(told["method"])
    assert json.loads(scan["method"])["metrics"] == ["toy_norm", "toy_sign"]


def test_columns_and_queries_are_documented(told: dict[str, str]) -> None:
    assert "| `toy_norm` | DOUBLE | 1 | Sum of the singular values" in told["tables"].replace("float64", "DOUBLE")
    assert "toy_sign" in told["tables"]
    assert "toy_ranking" in told["queries"]
    assert "only this role" in told["parameters"]


def test_a_figure_is_listed_and_drawn(folder: Path, told: dict[str, str]) -> None:
    assert "A toy figure" in told["figures"]
    assert (folder / "toy.svg").read_text().count("<path") >= 5


def test_an_experiment_is_a_verb_with_options_and_runs_on_workers_once(told: dict[str, str]) -> None:
    assert "toy-squares" in told["help"]
    assert "--sides" in told["options"]
    assert "Lengths of the sides." in told["options"]
    assert "3,4" in told["options"]
    [row] = json.loads(told["squares"])
    assert row["kind"] == "toy"
    [run] = json.loads(told["runs"])
    assert json.loads(run["method"])["areas"] == [1, 4, 9, 25]
    assert told["runs again"] == told["runs"], "a second call computes nothing"


def test_an_extension_that_cannot_be_imported_is_one_line(folder: Path) -> None:
    done = process(folder, "-m", "scanner.cli.main", "inspect", "model", modules="no_such_module")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "extension 'no_such_module' cannot be imported" in done.stderr
