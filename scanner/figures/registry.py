"""The registry of figures: the class of a figure, the parameters that figures share, and the decorator that registers one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from scanner.errors import ScannerError
from scanner.extensions import load_extensions
from scanner.figures.sizing import fitted
from scanner.figures.theme import Appearance, dressed, wanted

if TYPE_CHECKING:
    from scanner.store import Store

Function = TypeVar("Function", bound=Callable[..., Any])

PARAMETERS = {
    "model": "name of a scanned model; needed if the store holds several",
    "revision": "the newest revision that begins with this, instead of the newest",
    "layer": "index of the block",
    "role": "query, key, value, attn_out, mlp_up, ...",
    "head": "index of an attention head: the slice of that head (needs a scan with --heads)",
    "expert": "index of an expert",
    "stack": "encoder, decoder, vision, ... if the model has several",
    "tensor": "full name of the tensor, if role and layer match several",
    "side": "v: right singular vectors (input side); u: left ones (output side)",
    "k": "rank of a singular triplet, 0 = largest singular value",
    "run": "id of a run of an experiment (for lazy: a recipe), instead of the newest run of the model",
    "ensemble": "random control to draw: gaussian or kaiming_uniform",
    "centred": "covariance of the activations; if false, their second moments (as in arXiv 2410.17770v1)",
    "base": "name of the scanned model before fine-tuning",
    "tuned": "name of the scanned model after fine-tuning",
}
"""Parameters that several figures share, and their help."""

FIGURES: dict[str, Figure] = {}
"""Registered figures by name."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure; `draw` returns an altair chart that embeds its own data."""

    name: str
    title: str
    about: str
    """What it shows and how to read it."""
    parameters: Mapping[str, str]
    """Names of its parameters, all of them optional, and the help of each."""
    function: Callable[..., Any]
    needs_store: bool = True
    """False for a figure that does not read a store."""

    shows_progress: bool = False
    """True for a figure that takes long and reports how far it is."""

    def draw(
        self,
        store: Store | None,
        *,
        interactive: bool = False,
        progress: Callable[[int, int], None] | None = None,
        width: str | float | None = None,
        height: str | float | None = None,
        font_size: float | None = None,
        theme: str | None = None,
        **parameters: object,
    ) -> Any:
        """Return the chart: an `altair` chart, layered or concatenated, with its theme and its data.

        Args:
            store: the store to read; may be None if `needs_store` is false.
            interactive: whether to draw for a screen, with tooltips, zoom and selectable legends, or for a column of a paper.
            progress: called with the number of finished steps and that of all steps, if the figure takes long.
            width: of the whole figure with its axes and legends: points, or a text such as `85mm`, `3.4in` or `640px`. None: about
                245 points (one column of a paper), or 600 on a screen.
            height: of the whole figure, likewise; None: what suits the width.
            font_size: of the labels, in points; None: 7 on paper, 13 on a screen.
            theme: `paper`, `screen`, or `dark` (a screen with a dark background); None: `screen` if interactive, else `paper`.
            parameters: values of some of `parameters`; None means the default.

        Raises:
            ConfigError: a size or the theme is not accepted.
            ScannerError: the figure does not take a parameter, the store has no such model, role, layer or head (the message
                lists what it has), or it holds no scan.
        """
        asked = {"width": width, "height": height, "font_size": font_size, "theme": theme}
        # A figure of an extension may have a parameter of this name, which then means what the figure says.
        parameters |= {name: asked.pop(name) for name in [*asked] if name in self.parameters}
        appearance = Appearance.of(**asked)
        for name in parameters:
            self._check(name)
        given = {name: value for name, value in parameters.items() if value is not None}
        if progress is not None and self.shows_progress:
            given["progress"] = progress
        with wanted(appearance):
            chart = self.function(store, interactive=interactive, **given)
        return dressed(fitted(chart, appearance.width, appearance.height), appearance.theme)

    def convert(self, name: str, text: str) -> object:
        """Return the value of a parameter that was given as text, in the type of the function's signature.

        Raises:
            ScannerError: the figure does not take the parameter, or the text is not a value of its type.
        """
        self._check(name)
        annotation = inspect.signature(self.function).parameters[name].annotation
        kind = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        kind = kind.removesuffix(" | None")
        try:
            return _CONVERSIONS.get(kind, str)(text)
        except (ValueError, KeyError) as error:
            raise ScannerError(f"parameter {name!r} of figure {self.name!r} is of type {kind}, got {text!r}") from error

    def _check(self, name: str) -> None:
        if name not in self.parameters:
            known = ", ".join(self.parameters) or "none"
            raise ScannerError(f"figure {self.name!r} takes no parameter {name!r}; its parameters are: {known}")


_CONVERSIONS: dict[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}


def figure(*, title: str, about: str, parameters: Mapping[str, str] | None = None) -> Callable[[Function], Function]:
    """Register a function `(store, *, interactive, ...)` as the figure of its name.

    The keyword-only parameters of the function are the parameters of the figure, except `interactive` and `progress`, which
    `Figure.draw` describes. A figure whose `store` has a default value does not need a store.

    Args:
        title: one line for lists of figures.
        about: what the figure shows and how to read it.
        parameters: help of parameters that are not in `PARAMETERS`.

    Raises:
        ValueError: a parameter has no help, or another figure has this name.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        signature = inspect.signature(function).parameters
        names = [
            key
            for key, parameter in signature.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in ("interactive", "progress")
        ]
        known = {**PARAMETERS, **(parameters or {})}
        unknown = sorted({*names} - {*known})
        if unknown:
            raise ValueError(f"figure {name!r} has parameters without help: {unknown}")
        if name in FIGURES and FIGURES[name].function.__module__ != function.__module__:
            raise ValueError(f"figure {name!r} is already registered by {FIGURES[name].function.__module__}")
        FIGURES[name] = Figure(
            name=name,
            title=title,
            about=about,
            parameters={key: known[key] for key in names},
            function=function,
            needs_store=signature["store"].default is inspect.Parameter.empty,
            shows_progress="progress" in signature,
        )
        return function

    return register


def all_figures() -> dict[str, Figure]:
    """Return all figures by name, in alphabetical order, with those of the extension modules.

    Raises:
        ScannerError: an extension module cannot be imported.
    """
    load_extensions()
    return dict(sorted(FIGURES.items()))


def find_figure(name: str) -> Figure:
    """Return the figure of a name.

    Raises:
        ScannerError: the name is unknown (the message lists the known ones), or an extension module cannot be imported.
    """
    known = all_figures()
    if name not in known:
        raise ScannerError(f"unknown figure {name!r}: {nearest(name, known)}")
    return known[name]


def nearest(name: object, known: Iterable[object]) -> str:
    """Return the end of a message about an unknown name: the closest known name, and all of them."""
    listed = [str(one) for one in known]
    near = difflib.get_close_matches(str(name), listed, n=1)
    shown = listed if len(listed) <= 30 else [*listed[:30], f"... ({len(listed)} in all)"]
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}known: {', '.join(shown) or 'none'}"
