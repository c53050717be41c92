"""What one layer gets: the name of a strategy, alone or with settings that hold for this layer only.

A profile's `layers` may say it in four ways: a name, "vrpr+tsa"; the value of a part, `VRPR(10, 14, 2, 8)`; several of
these in a tuple, `(VRPR(10, 14, 2, 8), "tsa")`; and, in files, an object {"name": "vrpr+tsa", "settings": {"vrpr":
{"w1": 10, ...}}}. All become a plain name or a `LayerStrategy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from freeloc_fx.errors import ProfileError, StrategyError
from freeloc_fx.method.build import parse
from freeloc_fx.method.catalogue import PARTS, part_of
from freeloc_fx.method.parts import Part
from freeloc_fx.method.peers import NTK, PI, Anchors, Clip, Group, RIFLEx, UltraViCo, Window, YaRN
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.visibility import TSA

from .profile_json import FrozenMapping, freeze, known_keys
from .settings import SizedTSA, tiers

__all__ = ["Layer", "LayerLike", "LayerStrategy", "PartValue", "layer_strategy", "name_of", "settings_of_part"]


PartValue: TypeAlias = VRPR | TSA | SizedTSA | Anchors | Clip | Group | NTK | PI | RIFLEx | UltraViCo | Window | YaRN
"""A part of a strategy's name with its settings filled in. `catalogue.PARTS` says which part each class is."""


@dataclass(frozen=True)
class LayerStrategy:
    """A strategy's name with settings that hold where it stands, and win over the profile's own.

    Args:
        name: the strategy's name, as in "vrpr+tsa".
        settings: settings by the names of parts: a `VRPR` under "vrpr", a `TSA` or `SizedTSA` under "tsa", and
            mappings as in a profile's `parts` under the others.
    """

    name: str
    settings: FrozenMapping[str, Any]


Layer: TypeAlias = str | LayerStrategy
"""What one layer gets, as a profile keeps it."""


LayerLike: TypeAlias = str | PartValue | Sequence[str | PartValue] | LayerStrategy
"""What one layer gets, as a caller may write it."""


def name_of(layer: Layer) -> str:
    """Give the strategy's name.

    Args:
        layer: what a layer gets.
    """
    return layer if isinstance(layer, str) else layer.name


def layer_strategy(path: str, value: Any, trained_frames: int, quantise: str) -> Layer:
    """Check what one layer gets, and bring it to one form.

    Args:
        path: where the value stands in the profile, as in "layers.0".
        value: what was written.
        trained_frames: the profile's trained length in latent frames, which the values of some parts carry too.
        quantise: "pair" or "separable", for VRPR settings from a file that do not say.

    Returns:
        A name where no settings come with it, or a `LayerStrategy`.

    Raises:
        ProfileError: the value is malformed; the message begins with the path.
    """
    if isinstance(value, LayerStrategy):
        return _from_mapping(path, {"name": value.name, "settings": value.settings}, quantise)
    if isinstance(value, Mapping):
        return _from_mapping(path, value, quantise)
    # Names alone in a list are refused, like any other list without a part's value: "+" joins names.
    if isinstance(value, (list, tuple)) and any(_part(item) for item in value):
        return _from_items(path, {f"{path}.{index}": item for index, item in enumerate(value)}, trained_frames)
    if _part(value):
        return _from_items(path, {path: value}, trained_frames)
    return _name(path, value)


def _part(value: Any) -> Part | None:
    """Find the part that a value stands for."""
    return PARTS["tsa"] if isinstance(value, SizedTSA) else part_of(value)


def _name(path: str, value: Any) -> str:
    """Refuse anything but a strategy's name."""
    try:
        parse(value)
    except StrategyError as error:
        raise ProfileError(f"{path}: {error}") from error
    return value


def _from_items(path: str, items: Mapping[str, Any], trained_frames: int) -> Layer:
    """Join names and the values of parts, which come with the paths at which they stand."""
    names: list[str] = []
    settings: dict[str, Any] = {}
    for place, item in items.items():
        part = _part(item)
        if part is None:
            if not isinstance(item, str):
                known = ", ".join(part.value.__name__ for part in PARTS.values() if part.value)
                raise ProfileError(f"{place}: expected a strategy's name or one of {known}, found {item!r}")
            names.append(item)
            continue
        names.append(part.name)
        if part.name in ("vrpr", "tsa"):
            settings[part.name] = tiers(part.name, place, item, "pair")
            continue
        try:
            found = part.settings_of(item, trained_frames)
        except StrategyError as error:
            raise ProfileError(f"{place}: {error}") from error
        if found is not None:
            settings[part.name] = freeze(place, found)
    name = _name(path, "+".join(names))
    return LayerStrategy(name, FrozenMapping(settings)) if settings else name


def _from_mapping(path: str, value: Mapping[Any, Any], quantise: str) -> Layer:
    """Read the form that files have."""
    known_keys(path, value, ("name", "settings"), ("name",))
    name = _name(f"{path}.name", value["name"])
    given = value.get("settings", {})
    if not isinstance(given, Mapping):
        raise ProfileError(f"{path}.settings: expected a mapping from parts to their settings, found {given!r}")
    settings = {}
    for key, item in given.items():
        place = f"{path}.settings.{key}"
        if key not in parse(name):
            raise ProfileError(f"{place}: unknown key; expected {', '.join(parse(name))}")
        known = key in ("vrpr", "tsa")
        settings[key] = tiers(key, place, item, quantise) if known else settings_of_part(f"{path}.settings", key, item)
    return LayerStrategy(name, FrozenMapping(settings)) if settings else name


def settings_of_part(path: str, name: str, value: Any) -> Any:
    """Check the settings of a part that takes a mapping.

    Args:
        path: where the mapping of all parts' settings stands in the profile, as in "parts".
        name: the part's name.
        value: the settings.

    Returns:
        The same settings, immutable.

    Raises:
        ProfileError: there is no such part, it takes no mapping, or a setting is not what it takes.
    """
    if name not in PARTS or PARTS[name].settings is None:
        known = ", ".join(name for name, part in PARTS.items() if part.settings is not None)
        raise ProfileError(f"{path}.{name}: unknown key; expected {known}")
    try:
        PARTS[name].check(value)
    except StrategyError as error:  # its message begins with the part's name
        raise ProfileError(f"{path}.{error}") from error
    return freeze(f"{path}.{name}", value)
