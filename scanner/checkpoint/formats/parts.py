"""Files that hold one model together: numbered parts, variants of one file, and what each process of a parallel run wrote.

Only names are looked at, so that a part that is missing is noticed without the files that are there.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

MAX_PARTS = 99_999

# model-00001-of-00002.safetensors, pytorch_model_00001-of-00072.bin, model-1-of-62.safetensors, ...-of-00002.fp16.safetensors,
# model_1_of_2.pt, model.part1of2.bin
_NUMBERED = re.compile(
    r"(?P<head>(?:.*(?:[-_.]|part|shard))?)(?P<number>\d{1,9})(?P<of>-of-|_of_|of)(?P<count>\d{1,9})(?P<tail>[-_.].*)",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
# Models of their own, each trained on a part of the data or for a part of the time.
_NOT_NUMBERED = re.compile(r"(?:.*[-_.])?(?:fold|run|seed|epoch|step)[-_.]?", re.DOTALL | re.IGNORECASE)

# What diffusers and others put before the suffix of the same weights in another precision.
_VARIANT = re.compile(r"(?P<stem>.+)\.(?:fp\d+|bf16|f16|f32|int\d|ema|non_ema)(?P<suffix>\.\w+)", re.ASCII | re.DOTALL)

# Slices of every matrix, one file or folder per process: Llama (consolidated.00.pth), Megatron and DeepSpeed
# (mp_rank_00), vLLM (model-rank-0-part-0), TensorRT-LLM (rank0), DeepSeek (model0-mp8), FSDP of accelerate
# (pytorch_model_rank0) and verl (model_world_size_8_rank_0), metaseq (reshard-model_part-0).
_RANKED = re.compile(
    r"(?P<head>consolidated\.)(?P<rank>\d\d)(?P<tail>\.\w+)"
    r"|(?P<head2>(?:.*[-_.])?[mtpe]p_rank_)(?P<rank2>\d+)(?P<tail2>(?:_.*|\..*)?)"
    r"|(?P<head3>(?:(?:pytorch_)?model(?:_fsdp|_state)?[-_.])?rank[-_]?)(?P<rank3>\d+)(?P<tail3>(?:-part-\d+)?(?:\.\w+)?)"
    r"|(?P<head4>model)(?P<rank4>\d+)(?P<tail4>-mp\d+\.\w+)"
    r"|(?P<head5>.*world_size_\d+_rank_)(?P<rank5>\d+)(?P<tail5>\..*)"
    r"|(?P<head6>(?:.*[-_.])?model_part-)(?P<rank6>\d+)(?P<tail6>(?:-shard\d+)?\.\w+)",
    re.ASCII | re.DOTALL,
)
# Other words for a process are also words for a setting (lora_rank_16.pt): they count if all numbers from 0 are there.
_PERHAPS_RANKED = re.compile(
    r"(?P<head>(?:.*[-_.])?(?:rank|tp|mp)[-_.]?)(?P<rank>\d{1,4})(?P<tail>(?:[-_.].*)?)"
    r"|(?P<head2>(?:.*[-_.])?shard[-_.]?)(?P<rank2>\d{1,4})(?P<tail2>\.(?:pt|pth|bin|ckpt))",
    re.ASCII | re.DOTALL,
)
# Stages of a pipeline hold some of the layers. Megatron numbers them after the rank: mp_rank_00_001.
_STAGES = re.compile(r"(?P<digits>(?:(?:_[pe]p_rank)?_\d{3})+)(?=[._]|\Z)", re.ASCII)
# DeepSpeed writes a file for each layer of a pipeline, and GPT-NeoX one for each layer and rank.
_LAYER_FILE = re.compile(r"layer_\d+(?:-model_\d+)?-model_states\.pt", re.ASCII)
_NOT_RANKED = re.compile(r"optim_states")
_COUNT_OF_RANKS = re.compile(r"(?:-mp|world_size_)(\d{1,6})(?:\.\w+|_rank_)", re.ASCII)


@dataclass(frozen=True)
class _Rank:
    """The number of a process in a name, and the name without it; `sure` if the name alone says that it is one."""

    pattern: tuple[str, str]
    number: int
    count: int
    sure: bool = True


def numbered_parts(name: str, exists: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the names of all files that `name` (`...-00001-of-00003...`) is one of, in order; otherwise `name` alone.

    Parts count from 1, or from 0 if there is a part 0.

    Args:
        name: name of a file.
        exists: tells whether the folder has a file of a name.

    Raises:
        CheckpointError: the name promises more parts than any model has.
    """
    found = _NUMBERED.fullmatch(name)
    if found is None or int(found["count"]) == 0 or int(found["number"]) > int(found["count"]):
        return (name,)
    if _NOT_NUMBERED.fullmatch(found["head"]):
        return (name,)
    count, number = int(found["count"]), found["number"]
    if count > MAX_PARTS:
        raise CheckpointError(f"{printable(name)} promises {count} parts, more than any model has: rename it")

    def part(at: int, width: int) -> str:
        return f"{found['head']}{at:0{width}d}{found['of']}{found['count']}{found['tail']}"

    # Most are padded with zeros; 10 of 62 may be either.
    widths = (len(number),) if number.startswith("0") else (len(number), 1)
    first, width = next(
        ((at, width) for width in widths for at in (0, 1) if exists(part(at, width))),
        (0 if int(number) == 0 else 1, len(number)),
    )
    last = count if first == 1 or exists(part(count, width)) else count - 1
    return tuple(part(at, width) for at in range(first, last + 1))


def without_variants(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names without those of the same weights in another precision (`x.fp16.bin` beside `x.bin`)."""
    return tuple(name for name in names if _plain(name) == name or _plain(name) not in names)


def _plain(name: str) -> str:
    found = _VARIANT.fullmatch(name)
    return f"{found['stem']}{found['suffix']}" if found else name


def first_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Return one name of each model: of numbered parts the first that is there."""
    known = set(names)
    seen: set[str] = set()
    first = []
    for name in names:
        if name not in seen:
            first.append(name)
            seen.update(numbered_parts(name, known.__contains__))
    return tuple(first)


def check_ranks(used: Iterable[str], names: Collection[str], *, indexed: bool = False) -> None:
    """Refuse slices: files or folders of which each holds a part of every matrix, as processes of a parallel run write them.

    Args:
        used: the names that would be read.
        names: all names in their folder.
        indexed: whether an index says that together they are a model.

    Raises:
        CheckpointError: one of `used` is a slice of a model.
    """
    known = {name: rank for name in names if (rank := _rank(name)) is not None}
    for name in used:
        own = _rank(name)
        if own is None or (indexed and not own.sure):
            continue
        together = {name: own} | {other: rank for other, rank in known.items() if rank.pattern == own.pattern}
        numbers = {rank.number for rank in together.values()}
        counted = len(numbers) > 1 and numbers == set(range(len(numbers)))
        if counted or (own.sure and (len(together) > 1 or own.number > 0 or own.count > 1)):
            others = [other for other in sorted(together) if other != name][:3]
            beside = f", like {', '.join(map(printable, others))} beside it," if others else ""
            raise CheckpointError(
                f"{printable(name)}{beside} is one part of a model that was split between processes: it holds a slice of "
                "every matrix, or some of the layers, and parts are not joined. Convert the model to .safetensors with the "
                "tools of the program that wrote it (for Llama, convert_llama_weights_to_hf.py of transformers), or scan a "
                "converted copy"
            )


def is_rank(name: str) -> bool:
    """Tell whether a file or folder has a name that processes of a parallel run give to their slices."""
    return _rank(name) is not None


def is_slice(name: str, names: Collection[str]) -> bool:
    """Tell whether a file or folder is a slice of a model; see `check_ranks`."""
    try:
        check_ranks([name], names)
    except CheckpointError:
        return True
    return False


def _rank(name: str) -> _Rank | None:
    if _NOT_RANKED.search(name):
        return None
    if _LAYER_FILE.fullmatch(name):
        return _Rank(pattern=("layer", ""), number=0, count=2)
    found = _RANKED.fullmatch(name)
    sure = found is not None
    found = found or _PERHAPS_RANKED.fullmatch(name)
    if found is None:
        return None
    groups = {key: value for key, value in found.groupdict().items() if value is not None}
    head, rank, tail = (
        next(groups[key] for key in groups if key.startswith(part)) for part in ("head", "rank", "tail")
    )
    count = _COUNT_OF_RANKS.search(name) if sure else None
    number = int(rank[:9])
    if sure and "head2" in groups and (stages := _STAGES.match(tail)):
        number = max(number, *(int(stage[:9]) for stage in re.findall(r"\d+", stages["digits"])))
        tail = tail[stages.end() :]
    # What FSDP wrote is a part of a part, whose number is not the last.
    parts = 2 if "head6" in groups and "-shard" in tail else int(count[1]) if count else 1
    return _Rank(pattern=(head, tail), number=number, count=parts, sure=sure)
