from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from scanner.checkpoint import open_checkpoint
from scanner.checkpoint.names import is_plain_name
from scanner.checkpoint.references import find_place
from scanner.checkpoint.sources.hub_lookup import parse_hub_reference
from scanner.errors import CheckpointError, MissingError

from .sources.hub_server import Hub
from .writing import checkpoint

WEIGHTS = save({"w.weight": torch.arange(6.0).reshape(2, 3)})
FILES = {
    "model.safetensors": WEIGHTS,
    "config.json": b"{}",
    "sub/model.safetensors": WEIGHTS,
    "q4.safetensors": WEIGHTS,
}


@pytest.fixture
def commit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub.commit("org/name", FILES)


def refused(reference: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_place(reference)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_folder_that_exists_goes_before_a_model_of_that_name(hub: Hub, commit: str) -> None:
    checkpoint(Path("org/name"), {"w.weight": torch.ones(2, 2)})
    assert find_place("org/name").source == str(Path("org/name").resolve())
    assert find_place(Path("org/name").resolve().as_uri()).source == str(Path("org/name").resolve())
    assert hub.requests == []
    assert find_place("hf://org/name").source == f"hf://org/name@{commit}"


@pytest.mark.parametrize(
    ("reference", "path", "model"),
    [
        ("org/name", "", "org/name"),
        ("org/name@main", "", "org/name"),
        ("hf://org/name", "", "org/name"),
        ("hf://org/name/", "", "org/name"),
        ("hf://models/org/name", "", "org/name"),
        ("hf://org/name/sub", "/sub/", "org/name/sub"),
        ("hf://org/name@main/sub/model.safetensors", "/sub/model.safetensors", "org/name/sub/model"),
        ("org/name/q4.safetensors", "/q4.safetensors", "org/name/q4"),
        ("org/name@main/q4.safetensors", "/q4.safetensors", "org/name/q4"),
        ("https://huggingface.co/org/name", "", "org/name"),
        ("https://huggingface.co/org/name/tree/main/sub", "/sub/", "org/name/sub"),
        ("https://huggingface.co/org/name/blob/main/q4.safetensors", "/q4.safetensors", "org/name/q4"),
    ],
)
def test_spellings_of_a_model_on_the_hub(hub: Hub, commit: str, reference: str, path: str, model: str) -> None:
    place = find_place(reference)
    assert (place.source, place.model) == (f"hf://org/name@{commit}{path}", model)
    assert len(hub.requests) == 1
    opened = open_checkpoint(reference)
    assert (opened.source, opened.model, opened.revision) == (place.source, model, commit)
    assert [entry.name for entry in opened.tensors] == ["w.weight"]


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("org/name/", ""),
        (" org/name\n", ""),
        ("org/name.git", ""),
        ("git@hf.co:org/name.git", ""),
        ("models--org--name", ""),
        ("hf.co/org/name", ""),
        ("huggingface.co/org/name/", ""),
        ("https://hf.co/org/name", ""),
        ("https://www.huggingface.co/org/name", ""),
        ("https://huggingface.co/org/name.git", ""),
        ("https://huggingface.co/org/name?library=transformers", ""),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", ""),
        ("org/name@refs%2Fpr%2F1", ""),
        ("org/name/tree/main", ""),
        ("org/name/tree/main/sub", "/sub/"),
        ("org/name:q4.safetensors", "/q4.safetensors"),
        ("org/name@main:q4.safetensors", "/q4.safetensors"),
        ("org/name/blob/main/q4.safetensors", "/q4.safetensors"),
        ("https://huggingface.co/org/name/resolve/main/q4.safetensors?download=true", "/q4.safetensors"),
        ("https://hf.co/org/name/raw/main/q4.safetensors#L1", "/q4.safetensors"),
        ("hf.co/org/name/resolve/main/sub/model.safetensors?download=true", "/sub/model.safetensors"),
        ("git clone https://huggingface.co/org/name", ""),
        ("<https://huggingface.co/org/name>", ""),
        ('"org/name"', ""),
        ("hf:org/name", ""),
        ("hf.co/org/name:q4.safetensors", "/q4.safetensors"),
        ("https://huggingface.co/org/name/commits/main", ""),
    ],
)
def test_spellings_of_browsers_and_colleagues(hub: Hub, commit: str, reference: str, path: str) -> None:
    hub.repositories["org/name"].branches["refs/pr/1"] = commit
    assert find_place(reference).source == f"hf://org/name@{commit}{path}"
    assert len(hub.requests) == 1
    assert [entry.name for entry in open_checkpoint(reference).tensors] == ["w.weight"]


def test_a_commit_is_named_by_its_page_and_by_its_folder_in_a_cache(hub: Hub, commit: str) -> None:
    for reference in (f"https://huggingface.co/org/name/commit/{commit}", f"models--org--name/snapshots/{commit}"):
        assert find_place(reference).source == f"hf://org/name@{commit}"


def test_a_host_whose_name_ends_like_the_hubs_is_another_one() -> None:
    reference = "https://api-inference.huggingface.co/models/org/name"
    assert find_place(reference).source == f"{reference}/"


def test_a_file_url_may_have_one_slash(tmp_path: Path) -> None:
    checkpoint(tmp_path, {"w.weight": torch.ones(2, 2)})
    assert find_place(f"file:{tmp_path}").source == str(tmp_path.resolve())


@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        ("hf.co/org/name:Q4_K_M", "write org/name/FILE"),
        ("https://hf-mirror.com/org/name", "set HF_ENDPOINT=https://hf-mirror.com and write org/name"),
        ("https://hf-mirror.com/org/name/tree/main", "set HF_ENDPOINT=https://hf-mirror.com and write org/name"),
        ("org\\name", "write org/name"),
        ("org/name:Q4_K_M", "write org/name/FILE"),
        ("datasets/org/name", "is a dataset, not a model"),
        ("org/name/sub", "write hf://org/name/sub"),
    ],
)
def test_other_spellings_say_what_to_write(hub: Hub, commit: str, reference: str, advice: str) -> None:
    assert advice in refused(reference)
    assert hub.requests == []


def test_a_folder_of_the_cache_is_the_snapshot_of_its_main_branch(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    for digit in "ab":
        checkpoint(folder / "snapshots" / (digit * 40), {"w.weight": torch.ones(2, 2)})
    assert "name one of" in refused(str(folder))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)
    for reference in (folder, f"{folder}/", folder / "snapshots", folder.as_uri()):
        place = find_place(str(reference))
        assert (place.source, place.model) == (str(folder / "snapshots" / ("b" * 40)), "org/name")
    (folder / "refs" / "main").write_text("c" * 40)
    assert "2 snapshots" in refused(str(folder / "snapshots"))


def test_offline_the_first_digits_of_a_cached_commit_are_enough(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    checkpoint(tmp_path / "hub-cache" / "models--org--name" / "snapshots" / ("ab" * 20), {"w.weight": torch.ones(2, 2)})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_place("org/name@abababa").source == f"hf://org/name@{'ab' * 20}"
    assert "not in the local cache" in refused("org/name@abcabca")


def test_a_branch_a_tag_and_a_commit_lead_to_one_commit(hub: Hub, commit: str) -> None:
    hub.repositories["org/name"].branches["refs/pr/1"] = commit
    hub.repositories["org/name"].branches["v1.0"] = commit
    other = hub.commit("org/name", FILES | {"config.json": b'{"a": 1}'}, branch="dev")
    for revision in ("main", "v1.0", "refs/pr/1", commit[:8], commit):
        assert find_place(f"org/name@{revision}").source == f"hf://org/name@{commit}"
    assert find_place("org/name@dev").source == f"hf://org/name@{other}"
    assert open_checkpoint("org/name@v1.0").identity == open_checkpoint(f"org/name@{commit}").identity
    assert open_checkpoint("org/name@dev").identity != open_checkpoint("org/name").identity


def test_what_is_read_stays_the_commit_when_the_branch_moves_on(hub: Hub, commit: str) -> None:
    source = open_checkpoint("org/name").source
    hub.commit("org/name", {"model.safetensors": save({"other": torch.ones(1, 1)})})
    assert open_checkpoint(source).revision == commit
    assert open_checkpoint("org/name").revision != commit


def test_the_file_or_folder_that_was_named_counts_for_the_identity(hub: Hub, commit: str) -> None:
    references = ("org/name", "hf://org/name/sub", "org/name/q4.safetensors")
    assert len({open_checkpoint(reference).identity for reference in references}) == 3


def test_an_old_model_without_an_organisation_has_its_present_name(hub: Hub, commit: str) -> None:
    hub.renamed["gpt2"] = "org/name"
    assert find_place("hf://gpt2").source == f"hf://org/name@{commit}"
    assert find_place("hf://gpt2@main/q4.safetensors").source == f"hf://org/name@{commit}/q4.safetensors"
    assert find_place("gpt2").source == f"hf://org/name@{commit}"
    assert find_place("gpt2@main").source == f"hf://org/name@{commit}"
    for page in ("gpt2", "gpt2/", "gpt2/tree/main", "gpt2/resolve/main/q4.safetensors?download=true"):
        assert find_place(f"https://huggingface.co/{page}").source.startswith(f"hf://org/name@{commit}")


@pytest.mark.parametrize(
    ("name", "present"), [("gpt2", "openai-community/gpt2"), ("bert-base-uncased", "google-bert/bert-base-uncased")]
)
def test_a_name_without_an_owner_is_found_where_the_hub_has_it_now(hub: Hub, name: str, present: str) -> None:
    commit = hub.commit(present, FILES)
    assert find_place(name).source == f"hf://{present}@{commit}"
    assert "no model" in refused("t5-small")


@pytest.mark.parametrize(
    "reference",
    [
        "hf://",
        "hf:///",
        "hf://datasets/org/name",
        "hf://spaces/org/name",
        "hf://org/na me",
        "hf://org/name@",
        "hf://org/name@main/../x.safetensors",
        "hf://org/name@..",
        "hf://org/name@a%2F..%2F..%2Fb",
        "hf://org/name//x",
        "hf://org/name/a\\b.safetensors",
        "org/name@main/../../x.safetensors",
        "org/name/../../etc/x.safetensors",
        "https://huggingface.co/org",
        "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/org/name/discussions/1",
        "hf://org/\x1b[31mname",
    ],
)
def test_what_names_no_model_is_refused_without_a_request(hub: Hub, commit: str, reference: str) -> None:
    refused(reference)
    assert hub.requests == []


@given(st.text("aZ0-_.@/%2F\\\0\x1b ué", max_size=40))
def test_any_text_is_a_model_on_the_hub_or_refused(text: str) -> None:
    try:
        found = parse_hub_reference(f"hf://{text}")
    except CheckpointError:
        return
    assert found.repository.count("/") <= 1
    parts = [*found.repository.split("/"), *filter(None, found.path.split("/")), *(found.revision or "x").split("/")]
    assert all(is_plain_name(part) for part in parts)


def test_a_name_that_is_neither_here_nor_there_says_both(hub: Hub, commit: str) -> None:
    Path("zoo/my-bert").mkdir(parents=True)
    with pytest.raises(MissingError) as caught:
        find_place("zoo/my-brt")
    assert "zoo/my-brt does not exist on this machine (did you mean zoo/my-bert?)" in str(caught.value)
    assert f"no model zoo/my-brt on {hub.endpoint}" in str(caught.value)


@pytest.mark.parametrize("reference", ["./org/name", "/org/name", "org/name/sub", "name", "../name", "a b/c"])
def test_what_looks_like_a_path_is_not_looked_up(hub: Hub, commit: str, reference: str) -> None:
    assert "does not exist" in refused(reference)
    assert hub.requests == []


@pytest.mark.parametrize("reference", ["s3://key:secret@bucket/model", "https://store/model.gguf?signature=secret"])
def test_a_url_with_a_secret_in_it_is_refused(reference: str) -> None:
    message = refused(reference)
    assert "environment" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("reference", "source", "model"),
    [
        ("s3://bucket/llama", "s3://bucket/llama/", "llama"),
        ("gs://bucket/llama/model/", "gs://bucket/llama/model/", "llama/model"),
        ("memory://bert/model.safetensors", "memory://bert/model.safetensors", "bert/model"),
        ("s3://bucket/llama-q4.gguf", "s3://bucket/llama-q4.gguf", "llama-q4"),
    ],
)
def test_other_stores_are_named_by_their_paths(reference: str, source: str, model: str) -> None:
    place = find_place(reference)
    assert (place.source, place.model) == (source, model)


@pytest.mark.parametrize(
    "reference",
    [
        "simplecache::s3://bucket/model",
        "zip://folder::s3://bucket/model.zip",
        "zip://*.gguf::filecache::memory://x.zip",
        "reference::memory://index.json",
    ],
)
def test_a_chain_of_stores_is_refused_and_says_what_to_do(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "copy or unpack the checkpoint to a local folder" in refused(reference)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd::name:").mkdir()
    assert find_place("odd::name:").source == str(tmp_path / "odd::name:")
    assert find_place("http://[fe80::abcd:1]/model").source == "http://[fe80::abcd:1]/model/"
