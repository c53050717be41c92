"""A strategy: a position map, a visibility and a score temperature, composed from named parts.

Names are parts joined by "+": "direct", "vrpr", "tsa", "vrpr+tsa", each with an optional "+temp". A part says what it
contributes for one geometry; two parts that contribute the same thing do not compose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeVar

from . import solve
from .errors import StrategyError
from .positions import VRPR, Identity, PositionMap
from .visibility import TSA, Everything, Visibility, visible_tokens

__all__ = ["PARTS", "Geometry", "Strategy", "build", "parse", "part"]


@dataclass(frozen=True)
class Geometry:
    """One call's token grid beside the trained length. frames, trained_frames: latent frames; height, width: tokens."""

    trained_frames: int
    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens in a frame."""
        return self.height * self.width


@dataclass(frozen=True)
class Strategy:
    """What one attention site does with a long video. Immutable and hashable; the default changes nothing."""

    name: str = "direct"
    positions: PositionMap = field(default_factory=Identity)
    visibility: Visibility = field(default_factory=Everything)
    temperature: float = 1.0

    @property
    def changes_nothing(self) -> bool:
        return (
            isinstance(self.positions, Identity) and isinstance(self.visibility, Everything) and self.temperature == 1.0
        )

    def describe(self) -> dict[str, Any]:
        """JSON-serialisable settings."""
        return {
            "name": self.name,
            **self.positions.describe(),
            **self.visibility.describe(),
            "temperature": self.temperature,
        }


T = TypeVar("T")
Settings = Mapping[str, Any]
Part = Callable[[Geometry, Settings, dict[str, Any]], dict[str, Any]]
PARTS: dict[str, Part] = {}
"""Name -> function of (geometry, settings, what the parts before it gave) that returns fields of `Strategy`."""


def part(name: str) -> Callable[[Part], Part]:
    """Register a part of strategy names."""

    def register(function: Part) -> Part:
        PARTS[name] = function
        return function

    return register


def _from_settings(name: str, kind: type[T], value: Any) -> T:
    """A dataclass as it is, or from a mapping of its fields."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise StrategyError(f"{name}: expected {kind.__name__} or a mapping of its fields, found {value!r}")
    try:
        return kind(**value)
    except TypeError as error:  # a missing or an unknown field
        raise StrategyError(f"{name}: {error}") from error


@part("direct")
def _direct(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    return {}


@part("vrpr")
def _vrpr(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    explicit = settings.get("vrpr")
    value = explicit if explicit is not None else solve.vrpr(geometry.trained_frames, geometry.frames)
    return {"positions": _from_settings("vrpr", VRPR, value)}


@part("tsa")
def _tsa(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    explicit = settings.get("tsa")
    value = explicit if explicit is not None else solve.tsa(geometry.trained_frames, geometry.height, geometry.width)
    return {"visibility": _from_settings("tsa", TSA, value)}


@part("temp")
def _temperature(geometry: Geometry, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """lambda = sqrt(ln S_long / ln S_trained), S = visible tokens, unless the profile carries a measured value."""
    explicit = settings.get("temperature")
    if explicit is not None:
        if isinstance(explicit, bool) or not isinstance(explicit, Real) or not 0 < float(explicit) < math.inf:
            raise StrategyError(f"temperature: expected a positive number, found {explicit!r}")
        return {"temperature": float(explicit)}
    rule = given.get("visibility", Everything())
    visible = float(visible_tokens(rule, geometry.frames, geometry.height, geometry.width).mean())
    trained = geometry.trained_frames * geometry.tokens
    if trained < 2 or visible < 2:
        raise StrategyError(f"temp: needs at least two visible tokens, found {trained} trained and {visible:.1f} long")
    return {"temperature": math.sqrt(math.log(visible) / math.log(trained))}


def parse(name: str) -> tuple[str, ...]:
    """Split a strategy name into parts.

    Raises:
        StrategyError: not a string, an unknown part, a part twice, or "direct" beside anything but "temp".
    """
    if not isinstance(name, str):
        raise StrategyError(f"strategy: expected a name, found {name!r}")
    parts = tuple(name.split("+"))
    for item in parts:
        if item not in PARTS:
            raise StrategyError(f"unknown strategy {name!r}: {item!r} is not one of {', '.join(PARTS)}")
    if len(set(parts)) != len(parts):
        raise StrategyError(f"strategy {name!r} names a part twice")
    if "direct" in parts and set(parts) - {"direct", "temp"}:
        raise StrategyError(f"strategy {name!r}: 'direct' composes with 'temp' only")
    if parts == ("temp",):
        raise StrategyError("strategy 'temp' needs something to modify; 'direct+temp' keeps positions and pairs")
    return parts


def build(name: str, geometry: Geometry, settings: Settings | None = None) -> Strategy:
    """The strategy `name` for one geometry.

    Args:
        settings: "vrpr" (VRPR or a mapping of its fields), "tsa" (TSA or likewise), "temperature" (float); what is
            absent or None is solved.

    Raises:
        StrategyError: unknown name or parts that contribute the same thing.
        SolveError: no settings exist for this geometry.
    """
    given: dict[str, Any] = {}
    for item in sorted(parse(name), key=lambda p: p == "temp"):  # temperature looks at what is visible
        fields = PARTS[item](geometry, settings or {}, given)
        clash = given.keys() & fields.keys()
        if clash:
            raise StrategyError(f"strategy {name!r}: two parts set the {', '.join(sorted(clash))}")
        given |= fields
    return Strategy(name=name, **given)
