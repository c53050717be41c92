"""The fields of a profile: checks that name a field's path, the values they become, and those as plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from .errors import ProfileError, StrategyError
from .positions import VRPR
from .profile_json import FrozenMapping, freeze, integer, integer_keys, known_keys, number, plain, string
from .strategy import FIELDS, check_settings, parse
from .visibility import TSA

__all__ = [
    "Sensitivity",
    "SizedTSA",
    "entry",
    "factor",
    "fingerprint",
    "json_object",
    "lengths",
    "part_settings",
    "per_layer",
    "sensitivities",
    "sorted_items",
    "stages",
    "strategy",
    "to_json",
]


@dataclass(frozen=True)
class Sensitivity:
    """How much one layer reacts, larger = more sensitive; the errors are standard errors of the measurements.

    position: to keys moved outside the trained distances. context: to more visible tokens than in training.
    """

    position: float
    context: float
    position_error: float | None = None
    context_error: float | None = None


@dataclass(frozen=True)
class SizedTSA:
    """TSA settings that hold for one number of tokens per frame only; other resolutions are solved."""

    settings: TSA
    tokens: int


def factor(path: str, value: Any) -> float:
    if number(path, value) <= 0:
        raise ProfileError(f"{path}: expected a number above 0, found {value!r}")
    return value


def strategy(path: str, value: Any) -> str:
    try:
        parse(value)
    except StrategyError as error:
        raise ProfileError(f"{path}: {error}") from error
    return value


def sorted_items(path: str, value: Mapping[Any, Any], keys: str = "layer indices") -> list[tuple[int, Any]]:
    for key in value:
        if isinstance(key, bool) or not isinstance(key, int) or key < 0:
            raise ProfileError(f"{path}: expected {keys} (integers from 0) as keys, found {key!r}")
    return sorted(value.items(), key=lambda item: item[0])


def per_layer(path: str, value: Any, check: Any, optional: bool = False) -> Any:
    """One value for all layers, or a mapping from layer index. optional: None stays."""
    if isinstance(value, Mapping):
        return FrozenMapping({i: check(f"{path}.{i}", item) for i, item in sorted_items(path, value)})
    return None if optional and value is None else check(path, value)


def entry(kind: Literal["vrpr", "tsa"], path: str, value: Any, quantise: str) -> Any:
    """One VRPR, TSA or SizedTSA from itself or a mapping of its fields."""
    cls = VRPR if kind == "vrpr" else TSA
    if isinstance(value, cls):
        return value
    if kind == "tsa" and isinstance(value, SizedTSA):
        integer(f"{path}.tokens", value.tokens, 1)
        return value
    if not isinstance(value, Mapping):
        raise ProfileError(f"{path}: expected {cls.__name__} or a mapping of its fields, found {value!r}")
    names = tuple(field.name for field in fields(cls))
    required = ("w1", "w2", "g1", "g2") if kind == "vrpr" else ("d1", "d2", "ds")
    known_keys(path, value, names if kind == "vrpr" else (*names, "tokens"), required)
    given = dict(value)
    tokens = given.pop("tokens", None)
    if kind == "vrpr":
        given.setdefault("quantise", quantise)
    elif not isinstance(given.get("sink", True), bool):
        raise ProfileError(f"{path}.sink: expected true or false, found {given['sink']!r}")
    try:
        made = cls(**given)
    except StrategyError as error:  # its message begins with the kind
        raise ProfileError(path + str(error).removeprefix(kind)) from error
    except TypeError as error:
        raise ProfileError(f"{path}: {error}") from error
    if "tokens" not in value:
        return made
    return SizedTSA(cast(TSA, made), integer(f"{path}.tokens", tokens, 1))


def sensitivities(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"sensitivities: expected a mapping of layers, found {value!r}")
    names = tuple(field.name for field in fields(Sensitivity))
    result = {}
    for layer, item in sorted_items("sensitivities", value):
        path = f"sensitivities.{layer}"
        if isinstance(item, Sensitivity):
            item = {name: getattr(item, name) for name in names}
        if not isinstance(item, Mapping):
            raise ProfileError(f"{path}: expected Sensitivity or a mapping of its fields, found {item!r}")
        known_keys(path, item, names, ("position", "context"))
        for name in item:
            if item[name] is not None or name in ("position", "context"):
                number(f"{path}.{name}", item[name])
        result[layer] = Sensitivity(**item)
    return FrozenMapping(result)


def fingerprint(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"model: expected a mapping with class and config, found {value!r}")
    known_keys("model", value, ("class", "config"), ("class",))
    if not string("model.class", value["class"]):
        raise ProfileError("model.class: expected a class name, found ''")
    config = json_object("model.config", value.get("config", {}))
    return FrozenMapping({"class": value["class"], "config": config})


def part_settings(value: Any) -> Any:
    """Settings of strategy parts by the part's name; None where there are none."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"parts: expected a mapping from parts of strategy names to their settings, found {value!r}")
    for name, item in value.items():
        if name not in FIELDS:
            raise ProfileError(f"parts.{name}: unknown key; expected {', '.join(FIELDS)}")
        try:
            check_settings(name, item)
        except StrategyError as error:  # its message begins with the part's name
            raise ProfileError(f"parts.{error}") from error
    return freeze("parts", value) if value else None


def stages(value: Any) -> Any:
    """Entries of a schedule over denoising steps; None where there are none."""
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise ProfileError(f"schedule: expected a list of steps and layers, found {value!r}")
    result = []
    for index, item in enumerate(value):
        path = f"schedule.{index}"
        if not isinstance(item, Mapping):
            raise ProfileError(f"{path}: expected a mapping with steps and layers, found {item!r}")
        known_keys(path, item, ("steps", "layers"), ("steps", "layers"))
        layers = integer_keys(f"{path}.layers", item["layers"])
        made = {
            "steps": integer(f"{path}.steps", item["steps"], 1, " denoising step"),
            "layers": per_layer(f"{path}.layers", layers, strategy),
        }
        result.append(FrozenMapping(made))
    return tuple(result) or None


def lengths(value: Any, trained: int) -> Any:
    """Layers and temperatures by target latent frames; None where there are none."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"lengths: expected a mapping from target latent frames to layers, found {value!r}")
    result = {}
    for frames, item in sorted_items("lengths", value, "target latent frames"):
        path = f"lengths.{frames}"
        if frames <= trained:
            raise ProfileError(f"{path}: expected target latent frames above the trained {trained}")
        if not isinstance(item, Mapping):
            raise ProfileError(f"{path}: expected a mapping with layers, found {item!r}")
        known_keys(path, item, ("layers", "temperature"), ("layers",))
        checked = {}
        for field, check in (("layers", strategy), ("temperature", factor)):
            if item.get(field) is not None or field == "layers":
                given = integer_keys(f"{path}.{field}", item[field])
                checked[field] = per_layer(f"{path}.{field}", given, check)
        result[frames] = FrozenMapping(checked)
    return FrozenMapping(result) if result else None


def json_object(path: str, value: Any) -> Any:
    if value is None and path == "provenance":
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"{path}: expected a JSON object, found {value!r}")
    return freeze(path, value)


def to_json(value: Any) -> Any:
    """A field as plain JSON data; integer keys become strings, absent standard errors are left out."""
    if isinstance(value, SizedTSA):
        return {**asdict(value.settings), "tokens": value.tokens}
    if isinstance(value, (VRPR, TSA)):
        return asdict(value)
    if isinstance(value, Sensitivity):
        return {key: item for key, item in asdict(value).items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return plain(value)
