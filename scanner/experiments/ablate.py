"""Ablation: how much a model degrades when sets of singular values are removed from its weights, compared with controls."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from scanner.checkpoint import ROLES, MatrixRef, Selection
from scanner.checkpoint.names import printable
from scanner.configuration import option
from scanner.engine.task import Context
from scanner.errors import ScannerError
from scanner.experiments.damage import DamageWork, PointTask
from scanner.experiments.experiment import Call, Experiment, register_experiment
from scanner.experiments.nlp.options import MeasureOptions, ModelOptions, Precision

if TYPE_CHECKING:
    from scanner.experiments.nlp.removal import Counts, FactorCache, RemovalSet

By = Literal["role", "layer", "all"]
Control = Literal["energy", "directions", "scale"]
CONTROLS: tuple[Control, ...] = get_args(Control)


@dataclass(frozen=True, kw_only=True)
class Config(MeasureOptions, ModelOptions):
    """Options of `rmtscan ablate`."""

    roles: tuple[str, ...] = option((), metavar="ROLE,...", choices=ROLES)
    """Change only matrices with these roles; none: all roles."""
    layers: tuple[int, ...] = option((), metavar="0-5,7", min=0)
    """Change only matrices in these blocks; none: all blocks."""
    by: By = option("role")
    """One point for each role (in all blocks), for each block (all roles), or for all matrices at once."""
    sets: str = option("deciles", metavar="SET,...")
    """deciles, decile:1..10, regions, region:left|bulk|right, pruning, smallest:P, most-random:P (percent), random, or A:B (ranks A
    to B - 1, 0 is the largest)."""
    random_sets: int = option(10, name="random", min=0, max=1000)
    """Random sets of the same size for each set."""
    controls: tuple[Control, ...] = option((), metavar="CONTROL,...", choices=CONTROLS)
    """Other controls of each set: energy (other values with the same sum of squares), directions (the same values with random
    vectors), scale (a random matrix with the row and column variances of what is removed)."""
    control_draws: int = option(3, min=1, max=1000)
    """Draws of each of these controls."""
    dtype: Precision = option("float32")
    """Precision of the weights and activations of the model."""


@dataclass(frozen=True, kw_only=True)
class AblationTask(PointTask):
    """Measure the model without one set of singular values of some matrices, or with a control in its place."""

    refs: tuple[MatrixRef, ...]
    wanted: RemovalSet
    roles: str
    layers: str

    @property
    def family(self) -> str:
        """The matrices, because a worker keeps their decompositions."""
        return f"{self.roles} {self.layers}"

    @property
    def intact(self) -> bool:
        """Always false: a set is removed."""
        return False

    @property
    def columns(self) -> dict[str, object]:
        """Roles, layers, the set and its seed, and for a control the set that it is compared with."""
        return {
            "roles": self.roles,
            "layers": self.layers,
            "set": self.wanted.name,
            "seed": self.wanted.seed,
            "beside": self.wanted.beside,
        }

    @contextmanager
    def without(self, context: Context, model: Any) -> Iterator[Counts]:
        """The model without the set, or with what replaces it; yields how many singular values of how many."""
        from scanner.experiments.nlp.placing import place_matrices
        from scanner.experiments.nlp.removal import FactorCache, removed

        def new_cache() -> FactorCache:
            return FactorCache(memory_for_factors(context.device))

        placed, unplaced = place_matrices(model, self.refs)
        if unplaced:
            name, why = next(iter(unplaced.items()))
            raise ScannerError(f"{len(unplaced)} matrices cannot be changed, for example {printable(name)}: {why}")
        with removed(model, placed, self.wanted, context.resident("factors", self.run_id, new_cache)) as counts:
            yield counts


def memory_for_factors(device: str) -> int:
    """Bytes that a worker may use for decompositions: half of the free memory of a GPU, or half of a core's share of the memory."""
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) // 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(memory // (2 * (os.cpu_count() or 1)))


def plan(config: Config, call: Call) -> DamageWork:
    """Read the text, and list the points: one for each group of matrices and each set.

    Raises:
        ScannerError: a text, model, role, layer or set that is not suitable; the message says why.
    """
    from scanner.experiments.nlp.measures import measurement
    from scanner.experiments.nlp.models import model_place
    from scanner.experiments.nlp.placing import open_target
    from scanner.experiments.nlp.removal import parse_sets

    chosen = parse_sets(config.sets, config.random_sets, config.controls, config.control_draws)
    call.observer.opening(config.model)
    target = open_target(config.model, Selection(only=config.roles, layers=config.layers))
    refs = [ref for ref in target.inventory.matrices if ref.layer is not None]
    if not refs:
        raise ScannerError(f"{printable(target.checkpoint.model)} has no matrix with these roles in a block")
    _require_ranks(chosen, refs)
    place = model_place(target.checkpoint)
    measured = measurement(place, config)
    work = DamageWork(
        call.open_store(),
        kind="ablation",
        checkpoint=target.checkpoint,
        place=place,
        measurement=measured,
        parameters=measured.parameters | {"dtype": config.dtype},
        dtype=config.dtype,
        force=call.force,
    )
    work.points = _points(work.base, refs, config.by, chosen)
    return work


def _require_ranks(sets: Sequence[RemovalSet], refs: Sequence[MatrixRef]) -> None:
    """Check that some matrix has all ranks of each range.

    Raises:
        ScannerError: none has.
    """
    most = max(min(ref.rows, ref.cols) for ref in refs)
    for wanted in sets:
        kind, _, ends = wanted.name.partition(":")
        if kind == "range" and int(ends.partition(":")[2]) > most:
            raise ScannerError(
                f"`sets` {ends}: these matrices have at most {most} singular values, ranks 0 to {most - 1}; A:B is A to B - 1"
            )


def _points(base: dict[str, Any], refs: Sequence[MatrixRef], by: By, sets: Sequence[RemovalSet]) -> list[AblationTask]:
    """One task for each group of matrices and set; random sets of the same sizes are one task."""
    from scanner.experiments.nlp.removal import size_by_rank

    groups: dict[tuple[str, int], list[MatrixRef]] = {}
    for ref in sorted(refs, key=lambda ref: (ref.stack or "", ref.layer or 0, ROLES.index(ref.role))):
        of_role, of_layer = ("", ROLES.index(ref.role)), (ref.stack or "", ref.layer or 0)
        groups.setdefault({"role": of_role, "layer": of_layer, "all": ("", 0)}[by], []).append(ref)
    found: dict[str, AblationTask] = {}
    for key in sorted(groups):
        group = groups[key]
        roles = ",".join(sorted({ref.role for ref in group}, key=ROLES.index))
        layers = _layers(group)
        for wanted in sets:
            first = (wanted.beside or wanted.name).removeprefix("range:").partition(":")[0]
            if first.isdecimal() and int(first) >= max(min(ref.rows, ref.cols) for ref in group):
                continue  # a range of other, larger matrices
            what: object = wanted.name
            if wanted.beside is not None:
                sizes = [size_by_rank(wanted.beside, min(ref.rows, ref.cols)) for ref in group]
                shared = wanted.kind == "random" and None not in sizes
                what = [wanted.name, sizes if shared else wanted.beside]
            identity = json.dumps([sorted(ref.key for ref in group), what])
            point = f"{base['run_id']}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
            found.setdefault(
                point,
                AblationTask(**base, point=point, refs=tuple(group), wanted=wanted, roles=roles, layers=layers),
            )
    return list(found.values())


def _layers(refs: Sequence[MatrixRef]) -> str:
    """`0-5` or `0,3-4`, with the stack before it where models have several: `encoder:0-5`."""
    texts = []
    for stack in dict.fromkeys(ref.stack for ref in refs):
        layers = sorted({ref.layer for ref in refs if ref.stack == stack and ref.layer is not None})
        runs: list[list[int]] = []
        for layer in layers:
            if runs and layer == runs[-1][1] + 1:
                runs[-1][1] = layer
            else:
                runs.append([layer, layer])
        text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
        texts.append(f"{stack}:{text}" if stack is not None else text)
    return " ".join(texts)


EXPERIMENT = register_experiment(
    Experiment(
        name="ablate",
        config=Config,
        plan=plan,
        query="ablation_curve",
        help="""
Remove sets of singular values from the weights of a model and measure how much it degrades, compared with random sets and other
controls.

Each point is one file in the table ablations, written when it is measured; existing points are reused. Accuracy is that of the
classifier of the checkpoint, of the answers of a language model, or, for an encoder without either, of a linear probe on its
features. Prints query ablation_curve; query ablation_controls compares each set with its controls.

Examples:

    rmtscan ablate model.gguf --text novel.txt --sets deciles

    rmtscan ablate ./my-model --text novel.txt --roles mlp_down --by layer --sets regions --metric kl

    rmtscan ablate ./my-model --text novel.txt --sets decile:1,decile:10 --controls energy,directions,scale

    rmtscan ablate ./encoder --task reviews.csv --where source=rotten_tomatoes --metric accuracy --sets pruning --by all
""",
    )
)
