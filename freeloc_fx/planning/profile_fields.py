"""The fields of a profile: checks that name a field's path, the values they become, and those as plain JSON data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from freeloc_fx.errors import ProfileError
from freeloc_fx.method.checks import is_whole
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.method.visibility import TSA

from .layer_strategy import LayerStrategy, layer_strategy, settings_of_part
from .profile_json import FrozenMapping, freeze, integer, integer_keys, known_keys, number, plain
from .settings import SizedTSA

__all__ = [
    "factor",
    "json_object",
    "layers_field",
    "lengths",
    "part_settings",
    "per_layer",
    "sensitivities",
    "sorted_items",
    "stages",
    "to_json",
]


MOST = 1e12
"""Of a factor on logits; a softmax of such logits is the largest of them long before, and float32 ends at 3.4e38."""


def factor(path: str, value: Any) -> float:
    """Refuse anything but a number above 0 by which float32 logits can be multiplied.

    Args:
        path: where the value stands in the profile.
        value: the value.

    Returns:
        The value.

    Raises:
        ProfileError: it is something else; the message begins with the path.
    """
    if not 0 < number(path, value) <= MOST:
        raise ProfileError(f"{path}: expected a number above 0 and at most {MOST:g}, found {value!r}")
    return value


def sorted_items(path: str, value: Mapping[Any, Any], keys: str = "layer indices") -> list[tuple[int, Any]]:
    """Give the items of a mapping with integer keys, by rising keys.

    Args:
        path: where the mapping stands in the profile.
        value: the mapping.
        keys: what the keys are, for messages.

    Returns:
        The items.

    Raises:
        ProfileError: a key is no integer from 0; the message begins with the path.
    """
    for key in value:
        if not is_whole(key, 0):
            raise ProfileError(f"{path}: expected {keys} (integers from 0) as keys, found {key!r}")
    return sorted(value.items(), key=lambda item: item[0])


def per_layer(path: str, value: Any, check: Callable[[str, Any], Any], optional: bool = False) -> Any:
    """Check one value for all layers, or a mapping from layer index to value.

    Args:
        path: where the value stands in the profile.
        value: the value.
        check: gives the checked form of the value of one layer, from its path and itself.
        optional: whether None stands for no value, and stays.

    Returns:
        The checked form of the value, or a mapping from layer index to that.

    Raises:
        ProfileError: a value is malformed; the message begins with its path.
    """
    if isinstance(value, Mapping):
        return FrozenMapping({i: check(f"{path}.{i}", item) for i, item in sorted_items(path, value)})
    return None if optional and value is None else check(path, value)


def layers_field(path: str, value: Any, trained_frames: int, quantise: str) -> Any:
    """Check a field `layers`: what all layers get, or a mapping from layer index to what that layer gets.

    Args:
        path: where the field stands in the profile.
        value: the field.
        trained_frames: the profile's trained length in latent frames.
        quantise: "pair" or "separable", for VRPR settings from a file that do not say.

    Returns:
        A name or a `LayerStrategy`, or a mapping from layer index to those.

    Raises:
        ProfileError: the field is malformed; the message begins with the path.
    """

    def check(place: str, item: Any) -> Any:
        """Check what one layer gets."""
        return layer_strategy(place, item, trained_frames, quantise)

    if isinstance(value, Mapping) and "name" in value:  # one strategy with settings, as files have it
        return check(path, value)
    return per_layer(path, value, check)


def sensitivities(value: Any) -> Any:
    """Check a profile's field of that name.

    Args:
        value: None, or layer index -> `Sensitivity` or a mapping of its fields.

    Returns:
        A mapping from layer index to `Sensitivity`; None for None.

    Raises:
        ProfileError: the field is malformed; the message begins with the path.
    """
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


def part_settings(value: Any) -> Any:
    """Check a profile's field `parts`.

    Args:
        value: None, or settings by the names of parts.

    Returns:
        The same data, immutable; None where there are none.

    Raises:
        ProfileError: the field is malformed; the message begins with the path.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"parts: expected a mapping from parts of strategy names to their settings, found {value!r}")
    return FrozenMapping({name: settings_of_part("parts", name, item) for name, item in value.items()}) or None


def stages(value: Any, trained_frames: int, quantise: str) -> Any:
    """Check a profile's field `schedule`.

    Args:
        value: None, or a list of {"steps": denoising steps, "layers": as in a profile}.
        trained_frames: the profile's trained length in latent frames.
        quantise: "pair" or "separable", for VRPR settings from a file that do not say.

    Returns:
        A tuple of the entries, immutable; None where there are none.

    Raises:
        ProfileError: the field is malformed; the message begins with the path.
    """
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
            "layers": layers_field(f"{path}.layers", layers, trained_frames, quantise),
        }
        result.append(FrozenMapping(made))
    return tuple(result) or None


def lengths(value: Any, trained_frames: int, quantise: str) -> Any:
    """Check a profile's field of that name.

    Args:
        value: None, or target latent frames -> {"layers": as in a profile, "temperature": as in a profile}.
        trained_frames: the profile's trained length in latent frames.
        quantise: "pair" or "separable", for VRPR settings from a file that do not say.

    Returns:
        The same data, checked and immutable; None where there are none.

    Raises:
        ProfileError: the field is malformed; the message begins with the path.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"lengths: expected a mapping from target latent frames to layers, found {value!r}")
    result = {}
    for frames, item in sorted_items("lengths", value, "target latent frames"):
        path = f"lengths.{frames}"
        if frames <= trained_frames:
            raise ProfileError(f"{path}: expected target latent frames above the trained {trained_frames}")
        if not isinstance(item, Mapping):
            raise ProfileError(f"{path}: expected a mapping with layers, found {item!r}")
        known_keys(path, item, ("layers", "temperature"), ("layers",))
        layers = integer_keys(f"{path}.layers", item["layers"])
        checked = {"layers": layers_field(f"{path}.layers", layers, trained_frames, quantise)}
        if item.get("temperature") is not None:
            given = integer_keys(f"{path}.temperature", item["temperature"])
            checked["temperature"] = per_layer(f"{path}.temperature", given, factor)
        result[frames] = FrozenMapping(checked)
    return FrozenMapping(result) if result else None


def json_object(path: str, value: Any) -> Any:
    """Check a field that may hold any JSON object.

    Args:
        path: where the field stands in the profile; "provenance" may be None.
        value: the field.

    Returns:
        The same data, immutable.

    Raises:
        ProfileError: it is no JSON object; the message begins with the path.
    """
    if value is None and path == "provenance":
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"{path}: expected a JSON object, found {value!r}")
    return freeze(path, value)


def to_json(value: Any) -> Any:
    """Give a field as plain JSON data.

    Integer keys become strings, and absent standard errors are left out.

    Args:
        value: the field, as a profile keeps it.

    Returns:
        Dicts, lists, strings, numbers, truth values and None.
    """
    if isinstance(value, SizedTSA):
        return {**asdict(value.settings), "tokens": value.tokens}
    if isinstance(value, (VRPR, TSA)):
        return asdict(value)
    if isinstance(value, LayerStrategy):
        return {"name": value.name, "settings": to_json(value.settings)}
    if isinstance(value, Sensitivity):
        return {key: item for key, item in asdict(value).items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return plain(value)
