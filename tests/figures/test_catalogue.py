"""Every registered figure draws, on paper and on the screen, with little data; missing data is an error of one clear line."""

import json
import warnings
from pathlib import Path

import pytest

from scanner.errors import ScannerError
from scanner.figures import FIGURES, PARAMETERS, find_figure
from scanner.figures.theme import ROLE_COLORS, log_ticks, thinned
from scanner.store import Store, open_store
from tests.store.rows import Matrix, add_scan, failure

from .stores import BASE, TUNED, tables

OF_SCANS = [name for name, figure in FIGURES.items() if "revision" in figure.parameters]
OF_ACTIVATIONS = ["activation_overlap", "activation_spectrum", "overlap_map"]
OF_PAIRS = ["pair_spectra", "overlap"]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("interactive", [False, True])
def test_every_figure_embeds_little_data_and_all_of_it(full_store: Store, name: str, interactive: bool) -> None:
    given = {"model": BASE} if name in OF_SCANS else {"model": "org/model"} if name in OF_ACTIVATIONS else {}
    # everything else is in the store once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = FIGURES[name].draw(full_store, interactive=interactive, **given).to_dict()
    text = json.dumps(chart)
    assert len(text) < 200_000
    assert '"url"' not in text
    assert any(tables(chart))
    assert ('"tooltip"' in text) == interactive


def test_a_large_model_is_still_a_small_file(store: Store) -> None:
    roles = ("query", "key", "value", "attn_out", "mlp_up", "mlp_gate", "mlp_down")
    shape = {"rows": 64, "cols": 128, "singular_values": [1.2 - 0.01 * k for k in range(64)]}
    places = [(layer, role) for layer in range(20) for role in roles]
    add_scan(
        store, "whole", [Matrix(tensor=f"{layer}.{role}", layer=layer, role=role, **shape) for layer, role in places]
    )
    heads = [Matrix(tensor=f"{n}.query", layer=n, head=head, rows=4, cols=8) for n in range(6) for head in range(40)]
    add_scan(store, "heads", heads, hours=1)
    for name in ("spectra_by_role", "pvalues_by_role", "heads", "depth", "outliers"):
        assert len(json.dumps(FIGURES[name].draw(store, interactive=True).to_dict())) < 200_000, name


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_what_it_shows_and_takes(name: str) -> None:
    figure = FIGURES[name]
    assert figure.name == name
    assert len(figure.about.split()) > 10
    assert all(figure.parameters.values()), "every parameter has a help text"
    assert all(figure.parameters[shared] == PARAMETERS[shared] for shared in {*figure.parameters} & {*PARAMETERS})
    assert not {"interactive", "progress"} & {*figure.parameters}


def test_an_unknown_figure_is_answered_with_the_nearest() -> None:
    with pytest.raises(ScannerError, match=r"unknown figure 'spectrun': did you mean 'spectrum'\? known: .*outliers"):
        find_figure("spectrun")


def test_a_parameter_that_a_figure_does_not_take_is_an_error(pair_store: Store) -> None:
    with pytest.raises(ScannerError, match="'depth' takes no parameter 'k'; its parameters are: model, revision, role"):
        FIGURES["depth"].draw(pair_store, k=3)


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("spectrum", {"model": "base/modle"}, "did you mean 'base/model'"),
        ("spectrum", {}, "give `model`, one of: base/model, tuned/model"),
        ("spectrum", {"model": BASE, "role": "qury"}, "did you mean 'query'. known: query, value, mlp_up"),
        (
            "spectrum",
            {"model": BASE, "role": "query", "layer": 9},
            "no layer '9' with role 'query': known: 0, 2, 5",
        ),
        ("spectrum", {"model": BASE, "role": "query", "head": 99}, "no head '99' with role 'query'"),
        ("spectrum", {"model": TUNED, "head": 0}, "the heads of 'tuned/model' are not scanned"),
        ("spectrum", {"model": BASE, "revision": "zz"}, "no scan of revision 'zz'"),
        ("spectrum", {"model": BASE, "tensor": "nothing"}, "no tensor 'nothing'"),
        ("heads", {"model": TUNED}, "the heads of 'tuned/model' are not scanned"),
        ("depth", {"model": BASE, "side": "w"}, "`side` must be u .* got 'w'"),
        ("depth", {"model": BASE, "stack": "decoder"}, "no stack 'decoder'"),
        ("pvalues_by_role", {"model": BASE, "layer": 1}, "no layer '1'"),
        ("vector", {"model": BASE, "k": 384}, "no rank 384: ranks are 0 .* to 383"),
        ("vector", {"model": BASE, "k": -1}, "no rank -1"),
        ("pair_spectra", {"base": TUNED}, "the pair tuned/model -> . was not compared"),
        ("pair_spectra", {"role": "key"}, "known: .*query"),
        ("pair_spectra", {"head": 2}, "no slices of heads: run 'rmtscan compare' with --heads"),
        ("overlap", {"base": BASE, "tuned": "other"}, "no model 'other' is scanned"),
        ("overlap", {"base": TUNED}, "was not compared with any model: give the other model as `tuned`"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    pair_store: Store, name: str, parameters: dict[str, object], told: str
) -> None:
    with pytest.raises(ScannerError, match=told) as caught:
        FIGURES[name].draw(pair_store, **parameters)
    assert "\n" not in str(caught.value)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"), create=True)


@pytest.mark.parametrize("name", [name for name in FIGURES if FIGURES[name].needs_store])
def test_in_an_empty_store_nothing_is_scanned(store: Store, name: str) -> None:
    with pytest.raises(ScannerError, match=r"holds no |scanned models: none"):
        FIGURES[name].draw(store)


def test_an_unfinished_scan_is_called_unfinished(store: Store) -> None:
    matrix = Matrix()
    writer = store.writer("begun", method={}, model="org/model")
    writer.stage(matrix.key, *matrix.tables("begun", "org/model", "r1"))
    with pytest.raises(ScannerError, match=r"'org/model' is not finished \(1 matrices so far\)"):
        FIGURES["spectrum"].draw(store, model="org/model")
    with pytest.raises(ScannerError, match="not finished"):
        FIGURES["spectrum"].draw(store)
    add_scan(store, "whole", [Matrix()], model="org/other")
    with pytest.raises(ScannerError, match=r"not finished .* finished models: org/other"):
        FIGURES["depth"].draw(store, model="org/model")


def test_a_scan_in_which_everything_failed_has_nothing_to_draw(store: Store) -> None:
    writer = store.writer("failed", method={}, model="org/model")
    writer.stage_failure("t", failure("failed", "t"))
    writer.commit({"revision": "r1"})
    with pytest.raises(ScannerError, match="holds no matrix"):
        FIGURES["depth"].draw(store)


def test_a_matrix_without_a_bulk_is_said_to_have_none(store: Store) -> None:
    add_scan(store, "flat", [Matrix(singular_values=[1.0, 0.0, 0.0, 0.0], more={"sigma": 0.0, "mp_upper": 0.0})])
    with pytest.raises(ScannerError, match="half of the singular values are zero"):
        FIGURES["spectrum"].draw(store)
    with pytest.raises(ScannerError, match="sigma is zero"):
        FIGURES["spectra_by_role"].draw(store)


def test_a_checkpoint_that_is_gone_or_another_one_is_not_drawn(store: Store, tmp_path: Path) -> None:
    writer = store.writer("one", method={}, model="m")
    matrix = Matrix()
    writer.stage(matrix.key, *matrix.tables("one", "m", "r1"))
    writer.commit({"revision": "r1", "source": str(tmp_path / "gone"), "identity": "x"})
    with pytest.raises(ScannerError, match=r"the figure needs the weights of 'm' from .*gone"):
        FIGURES["vector"].draw(store)


def test_a_model_of_several_stacks_shows_the_first_and_names_the_others(store: Store) -> None:
    matrices = [
        Matrix(tensor=stack, stack=stack, singular_values=[3.0, 2.0, 1.5, 1.0]) for stack in ("encoder", "decoder")
    ]
    add_scan(store, "both", matrices)
    for name in ("depth", "outliers", "pvalues_by_role"):
        subtitle = FIGURES[name].draw(store).to_dict()["title"]["subtitle"]
        assert "encoder (other stacks: decoder)" in subtitle[0]
        assert (
            "decoder (other stacks: encoder)"
            in FIGURES[name].draw(store, stack="decoder").to_dict()["title"]["subtitle"][0]
        )


def test_names_from_strangers_do_not_steer_the_message(store: Store) -> None:
    add_scan(store, "odd", [Matrix()], model="a\x1b[31m\nb")
    with pytest.raises(ScannerError) as caught:
        FIGURES["depth"].draw(store, model="other")
    assert str(caught.value).isprintable()


def test_long_lines_keep_both_ends_and_never_the_same_rank_twice() -> None:
    assert thinned(10) == [*range(10)]
    for count in (241, 4096, 100_000):
        ranks = thinned(count)
        assert len(ranks) <= 240
        assert ranks == sorted({*ranks})
        assert ranks[:40] == [*range(40)]
        assert ranks[-40:] == [*range(count - 40, count)]


def test_ticks_of_a_logarithmic_axis_stay_within_it() -> None:
    assert log_ticks(0.01, 4.0) == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    assert log_ticks(0.9, 6.0) == [1.0, 2.0, 5.0]


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_color_of_a_role_is_its_own_and_can_be_seen_on_white() -> None:
    assert len({*ROLE_COLORS.values()}) == len(ROLE_COLORS)
    for role, color in ROLE_COLORS.items():
        assert 1.05 / (_luminance(color) + 0.05) > 2.0, role
