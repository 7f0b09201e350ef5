"""What a figure is: a function that returns a chart, with its name, its title and the parameters it takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scanner.errors import ScannerError

if TYPE_CHECKING:
    from scanner.store import Store

PARAMETERS = {
    "model": "name of a scanned model; needed where a store holds several",
    "revision": "the newest revision that begins with this, instead of the newest",
    "layer": "index of the block",
    "role": "query, key, value, attn_out, mlp_up, ...",
    "head": "index of an attention head: the slice of that head (from a scan with --heads)",
    "expert": "index of an expert",
    "stack": "encoder, decoder, vision ... where a model has several",
    "tensor": "full name of the tensor, where role and layer leave a choice",
    "side": "v: right singular vectors (input side); u: left ones (output side)",
    "k": "rank of a singular triplet, 0 = largest singular value",
    "run": "id of a run of an experiment (of lazy: a recipe), instead of the newest of the model",
    "ensemble": "the random control that is drawn: gaussian or kaiming_uniform",
    "centred": "the covariance of the activations; if false, their second moments (as arXiv 2410.17770v1 draws them)",
    "base": "name of the scanned model before fine-tuning",
    "tuned": "name of the scanned model after it",
}
"""Every parameter that a figure may take, and what it means."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure; `draw` returns an altair chart that embeds its own data."""

    name: str
    title: str
    about: str
    """What it shows and how to read it."""
    parameters: tuple[str, ...]
    """Names of its parameters, all of them optional; `PARAMETERS` says what they mean."""
    function: Callable[..., Any]
    needs_store: bool = True
    """False for what is not about a scanned model."""

    def draw(self, store: Store | None, *, interactive: bool = False, **parameters: object) -> Any:
        """The chart: an `altair` chart, layered or concatenated, with its theme and its data in it.

        Args:
            store: where the scans are; None will do where `needs_store` is false.
            interactive: sized for a screen, with tooltips, zoom and legends that select; else for a paper's column.
            parameters: some of `parameters`; None stands for the default.

        Raises:
            ScannerError: a parameter that this figure does not take, a model, role, layer or head that is not there
                (the message says what is), or nothing that is scanned.
        """
        for name in parameters:
            if name not in self.parameters:
                raise ScannerError(
                    f"figure {self.name!r} takes no {name}: it takes {', '.join(self.parameters) or 'none'}"
                )
        given = {name: value for name, value in parameters.items() if value is not None}
        return self.function(store, interactive=interactive, **given)


def figure(function: Callable[..., Any], *, title: str, about: str) -> Figure:
    """A figure from its function `(store, *, interactive, ...)`: what it takes is read from the signature."""
    signature = inspect.signature(function).parameters
    names = [
        name
        for name, parameter in signature.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "interactive"
    ]
    unknown = set(names) - {*PARAMETERS}
    if unknown:
        raise ValueError(f"figure {function.__name__!r} has parameters that nobody explains: {sorted(unknown)}")
    return Figure(
        name=function.__name__,
        title=title,
        about=about,
        parameters=tuple(names),
        function=function,
        needs_store=signature["store"].default is inspect.Parameter.empty,
    )


def nearest(name: object, known: Iterable[object]) -> str:
    """The end of a sentence that says what is not there: the nearest of what is, and all of it."""
    listed = [str(one) for one in known]
    near = difflib.get_close_matches(str(name), listed, n=1)
    shown = listed if len(listed) <= 30 else [*listed[:30], f"... ({len(listed)} in all)"]
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}there are: {', '.join(shown) or 'none'}"
