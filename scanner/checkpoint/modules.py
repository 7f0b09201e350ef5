"""The tensors of a torch module under the names under which it would be saved, with the weights that it computes with.

What is saved decides: the state dict of the module, without the wrappers of training (DataParallel, torch.compile, PEFT). Where a
weight is computed from other tensors whenever the module runs (`torch.nn.utils.parametrize`, pruning, spectral norm), the
effective weight takes the place of these tensors. Nothing in the module changes, and nothing is copied.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.arrays import Array, computed
from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_MOST_WRAPPERS = 8
_COMPILED = "_orig_mod."


@dataclass(kw_only=True)
class Contents:
    """What a module holds.

    Attributes:
        values: arrays, tensors or other objects by name, in the order in which they are saved.
        reasons: why some of `values` are not read, by name.
        transposed: by the name of the weight of a linear layer, whether it is stored as (in, out), as by Conv1D of transformers.
        later: names that are copies where several names have one tensor, such as output heads.
        config: what describes the architecture, as config.json does.
        name: name of the class.
    """

    values: dict[str, object] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    transposed: dict[str, bool] = field(default_factory=dict)
    later: frozenset[str] = frozenset()
    config: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


def unwrapped(module: "torch.nn.Module") -> "torch.nn.Module":
    """Return the module inside of wrappers: torch.compile, DataParallel, DistributedDataParallel, and adapters of PEFT."""
    import torch

    for _ in range(_MOST_WRAPPERS):
        inner: Any = module
        if isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):
            inner = module._orig_mod
        elif isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            inner = module.module
        elif hasattr(module, "peft_config") and callable(base := getattr(module, "get_base_model", None)):
            inner = base()
        if inner is module or not isinstance(inner, torch.nn.Module):
            break
        module = inner
    return module


def check_whole(module: "torch.nn.Module") -> None:
    """Check that this process has whole weights, not its shards of them.

    Raises:
        CheckpointError: the model is sharded; the message says how to gather it.
    """
    if any(type(inner).__name__ == "FullyShardedDataParallel" for inner in module.modules()):
        raise CheckpointError(  # its state_dict() would wait for the other processes
            "the model is sharded by FSDP: pass a full state dict, which every process has to gather "
            "(torch.distributed.checkpoint.state_dict)"
        )
    weights = [*module.parameters()]
    if any(type(weight).__name__ == "DTensor" or type(weight.data).__name__ == "DTensor" for weight in weights):
        raise CheckpointError(
            "the weights are DTensors, of which this process has one shard: pass a full state dict, which every process has to "
            "gather (torch.distributed.checkpoint.state_dict)"
        )
    # DeepSpeed leaves an empty tensor in the place of a weight whose shards the processes hold.
    if any(hasattr(weight, "ds_id") and not weight.numel() for weight in weights):
        raise CheckpointError(
            "the model is sharded by ZeRO-3: pass a full state dict, which every process has to gather "
            "(deepspeed.zero.GatheredParameters)"
        )


def contents(module: "torch.nn.Module") -> Contents:
    """Return what a module holds.

    Raises:
        CheckpointError: it cannot be listed.
    """
    module = unwrapped(module)
    check_whole(module)
    try:
        state = module.state_dict(keep_vars=True)
    except Exception as error:  # hooks of other packages run here
        raise CheckpointError(
            f"the state_dict() of the {printable(type(module).__name__)} fails ({_line(error)}): pass a mapping of its weights"
        ) from error
    tied = getattr(module, "all_tied_weights_keys", None)
    found = Contents(
        values=dict(state),
        config=config_of(module),
        name=type(module).__name__,
        later=frozenset(map(str, tied)) if isinstance(tied, Mapping) else frozenset(),
    )
    ordered = sorted(found.values)
    effective: dict[str, tuple[str, Array]] = {}  # by the first tensor that a weight is computed from
    for name, inner in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        _note_orientation(found, prefix, inner)
        _note_merged(found, prefix, inner, ordered)
        for weight, one in _effective(inner):
            parts = [part for start in one.parts for part in _beginning(ordered, f"{prefix}{start}")]
            array = _computed(found, f"{prefix}{weight}", one, parts)
            if array is not None and parts:
                effective[parts[0]] = f"{prefix}{weight}", array
    if effective:
        values: dict[str, object] = {}
        for name, value in found.values.items():
            if name in effective:
                values[effective[name][0]] = effective[name][1]
            values[name] = value
        found.values = values
    return _without_compiled(found)


def _without_compiled(found: Contents) -> Contents:
    """Return the contents without the name that torch.compile inserts where single blocks are compiled."""
    if not any(_COMPILED in name for name in found.values):
        return found
    return replace(
        found,
        values={name.replace(_COMPILED, ""): value for name, value in found.values.items()},
        reasons={name.replace(_COMPILED, ""): reason for name, reason in found.reasons.items()},
        transposed={name.replace(_COMPILED, ""): turned for name, turned in found.transposed.items()},
    )


def _beginning(ordered: Sequence[str], start: str) -> Iterator[str]:
    """Yield the names in a sorted sequence that begin with `start`."""
    return takewhile(lambda name: name.startswith(start), ordered[bisect_left(ordered, start) :])


def config_of(module: "torch.nn.Module") -> dict[str, Any]:
    """Return the config of a transformers model as its config.json would have it; empty for other modules.

    A module around one such model, as those of Lightning often are, has the config of that model.
    """
    found = _own_config(module)
    inner = [] if found else [own for child in module.children() if (own := _own_config(unwrapped(child)))]
    return inner[0] if len(inner) == 1 else found


def _own_config(module: "torch.nn.Module") -> dict[str, Any]:
    found = as_config(getattr(module, "config", None))
    # An attribute of this name may be anything in modules that are not of transformers.
    return found | {"architectures": [type(module).__name__]} if found else {}


def as_config(config: object) -> dict[str, Any] | None:
    """Return a config as the JSON types of its config.json: a mapping, or a config of transformers; None if it is neither."""
    import json

    as_json = getattr(config, "to_json_string", None)
    try:
        if as_json is not None:
            found = json.loads(as_json())
        elif isinstance(config, Mapping):
            found = json.loads(json.dumps(dict(config), default=str))
        else:
            return None
    except Exception:  # of other packages, with any content
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True, kw_only=True)
class _Effective:
    """A weight that a module computes whenever it runs."""

    parts: tuple[str, ...]
    """Names or beginnings of names, in the module, of what it is computed from."""
    how: str
    compute: "Callable[[], torch.Tensor]"


def _effective(module: "torch.nn.Module") -> "Iterator[tuple[str, _Effective]]":
    """Yield the weights of a module that are computed. Weight norm is left to the rules for files, which compute it in float64."""
    from torch.nn.utils import parametrize, prune
    from torch.nn.utils.spectral_norm import SpectralNorm

    chains: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    for name, chain in chains.items():
        kinds = [type(one).__name__ for one in chain]
        if kinds != ["_WeightNorm"]:
            yield (
                name,
                _Effective(
                    parts=(f"parametrizations.{name}.",),
                    how=f"parametrized by {printable(', '.join(kinds))}",
                    compute=partial(_in_evaluation, chain),
                ),
            )
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            yield (
                hook._tensor_name,
                _Effective(
                    parts=(f"{hook._tensor_name}_orig", f"{hook._tensor_name}_mask"),
                    how="pruned",
                    compute=partial(hook.apply_mask, module),
                ),
            )
        elif isinstance(hook, SpectralNorm):
            yield (
                hook.name,
                _Effective(
                    parts=tuple(f"{hook.name}{part}" for part in ("_orig", "_u", "_v")),
                    how="under spectral norm",
                    compute=partial(hook.compute_weight, module, do_power_iteration=False),
                ),
            )


def _in_evaluation(chain: "torch.nn.Module") -> "torch.Tensor":
    """Return a parametrized weight as it is in evaluation; in training, spectral norm would change its buffers."""
    with _evaluating(chain):
        value: torch.Tensor = chain()
        return value


@contextmanager
def _evaluating(module: "torch.nn.Module") -> Iterator[None]:
    training = [(inner, inner.training) for inner in module.modules()]
    try:
        for inner, _ in training:
            inner.training = False
        yield
    finally:
        for inner, before in training:
            inner.training = before


def _computed(found: Contents, whole: str, effective: _Effective, parts: Sequence[str]) -> Array | None:
    """Return an effective weight, and note why its parts are not read; None if it cannot be computed."""
    import torch

    def compute() -> torch.Tensor:
        with torch.no_grad():
            return effective.compute().detach()

    shown = printable(whole)
    try:
        value = compute()
        if value.device.type == "meta":
            raise CheckpointError("it is on the meta device, without numbers")
        if not torch.equal(torch.nan_to_num(value), torch.nan_to_num(compute())):
            raise CheckpointError("it has other numbers each time it is computed")
        array = computed(str(value.dtype).removeprefix("torch."), tuple(value.shape), compute)
    except Exception as error:  # code of a user's parametrization
        reason = f"part of {shown}, which is {effective.how} and cannot be computed ({_line(error)})"
        found.reasons |= dict.fromkeys(parts, reason)
        return None
    reason = f"part of {shown}, which is {effective.how}: the effective weight is analyzed"
    found.reasons |= dict.fromkeys(parts, reason)
    return array


def _note_orientation(found: Contents, prefix: str, module: "torch.nn.Module") -> None:
    import torch

    if isinstance(module, torch.nn.Linear):
        found.transposed[f"{prefix}weight"] = False
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        found.transposed[f"{prefix}weight"] = True


def _note_merged(found: Contents, prefix: str, module: "torch.nn.Module", ordered: Sequence[str]) -> None:
    """Say of the factors of an adapter that PEFT has merged that they are in the base weight already."""
    merged = getattr(module, "merged_adapters", None)
    if not merged or not hasattr(module, "base_layer"):
        return
    shown = printable(prefix.removesuffix("."))
    reason = f"low-rank change of {shown}, merged into the weight, which is analyzed with it"
    found.reasons |= dict.fromkeys(_beginning(ordered, f"{prefix}lora_"), reason)


def _line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return printable(f"{type(error).__name__}: {text}" if not isinstance(error, CheckpointError) else text)
