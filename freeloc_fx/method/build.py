"""Names of strategies: how they split into parts, and the strategy that a name means for one geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freeloc_fx.errors import StrategyError

from .catalogue import PARTS
from .parts import Part
from .strategy import Geometry, Strategy

__all__ = ["build", "parse"]


def parse(name: str, parts: Mapping[str, Part] = PARTS) -> tuple[str, ...]:
    """Split a strategy's name into its parts.

    Args:
        name: parts joined by "+", as in "vrpr+tsa".
        parts: the parts that there are, by name.

    Returns:
        The names of the parts, in the order in which they stand.

    Raises:
        StrategyError: not a string, an unknown part, a part twice, "direct" beside anything but "temp", or two parts
            that set the same thing.
    """
    if not isinstance(name, str):
        raise StrategyError(f"strategy: expected a name, found {name!r}")
    found = tuple(_split(name, parts))
    for item in found:
        if item not in parts:
            raise StrategyError(f"unknown strategy {name!r}: {item!r} is not one of {', '.join(parts)}")
    if len(set(found)) != len(found):
        raise StrategyError(f"strategy {name!r} names a part twice")
    if "direct" in found and set(found) - {"direct", "temp"}:
        raise StrategyError(f"strategy {name!r}: 'direct' composes with 'temp' only")
    if found == ("temp",):
        raise StrategyError("strategy 'temp' needs something to modify; 'direct+temp' keeps positions and pairs")
    given: dict[str, Any] = {}
    for sets in (*(parts[item].sets for item in found), *(parts[item].mixes for item in found)):
        _join(name, given, dict.fromkeys(sets))
    return found


def _split(name: str, parts: Mapping[str, Part]) -> list[str]:
    """Cut a name at "+"; in "freelong+++temp" the first two signs belong to the part "freelong++"."""
    found: list[str] = []
    pieces = name.split("+")
    while pieces:
        piece = pieces.pop(0)
        if pieces[:2] == ["", ""] and f"{piece}++" in parts:
            del pieces[:2]
            piece += "++"
        found.append(piece)
    return found


def build(
    name: str,
    geometry: Geometry,
    settings: Mapping[str, Any] | None = None,
    parts: Mapping[str, Part] = PARTS,
) -> Strategy:
    """Build the strategy of a name for one geometry.

    Where a part gives a mixture, what the other parts give goes to each of the strategies mixed, and "temp" looks at
    what each of them sees.

    Args:
        name: parts joined by "+", as in "vrpr+tsa".
        geometry: one call's token grid beside the trained length.
        settings: "vrpr" (`VRPR` or a mapping of its fields), "tsa" (`TSA` or a mapping of its fields), "temperature"
            (a number above 0), and for each part with settings of its own a mapping under the part's name. What is
            absent or None is solved, or the method's default.
        parts: the parts that there are, by name.

    Returns:
        The strategy, with `name` as its name.

    Raises:
        StrategyError: unknown name, settings that a part does not take, or parts that contribute the same thing.
        SolveError: settings are to be solved for a geometry of fewer than two trained frames.
    """
    named, settings = parse(name, parts), settings or {}
    given: dict[str, Any] = {}
    for item in sorted(named, key=lambda item: item == "vrpr"):  # VRPR is solved for what the other parts let be seen
        if item != "temp":
            _join(name, given, parts[item](geometry, settings, given))
    if "mixture" not in given:
        if "temp" in named:  # last, because it looks at what is visible
            _join(name, given, parts["temp"](geometry, settings, given))
        return Strategy(name=name, **given)
    mixture = given.pop("mixture")
    members = []
    for member in mixture.strategies:
        own = {key: getattr(member, key) for key in member.set_fields}
        _join(name, own, given)
        if "temp" in named:
            _join(name, own, parts["temp"](geometry, settings, own))
        members.append(replace(member, **own))
    return Strategy(name=name, mixture=mixture.with_strategies(tuple(members)))


def _join(name: str, given: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add fields to those given before, and refuse a field that is already there."""
    clash = given.keys() & more.keys()
    if clash:
        raise StrategyError(f"strategy {name!r}: two parts set the {', '.join(sorted(clash))}")
    given |= more
