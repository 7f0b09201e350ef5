from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from scanner.engine.plan import decomposition_cost, decomposition_limit, expected_seconds, largest_first
from scanner.engine.tasks import ControlTask, control_tasks
from scanner.rmt.ensembles import ENSEMBLES, control

from .checkpoints import small

SHAPES = st.tuples(st.integers(1, 8192), st.integers(1, 8192))


@dataclass(frozen=True, kw_only=True)
class Work:
    name: str
    cost: float


WORK = st.builds(Work, name=st.text(max_size=5), cost=st.sampled_from([0.0, 1.0, 2.0, 1e30]))


@given(st.lists(WORK), st.randoms())
def test_the_largest_comes_first_whatever_the_order_in_which_work_was_found(work: list[Work], shuffler: object) -> None:
    ordered = largest_first(work)  # type: ignore[type-var]
    assert sorted(ordered, key=repr) == sorted(work, key=repr)
    assert all(one.cost >= other.cost for one, other in pairwise(ordered))
    shuffler.shuffle(work)  # type: ignore[attr-defined]
    assert largest_first(work) == ordered  # type: ignore[type-var]


@given(st.lists(SHAPES), st.lists(st.sampled_from(ENSEMBLES)))
def test_every_distinct_shape_has_one_control_of_every_ensemble(
    shapes: list[tuple[int, int]], ensembles: list[str]
) -> None:
    tasks = control_tasks(shapes, ensembles)  # type: ignore[arg-type]
    wanted = {(rows, cols, ensemble) for rows, cols in shapes for ensemble in ensembles}
    assert len(tasks) == len(wanted) == len({task.name for task in tasks})
    assert {(task.rows, task.cols, task.ensemble) for task in tasks} == wanted
    assert len({task.seed for task in tasks}) <= 1


@given(SHAPES)
def test_a_matrix_costs_what_its_transpose_costs_and_less_than_a_larger_one(shape: tuple[int, int]) -> None:
    rows, cols = shape
    assert decomposition_cost(rows, cols) == decomposition_cost(cols, rows) > 0
    assert decomposition_cost(rows, cols) < decomposition_cost(rows + 1, cols)


@given(SHAPES, st.floats(1e6, 1e13))
def test_expected_seconds_fall_with_the_rate_and_include_the_decomposition(shape: tuple[int, int], rate: float) -> None:
    rows, cols = shape
    expected = expected_seconds(rows, cols, rate)
    assert expected == expected_seconds(cols, rows, rate) > decomposition_cost(rows, cols) / rate
    assert expected < expected_seconds(rows, cols + 1, rate)
    assert expected > expected_seconds(rows, cols, 2 * rate) > 0


def test_controls_of_two_tasks_with_the_same_name_are_the_same_matrix() -> None:
    one, two = (ControlTask(ensemble="gaussian", rows=5, cols=7) for _ in range(2))
    assert one.name == two.name
    drawn = [control(task.ensemble, task.rows, task.cols, task.seed) for task in (one, two)]
    assert drawn[0].shape == (5, 7)
    assert (drawn[0] == drawn[1]).all()


def test_a_hung_worker_is_noticed_within_hours_and_a_slow_one_has_ten_times_what_a_core_of_the_documentation_takes() -> (
    None
):
    """docs/cluster.md: the embedding of a 70B model takes 26 minutes on one core."""
    limit = decomposition_limit(decomposition_cost(128_256, 8192))
    assert 10 * 26 * 60 <= limit <= 5 * 3600


def test_the_driver_of_a_scan_does_not_load_torch(tmp_path: Path) -> None:
    """It takes longer than reading the headers, and the workers load it at the same time."""
    code = """
import sys
from scanner.checkpoint import Selection, list_matrices
from scanner.engine.ahead import open_reference
from scanner.engine.method import Method
from scanner.engine.scan import ScanWork
from scanner.engine.work import Observer
from scanner.store import open_store

work = ScanWork(open_store(sys.argv[2], create=True), Method(null="mc:100"), Observer())
work.add(sys.argv[1], force=False, download=False)
print(len(work.tasks()), [name for name in ("torch", "scipy.optimize", "transformers") if name in sys.modules])
"""
    model = small(tmp_path / "model", layers=1)
    done = subprocess.run(
        [sys.executable, "-c", code, model, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("10 []\n", 0), done.stderr
