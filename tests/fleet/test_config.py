"""The configuration of a nightly scan: what is accepted, and one clear line for everything else."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from scanner.errors import ConfigError, ScannerError
from scanner.fleet.config import (
    Budget,
    Night,
    NightlyConfig,
    Watch,
    amount,
    parse_config,
    read_config,
    template,
)


def parsed(text: str) -> NightlyConfig:
    return parse_config(tomllib.loads(text))


def test_the_written_file_is_accepted_and_its_comments_are_the_defaults() -> None:
    text = template()
    config = parsed(text)
    assert config.watch == Watch(task="text-generation", library="transformers", max_parameters=10**10, gated="no")
    assert (config.budget, config.night) == (Budget(), Night())
    # Every key that is a comment can be activated: it has its default, or an empty value of its type.
    lines = [
        line.removeprefix("# ") if " = " in line and not line.endswith(".") else line for line in text.splitlines()
    ]
    sections = tomllib.loads("\n".join(line for line in lines if line.startswith("[") or " = " in line))
    assert {one.name for one in fields(NightlyConfig)} == {*sections}
    assert {one.name for one in fields(Watch)} == {*sections["watch"]}
    options = {
        "sigma",
        "null",
        "scale",
        "metrics",
        "values_only",
        "roles",
        "layers",
        "embeddings",
        "heads",
        "head_mass",
        "products",
    }
    assert options == {*sections["method"]}


def test_a_comparison_needs_vectors() -> None:
    method = {"watch": {"authors": ["org"]}, "method": {"values_only": True}}
    with pytest.raises(ConfigError, match=r"compare. needs singular vectors, which .method. values_only leaves out"):
        parse_config(method)
    assert parse_config(method | {"compute": {"compare": False}}).method.values_only


def test_every_section_becomes_its_dataclass() -> None:
    config = parsed(
        """
        [watch]
        authors = ["org"]
        min_parameters = "1.5M"
        [budget]
        bytes = "2 TB"
        hours = 3
        [method]
        roles = ["query"]
        sigma = "bulk"
        [pool]
        workers = 2
        """
    )
    assert (config.watch.min_parameters, config.budget.bytes, config.budget.hours) == (1_500_000, 2 * 10**12, 3.0)
    assert (config.method.selection.only, config.method.sigma, config.pool.workers) == (("query",), "bulk", 2)


@pytest.mark.parametrize(
    ("text", "number"), [("70B", 7 * 10**10), ("500 GB", 5 * 10**11), ("12", 12), ("1.5k", 1500), ("3 tb", 3 * 10**12)]
)
def test_amounts_have_units(text: str, number: int) -> None:
    assert amount(text) == number


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "[watch] authors is empty"),
        ("[watch]\nauthor = ['a']", "[watch] author is not a key; did you mean authors? known: authors, search, task"),
        ("[wacth]\na = 1", "[wacth] is not a section; did you mean watch? known: watch, budget"),
        ("watch = 1", "watch must be a section, [watch]"),
        ("[watch]\nauthors = 'a'", '[watch] authors must be a list of texts, got "a"'),
        ("[watch]\nauthors = [1]", "[watch] authors must be each item text, got [1]"),
        ("[watch]\nauthors = ['a b']", "[watch] authors has 'a b': write the name of a user or organization"),
        ("[watch]\nrepositories = ['a']", "[watch] repositories has 'a': write org/name"),
        ("[watch]\ntask = true", "[watch] task must be text, got true"),
        ("[watch]\ntask = 'a'\ngated = 'maybe'", '[watch] gated must be one of any, no, only, got "maybe"'),
        ("[watch]\ntask = 'a'\nmax_parameters = 'many'", "[watch] max_parameters 'many' is not an amount"),
        ("[watch]\ntask = 'a'\nmax_parameters = 1.5", "[watch] max_parameters must be a whole number such as"),
        ("[watch]\ntask = 'a'\nmin_parameters = 2\nmax_parameters = 1", "[watch] max_parameters is 1, smaller than"),
        ("[watch]\ntask = 'a'\n[budget]\nhours = -1", "[budget] hours must be a number, at least 0, got -1"),
        ("[watch]\ntask = 'a'\n[budget]\nhours = nan", "[budget] hours must be a number, at least 0, got NaN"),
        ("[watch]\ntask = 'a'\n[budget]\nupgrade_share = 2", "at least 0 and at most 1, got 2"),
        ("[watch]\ntask = 'a'\n[budget]\nbytes = '500 B'", "[budget] bytes '500 B' may mean bytes or billions of them"),
        ("[watch]\ntask = 'a'\n[budget]\nmodels = true", "[budget] models must be a whole number, got true"),
        ("[watch]\ntask = 'a'\n[method]\nroles = ['quary']", "[method] roles must be each item one of query, key"),
        ("[watch]\ntask = 'a'\n[method]\nnull = 'x'", "[method] null"),
        ("[watch]\ntask = 'a'\n[pool]\nworkers = 0", "[pool] workers must be a number, at least 1, got 0"),
    ],
)
def test_what_is_not_accepted_is_one_line_with_the_key(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    message = f"{caught.value.argument} {caught.value.problem}"
    assert told in message
    assert "\n" not in message


def test_a_file_that_is_missing_or_no_toml_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "watch.toml"
    with pytest.raises(ScannerError, match=r"there is no config .*--init"):
        read_config(file)
    for content in (b"a = = 1", b"\xff", b"["):
        file.write_bytes(content)
        with pytest.raises(ScannerError, match="is not TOML") as caught:
            read_config(file)
        assert "\n" not in str(caught.value)


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "watch.toml"
    file.write_text("[watch]\ntask = 'a'\n[output]\nstore = 'results'\n")
    output = read_config(file).output
    assert (output.store, output.digests) == (str(tmp_path / "results"), str(tmp_path / "results" / "digests"))
    file.write_text("[watch]\ntask = 'a'\n[output]\nstore = 's3://bucket/x'\ndigests = '/srv/digests'\n")
    output = read_config(file).output
    assert (output.store, output.digests) == ("s3://bucket/x", "/srv/digests")


def test_what_is_watched_has_an_identity_that_budgets_do_not_change() -> None:
    one, other = parsed("[watch]\ntask = 'a'\n[budget]\nmodels = 1"), parsed("[watch]\ntask = 'a'\n")
    assert one.watch.watch_id == other.watch.watch_id
    assert one.watch.watch_id != Watch(task="b").watch_id
    assert Watch(task="a", repositories=("org/x",)).watch_id == one.watch.watch_id
    assert Watch(task="a", exclude=("*/*-GGUF",)).watch_id == one.watch.watch_id
    # Those of stores that were written before.
    assert one.watch.watch_id == "588b8bf5e49e095c"
