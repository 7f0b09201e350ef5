"""Where the texts of a rendered figure are: those that lie over each other, and those that the border cuts."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import vl_convert

from scanner.figures.theme import text_width


class Box(NamedTuple):
    """A text with its borders, in points from the upper left corner of the figure."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    angle: float


def boxes(chart: Any) -> tuple[list[Box], tuple[float, float]]:
    """Return the texts of a chart as it is rendered, and its width and height."""
    found = vl_convert.vegalite_to_scenegraph(json.dumps(chart.to_dict()))
    left, top = found["origin"]
    return [*_texts(found["scenegraph"], left, top)], (found["width"], found["height"])


def _texts(node: dict[str, Any], x: float, y: float) -> Iterator[Box]:
    for item in node.get("items", []):
        if node.get("marktype") == "group":
            for child in item.get("items", []):
                yield from _texts(child, x + item.get("x", 0.0), y + item.get("y", 0.0))
        elif node.get("marktype") == "text" and item.get("opacity", 1) != 0 and item.get("text") not in (None, ""):
            yield _box(item, x, y)


def _box(item: dict[str, Any], x: float, y: float) -> Box:
    lines = item["text"] if isinstance(item["text"], list) else str(item["text"]).split(item.get("lineBreak", "\n"))
    font = item.get("fontSize", 11)
    wide, tall = max(text_width(str(line), font) for line in lines), font * (1 + 1.15 * (len(lines) - 1))
    across = {"left": 0.0, "center": -0.5, "right": -1.0}[item.get("align", "left")] * wide
    up = {"top": 0.0, "line-top": 0.0, "middle": -0.5, "bottom": -1.0, "line-bottom": -1.0, "alphabetic": -0.8}
    down = up[item.get("baseline", "alphabetic")] * (tall if len(lines) == 1 else font)
    at, height = x + item.get("x", 0.0), y + item.get("y", 0.0)
    across, down = across + item.get("dx", 0.0), down + item.get("dy", 0.0)
    name = " ".join(str(line) for line in lines)
    angle = item.get("angle", 0.0)
    turn = math.radians(angle)
    corners = [
        (u * math.cos(turn) - v * math.sin(turn), u * math.sin(turn) + v * math.cos(turn))
        for u in (across, across + wide)
        for v in (down, down + tall)
    ]
    xs, ys = ([corner[axis] for corner in corners] for axis in (0, 1))
    return Box(name, at + min(xs), height + min(ys), at + max(xs), height + max(ys), angle)


def overlapping(chart: Any, slack: float = 1.0) -> list[str]:
    """Return pairs of texts that share more than `slack` points in both directions. Slanted ones are left out."""
    found, _ = boxes(chart)
    straight = [box for box in found if box.angle in (0, -90, 270)]
    return [
        f"{one.text!r} and {other.text!r}"
        for one, other in itertools.combinations(straight, 2)
        if min(one.right, other.right) - max(one.left, other.left) > slack
        and min(one.bottom, other.bottom) - max(one.top, other.top) > slack
    ]


def cut(chart: Any, slack: float = 2.0) -> list[str]:
    """Return texts that reach beyond the border of the figure by more than `slack` points and 3 % of estimated widths."""
    found, (width, height) = boxes(chart)
    return [
        box.text
        for box in found
        if min(box.left, box.top) < -slack
        or box.right > width + slack + 0.03 * (box.right - box.left)
        or box.bottom > height + slack
    ]
