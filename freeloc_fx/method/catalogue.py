"""Every part of strategy names, in the order in which errors and `strategies()` list them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from . import freeloc
from .checks import Check
from .parts import Part
from .peers import anchors, clip, freelong, freelong_plus, group, longdiff, ntk, pi, riflex, ultravico, window, yarn

__all__ = ["PARTS", "PartSummaries", "PartSummary", "part_of", "strategies"]

PARTS: Mapping[str, Part] = MappingProxyType(
    {
        part.name: part
        for part in (
            freeloc.DIRECT,
            freeloc.VRPR_PART,
            freeloc.TSA_PART,
            freeloc.TEMP,
            freeloc.SQUEEZE,
            freeloc.HOLD,
            anchors.PART,
            clip.PART,
            freelong.PART,
            freelong_plus.PART,
            group.PART,
            longdiff.PART,
            ntk.PART,
            pi.PART,
            riflex.PART,
            ultravico.PART,
            window.PART,
            yarn.PART,
        )
    }
)
"""Name -> part."""


def part_of(value: object) -> Part | None:
    """Find the part that a value stands for.

    Args:
        value: anything, for example `Window(12)`.

    Returns:
        The part of `PARTS` whose `value` is the value's class, or None.
    """
    return next((part for part in PARTS.values() if part.value is type(value)), None)


@dataclass(frozen=True)
class PartSummary:
    """What a reader needs to know about one part of strategy names.

    Args:
        name: the part as it stands in a strategy's name.
        sets: what of a strategy it decides, in words, as in "positions"; "nothing" for "direct". Two parts that decide
            the same thing do not compose.
        settings: names of the settings that it takes, each with what it may be. "vrpr" and "tsa" take theirs from the
            profile's fields of that name, "temp" its own from `temperature`, all others from `parts`.
        doc: one sentence that says what it does.
        stepped: whether the strategy that it gives depends on the denoising step.
    """

    name: str
    sets: str
    settings: Mapping[str, str]
    doc: str
    stepped: bool = False


class PartSummaries(Mapping[str, PartSummary]):
    """An immutable mapping from the names of parts to their summaries; `print` shows it as a table.

    Args:
        summaries: the summaries, in the order of the table's rows.
    """

    __slots__ = ("_items",)

    def __init__(self, summaries: tuple[PartSummary, ...]) -> None:
        self._items = MappingProxyType({summary.name: summary for summary in summaries})

    def __getitem__(self, name: str) -> PartSummary:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"PartSummaries({', '.join(self)})"

    def __str__(self) -> str:
        head = ("part", "sets", "settings", "what it does")
        rows = [
            (
                part.name,
                part.sets,
                ", ".join(part.settings),
                part.doc + (" [by denoising step]" if part.stepped else ""),
            )
            for part in self.values()
        ]
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
        lines = [
            [*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]] for row in (head, *rows)
        ]
        return "\n".join("  ".join(line) for line in lines)


def strategies() -> PartSummaries:
    """List the parts of which strategy names are made.

    Parts are joined by "+", as in "vrpr+tsa" or "riflex+window+temp".

    Returns:
        An immutable mapping from each part's name to its summary. `print(strategies())` shows it as a table.
    """
    return PartSummaries(tuple(_summary(part) for part in PARTS.values()))


def _summary(part: Part) -> PartSummary:
    """Describe one part by what it declares and by the first line of its function's docstring."""
    sets = ", ".join(name.replace("_", " ") for name in part.sets) or "nothing"
    checks = {name: _expectation(check) for name, check in (part.settings or {}).items()}
    doc = (inspect.getdoc(part.contribute) or "").partition("\n")[0]
    return PartSummary(part.name, sets, MappingProxyType(dict(part.words or checks)), doc, part.stepped)


def _expectation(check: Check) -> str:
    """Say in words what a setting may be."""
    return check.expects if check.item is None else f"{check.expects}, each {check.item.expects}"
