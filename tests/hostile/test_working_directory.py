"""Files in the working directory, which is also the folder of the checkpoint, are not imported by the driver or the workers."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.experiments.tiny import save, text_file
from tests.processes import python

#: Modules of ours, of dependencies and of the standard library, and the hooks that Python itself looks for.
NAMES = (
    "scanner queries jobs tests numpy torch scipy pyarrow duckdb ray psutil setproctitle colorama yaml json logging tokenize "
    "safetensors gguf transformers tokenizers threadpoolctl fsspec huggingface_hub s3fs boto3 aiohttp grpc google msgpack "
    "filelock jsonschema packaging typing_extensions attr click requests pydantic orjson uvloop cloudpickle sitecustomize "
    "usercustomize conftest pandas cupy triton prometheus_client opencensus opentelemetry"
).split()

#: Runs commands one after the other on one Ray, which the package starts as a command does.
SESSION = """
import json, os, sys
from scanner.cli.main import main
from scanner.engine import PoolOptions
from scanner.engine.session import ray_session
with ray_session(PoolOptions(workers=1)):
    for arguments in json.loads(sys.argv[1]):
        try:
            main(arguments)
        except SystemExit as ended:
            assert ended.code in (0, None), (arguments, ended.code)
print("all done")
"""


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path) -> None:
    folder, text = save(tmp_path / "model", "llama"), text_file(tmp_path)
    tuned, marker = save(tmp_path / "tuned", "llama"), tmp_path / "imported"
    weights = load_file(tuned / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, tuned / "model.safetensors", {"format": "pt"})
    for index, name in enumerate(NAMES):
        code = (
            f"open({str(marker)!r}, 'a').write({name!r} + chr(10))\nraise ImportError('from the working directory')\n"
        )
        place = folder / name / "__init__.py" if index % 2 else folder / f"{name}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(code)
    more = ["--store", str(tmp_path / "store"), "--workers", "1", "--roles", "query"]
    commands = [
        ["scan", ".", *more],
        ["compare", ".", str(tuned), *more],
        ["ablate", ".", "--text", str(text), "--tokens", "64", "--window", "16", "--sets", "0:2", *more],
    ]
    # -P: as for the installed command, whose folder is that of the script, Python itself adds no working directory.
    done = python("-P", "-c", SESSION, json.dumps(commands), folder=folder)
    assert not marker.exists(), marker.read_text()
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("all done")
